"""Evaluation: students, teachers and ensembles predict the same clips through one path."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from ced_edge import __version__
from ced_edge.arrays import Float32, Float64
from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import Clip, data_hash, load_clip
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
from ced_edge.labels import labels
from ced_edge.network.ced import CED, predict
from ced_edge.proof import metrics
from ced_edge.proof.reference import Reference
from distill.devices import device_name, find_device

log = logging.getLogger(__name__)

Predictor = Callable[[Tensor], Tensor]
"""(B, samples) float32 in [-1, 1] on the device -> probabilities of M models (M, B, C)."""
Progress = Callable[[int], None]
"""Called with the number of clips just done."""

DTYPES = ("fp32", "bf16")
LOADERS = 4
"""Threads that decode."""


@dataclass(frozen=True)
class Evaluation:
    """A model's predictions for N clips, and how good they are."""

    ids: tuple[str, ...]
    labels: tuple[tuple[int, ...] | None, ...]
    groups: tuple[str | None, ...]
    probs: Float32
    """(N, C)."""
    rejected: tuple[tuple[str, str], ...]
    """(id, reason) of clips that could not be read; they are in no figure."""
    device: str
    """Name of the hardware."""
    dtype: str
    data_hash: str

    @functools.cached_property
    def per_class_ap(self) -> Float64:
        """(C,) average precision over the clips with known labels; NaN where none has the class."""
        known = [i for i, indices in enumerate(self.labels) if indices is not None]
        targets = metrics.multi_hot([self.labels[i] or () for i in known], self.probs.shape[1])
        return metrics.average_precision(targets, self.probs[known])

    @property
    def mean_ap(self) -> float:
        """Mean average precision over the classes present; NaN when no clip has a label."""
        return metrics.mean_ap(self.per_class_ap)

    @functools.cached_property
    def top1_by_group(self) -> float | None:
        """Share of clips whose own group scores highest; None with fewer than two groups of known classes."""
        grouped = [i for i, group in enumerate(self.groups) if group is not None]
        names = [str(self.groups[i]) for i in grouped]
        classes = metrics.classes_by_group(names, [self.labels[i] or () for i in grouped])
        counted = [(i, name) for i, name in zip(grouped, names, strict=True) if name in classes]
        if len(classes) < 2:
            return None
        return metrics.top1_by_group([name for _, name in counted], classes, self.probs[[i for i, _ in counted]])

    def metrics(self) -> dict[str, float | int | None]:
        """The figures in short; None for a figure that these clips cannot give."""
        present = int(np.count_nonzero(~np.isnan(self.per_class_ap)))
        return {
            "mean_ap": self.mean_ap if present else None,
            "top1_by_group": self.top1_by_group,
            "classes_present": present,
            "clips": len(self.ids),
            "rejected": len(self.rejected),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything except the probabilities, for JSON."""
        per_class = {
            label.name: float(ap) for label, ap in zip(labels(), self.per_class_ap, strict=True) if not np.isnan(ap)
        }
        return {
            **self.metrics(),
            "per_class_ap": per_class,
            "rejected_clips": [{"id": name, "reason": reason} for name, reason in self.rejected],
            "device": self.device,
            "dtype": self.dtype,
            "data_hash": self.data_hash,
        }

    def reference(self, weights: Path) -> Reference:
        """The reference for `ced-edge check`: exports of the checkpoint file `weights` are compared with it."""
        return Reference(
            ids=self.ids,
            probs=self.probs,
            per_class_ap=self.per_class_ap,
            metrics=self.metrics(),
            device=self.device,
            dtype=self.dtype,
            versions=versions(),
            data_hash=self.data_hash,
            weights_hash=sha256_file(weights),
        )


def evaluate(
    model: CED,
    clips: Sequence[Clip],
    device: str = "cpu",
    dtype: str = "fp32",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a student on `clips`; it predicts long clips in chunks. The model is left in eval mode on `device`.

    With `dtype` bf16 the transformer runs under autocast; the front end and the probabilities stay float32. Raises
    InputError on an unavailable device, and what `evaluate_together` raises.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    where = find_device(device)
    model = model.eval().to(where)

    def predictor(wave: Tensor) -> Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=dtype == "bf16"):
            return predict(model, wave)[None]

    rate_hz = model.spec.frontend.rate_hz
    name = "model"
    together = evaluate_together(predictor, [name], clips, rate_hz, where, batch_size, progress, dtype)
    return together[name]


def evaluate_together(
    predictor: Predictor,
    names: Sequence[str],
    clips: Sequence[Clip],
    rate_hz: int,
    device: str | torch.device = "cpu",
    batch_size: int = 32,
    progress: Progress | None = None,
    dtype: str = "fp32",
) -> dict[str, Evaluation]:
    """Evaluate M models on `clips` in one pass. `names` are in the order of the predictor's models.

    Clips of equal length share a batch of at most `batch_size`. Clips that cannot be read are left out, listed in
    `rejected`, and a warning gives their number. Raises InputError when no clip can be read or none has labels, and
    CedEdgeError when a prediction is not a probability or the memory is too small.
    """
    if not any(clip.labels for clip in clips):
        raise InputError("no clip has labels, so nothing can be evaluated: give a manifest with a `labels` column")
    where = find_device(device) if isinstance(device, str) else device
    predictions: dict[int, Float32] = {}  # of clip i: (M, C)
    rejected: dict[int, str] = {}
    with torch.inference_mode(), _full_precision():
        for indices, waves in _batches(clips, rate_hz, batch_size, rejected):
            try:
                probs = predictor(torch.from_numpy(waves).to(where)).float().cpu().numpy()
            except torch.OutOfMemoryError as e:
                raise CedEdgeError(f"out of memory on {where}: use a batch size below {len(indices)}") from e
            if not ((probs >= 0) & (probs <= 1)).all():
                clip = clips[indices[0]].id
                raise CedEdgeError(f"the prediction for {clip} is no probability: the model is broken")
            predictions.update(zip(indices, probs.swapaxes(0, 1), strict=True))
            if progress:
                progress(len(indices))
    if rejected:
        i, reason = next(iter(sorted(rejected.items())))
        log.warning("%d of %d clips left out, the first is %s: %s", len(rejected), len(clips), clips[i].id, reason)
    kept = [clips[i] for i in sorted(predictions)]
    if not any(clip.labels for clip in kept):
        raise InputError("no clip with labels could be read: check the manifest's file names")
    table = np.stack([predictions[i] for i in sorted(predictions)], axis=1).astype(np.float32)  # (M, N, C)
    first = Evaluation(
        ids=tuple(clip.id for clip in kept),
        labels=tuple(clip.labels for clip in kept),
        groups=tuple(clip.group for clip in kept),
        probs=table[0],
        rejected=tuple((clips[i].id, reason) for i, reason in sorted(rejected.items())),
        device=device_name(where),
        dtype=dtype,
        data_hash=data_hash(kept),
    )
    # Only the probabilities differ from model to model.
    return {name: dataclasses.replace(first, probs=probs) for name, probs in zip(names, table, strict=True)}


def _batches(
    clips: Sequence[Clip], rate_hz: int, batch_size: int, rejected: dict[int, str]
) -> Iterator[tuple[list[int], Float32]]:
    """(indices, (B, samples)) of clips of equal length; unreadable ones go into `rejected`."""
    waiting: dict[int, list[tuple[int, Float32]]] = {}

    def batch(samples: int) -> tuple[list[int], Float32]:
        indices, waves = zip(*waiting.pop(samples), strict=True)
        return list(indices), np.stack(waves)

    with ThreadPoolExecutor(LOADERS) as pool:
        for first in range(0, len(clips), batch_size):
            part = clips[first : first + batch_size]
            for i, wave in enumerate(pool.map(lambda clip: _load(clip, rate_hz), part), first):
                if isinstance(wave, str):
                    rejected[i] = wave
                    continue
                waiting.setdefault(len(wave), []).append((i, wave))
                if len(waiting[len(wave)]) == batch_size:
                    yield batch(len(wave))
            # Where every clip has its own length, memory must not grow with their number.
            while sum(map(len, waiting.values())) > 2 * batch_size:
                yield batch(max(waiting, key=lambda samples: (len(waiting[samples]), samples)))
    while waiting:
        yield batch(min(waiting))


def _load(clip: Clip, rate_hz: int) -> Float32 | str:
    """The clip's samples, (samples,), or the reason why it cannot be read."""
    try:
        return load_clip(clip, rate_hz)
    except AudioError as e:
        return e.reason


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Compute in IEEE float32 on a GPU. cuDNN's default is TF32, which has 10 bits: too few for a reference."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the last digits of the figures."""
    return {
        "ced_edge": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or "none"),
        "soundfile": soundfile.__version__,
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__version__,
    }
