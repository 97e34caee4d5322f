"""TFLite and ONNX files as teachers. Their shapes say what input they take, a class map says what they predict."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ced_edge.arrays import Bools, Float32
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_json
from ced_edge.labels import labels
from ced_edge.runtime.backends import Backend, Port, load_backend
from ced_edge.spec import N_CLASSES
from distill.teachers import yamnet
from distill.teachers.base import pad_short, window_starts

FREE_MIN_SAMPLES = 16_000
"""Shorter clips are zero-padded to this length when a model takes any length."""
CLIPS_AT_ONCE = 8
"""How many clips go through YAMNet's front end at once."""
OUTPUTS = ("prob", "logits")


@dataclass(frozen=True)
class ModelFileOptions:
    """Facts about a model file that are not in the file."""

    class_map: Path | None = None
    """CSV with the columns index and mid, one row per output. None: a file beside the model."""
    rate_hz: int = 16_000
    """Sample rate of the waveform that the model takes. Patches are always made at 16 kHz."""
    output: str = "prob"
    """`prob`, or `logits` for a model without the final sigmoid."""

    def __post_init__(self) -> None:
        if self.rate_hz <= 0:
            raise InputError(f"rate_hz of a teacher must be positive, not {self.rate_hz}")
        if self.output not in OUTPUTS:
            raise InputError(f"output of a teacher must be one of {', '.join(OUTPUTS)}, not {self.output!r}")


class ModelFileTeacher:
    """A TFLite or ONNX file. If its input has a fixed size, overlapping windows are predicted and the mean is taken.

    There are as many interpreters as torch has threads, and each uses one thread. Windows are independent, so this is
    faster than threads inside a small model, and the prediction does not depend on the number of threads.
    """

    def __init__(self, path: Path, name: str, sha256: str, device: torch.device, options: ModelFileOptions) -> None:
        self.name = name
        self.device = device
        self.path = path
        self.options = options
        self._backends: list[Backend] = [load_backend(path)]
        self._patches, self.window = _input_kind(self._backends[0], path)
        self.rate_hz = yamnet.RATE_HZ if self._patches else options.rate_hz
        self.min_samples = self.window or FREE_MIN_SAMPLES
        self._front_end = yamnet.YamnetFrontEnd()
        self._output, self._indices = _classes(self._backends[0], path, options.class_map)
        self.known: Bools = np.zeros(N_CLASSES, np.bool_)
        self.known[self._indices[self._indices >= 0]] = True
        # The same file with other classes or another output is another teacher, so these are part of its hash.
        self.sha256 = sha256_json([sha256, self._indices.tolist(), options.output, self.rate_hz])
        self._rank = len(self._backends[0].inputs[0].shape)

    @torch.inference_mode()
    def __call__(self, wave: Tensor) -> Tensor:
        wave = pad_short(wave.to("cpu", torch.float32), self.min_samples)
        pieces = self._pieces(wave)  # (B, N, ...)
        B, N = pieces.shape[:2]
        scores = self._run(pieces.reshape(B * N, *pieces.shape[2:])).reshape(B, N, -1)
        # Added up window by window. A library's sum may take another order for another batch size.
        total = scores[:, 0].copy()
        for i in range(1, N):
            total += scores[:, i]
        total /= N
        out = np.zeros((B, N_CLASSES), np.float32)
        out[:, self._indices[self._indices >= 0]] = total[:, self._indices >= 0]
        return torch.from_numpy(out).to(self.device)

    def _pieces(self, wave: Tensor) -> Float32:
        """(B, samples) -> the model's input for N windows, (B, N, samples) or (B, N, frames, mels)."""
        if self._patches:
            # A few clips at a time, which fit in the CPU's cache.
            x = torch.cat([self._front_end(clips) for clips in torch.split(wave, CLIPS_AT_ONCE)])
            size, hop = yamnet.PATCH_FRAMES, yamnet.PATCH_HOP_FRAMES
        elif self.window:
            x, size, hop = wave, self.window, self.window // 2
        else:
            return wave.unsqueeze(1).numpy()
        starts = window_starts(x.shape[1], size, hop)
        return torch.stack([x[:, s : s + size] for s in starts], dim=1).numpy()

    def _run(self, pieces: Float32) -> Float32:
        """(P, ...) -> probabilities (P, outputs)."""
        out = np.empty((len(pieces), len(self._indices)), np.float32)
        threads = min(torch.get_num_threads(), len(pieces))
        while len(self._backends) < threads:
            self._backends.append(load_backend(self.path))

        def work(i: int) -> None:
            # An interpreter serves one thread only, so thread i has interpreter i.
            for p in range(i, len(pieces), threads):
                x = np.ascontiguousarray(pieces[p] if self._rank == pieces.ndim - 1 else pieces[p : p + 1])
                out[p] = self._backends[i].run(x)[self._output].reshape(-1)

        if threads == 1:
            work(0)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, range(threads)))
        return self._probabilities(out)

    def _probabilities(self, out: Float32) -> Float32:
        if self.options.output == "logits":
            return torch.sigmoid(torch.from_numpy(out)).numpy()
        if not (np.all(out >= -1e-3) and np.all(out <= 1.001)):
            raise CedEdgeError(
                f"teacher {self.name}: {self.path.name} gives values from {out.min():.3g} to {out.max():.3g}, not "
                f'probabilities: set output = "logits" for it in the teachers file'
            )
        return np.clip(out, 0.0, 1.0)


def _input_kind(backend: Backend, path: Path) -> tuple[bool, int | None]:
    """Whether the model takes log-mel patches, and the samples of one window (None: any length)."""
    if len(backend.inputs) != 1 or backend.inputs[0].dtype != "float32":
        raise InputError(f"{path.name} takes {_show(backend.inputs)}: a teacher takes one float32 input")
    shape = backend.inputs[0].shape
    if shape[-2:] == (yamnet.PATCH_FRAMES, yamnet.N_MELS) and shape[:-2] in ((1,), (-1,), ()):
        return True, yamnet.PATCH_SAMPLES
    if len(shape) in (1, 2) and shape[:-1] in ((1,), (-1,), ()):
        if shape[-1] < 0:
            return False, None
        if shape[-1] >= FREE_MIN_SAMPLES // 4:
            return False, shape[-1]
    raise InputError(
        f"{path.name} takes {_show(backend.inputs)}: a teacher takes a waveform (1, samples) or YAMNet patches "
        f"(1, {yamnet.PATCH_FRAMES}, {yamnet.N_MELS})"
    )


def _show(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"{p.name} {p.dtype}{list(p.shape)}" for p in ports)


def _classes(backend: Backend, path: Path, class_map: Path | None) -> tuple[int, NDArray[np.int64]]:
    """Number of the output to read, and the AudioSet index of each of its columns (-1: not an AudioSet class).

    The output is the one with as many columns as the class map has rows.
    """
    maps = [class_map] if class_map else find_class_maps(path)
    candidates = [read_class_map(m) for m in maps]
    if not class_map:
        candidates.append(np.arange(N_CLASSES))
    for indices in candidates:
        for i, port in enumerate(backend.outputs):
            if port.shape[-1:] == (len(indices),):
                return i, indices
    tried = "".join(f"the {len(c)} rows of {m.name} nor " for m, c in zip(maps, candidates, strict=False))
    raise InputError(
        f"{path.name} has outputs {_show(backend.outputs)}, which fit neither {tried}AudioSet's {N_CLASSES} classes: "
        f"give it a class map {path.stem}_class_map.csv with columns index,mid"
    )


def find_class_maps(path: Path) -> list[Path]:
    """`<stem>_class_map.csv` beside the model; else `*class_map.csv` if its folder has exactly one; else nothing."""
    own = path.with_name(f"{path.stem}_class_map.csv")
    if own.is_file():
        return [own]
    others = sorted(path.parent.glob("*class_map.csv"))
    return others if len(others) == 1 else []


def read_class_map(path: Path) -> NDArray[np.int64]:
    """AudioSet index of each row of a class map, by its mid; -1 for a mid that is not among the 527."""
    by_mid = {label.mid: label.index for label in labels()}
    try:
        rows = list(_rows(path))
    except (OSError, ValueError, csv.Error) as e:  # ValueError: no UTF-8, or a path with a null character
        raise InputError(f"class map {path} is not readable: {e}") from e
    if sorted(i for i, _ in rows) != list(range(len(rows))) or not rows:
        raise InputError(f"class map {path}: column index must hold 0 to {max(len(rows) - 1, 0)}, each once")
    indices = np.array([by_mid.get(mid, -1) for _, mid in sorted(rows)], np.int64)
    known = indices[indices >= 0]
    if not len(known):
        raise InputError(f"class map {path} names no AudioSet class in column mid")
    if len(np.unique(known)) != len(known):
        raise InputError(f"class map {path} names an AudioSet class twice in column mid")
    return indices


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(newline="", encoding="utf-8-sig") as f:
        reader: Any = csv.DictReader(f)
        missing = {"index", "mid"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"class map {path} has no column {', '.join(sorted(missing))}")
        for row in reader:
            index = (row["index"] or "").strip()
            if not index.isdecimal() or len(index) > 9:  # isdigit is true of "²" too, which int refuses
                raise InputError(f"class map {path}, line {reader.line_num}: index {index!r} is no number")
            yield int(index), (row["mid"] or "").strip()
