"""Hugging Face audio classifiers as teachers. This program's own model runs CED, transformers runs all others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ced_edge.arrays import Bools
from ced_edge.errors import InputError, first_line
from ced_edge.files import read_json, sha256_file, sha256_json
from ced_edge.labels import find
from ced_edge.spec import N_CLASSES
from distill.teachers.base import Teacher, pad_short, window_starts
from distill.teachers.ced import load_ced

WINDOW_S = 10
"""Length of a window for a model that takes any length: that of AudioSet's clips."""
# What is downloaded: never a pickle when there are safetensors, and never Python code.
FILES = ("*.json", "model.safetensors")
OLD_FILES = ("*.json", "pytorch_model.bin")


class HuggingFaceTeacher:
    """A multi-label audio classifier of transformers with AudioSet's labels.

    Input that is longer than the model takes (10 s) is predicted in windows, spread evenly, and the mean is taken.
    """

    def __init__(self, folder: Path, name: str, sha256: str, device: torch.device) -> None:
        self.name = name
        self.sha256 = sha256
        self.device = device
        transformers = _transformers(name)
        with _one_line(folder):
            self._features: Any = transformers.AutoFeatureExtractor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, info = transformers.AutoModelForAudioClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        if missing := sorted(info["missing_keys"]):
            # transformers would fill them with random numbers, without an error.
            raise InputError(f"{folder} is no usable Hugging Face audio classifier: its weights lack {missing[0]}")
        self.model: Any = model
        self.model.eval().to(device)
        self.rate_hz = int(self._features.sampling_rate)
        self.min_samples = self.rate_hz
        # A feature extractor with a fixed number of frames (10 ms each) cuts off the rest of a longer input.
        frames = getattr(self._features, "max_length", None)
        self._window = frames * self.rate_hz // 100 if isinstance(frames, int) else WINDOW_S * self.rate_hz
        self._indices = label_indices(self.model.config.id2label, name)
        self.known: Bools = np.zeros(N_CLASSES, np.bool_)
        self.known[self._indices[self._indices >= 0]] = True

    @torch.inference_mode()
    def __call__(self, wave: Tensor) -> Tensor:
        wave = pad_short(wave, self.min_samples)
        starts = window_starts(wave.shape[1], self._window, self._window)
        total = torch.zeros(wave.shape[0], len(self._indices), device=wave.device)
        for start in starts:
            total += self._probabilities(wave[:, start : start + self._window])
        out = torch.zeros(wave.shape[0], N_CLASSES, device=wave.device)
        known = torch.from_numpy(self._indices >= 0).to(wave.device)
        out[:, torch.from_numpy(self._indices).to(wave.device)[known]] = total[:, known] / len(starts)
        return out

    def _probabilities(self, wave: Tensor) -> Tensor:
        clips = [clip.cpu().numpy() for clip in wave]
        inputs = self._features(clips, sampling_rate=self.rate_hz, return_tensors="pt")
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        return torch.sigmoid(self.model(**inputs).logits.float())


def label_indices(id2label: Mapping[int, str], name: str) -> NDArray[np.int64]:
    """AudioSet index of each output, found by its label's name or mid; -1 for a label that AudioSet does not have.

    A model with 527 classes without names (LABEL_0 ...) is taken to have AudioSet's order. Raises InputError when a
    number is missing, no label is AudioSet's, or two are the same.
    """
    if sorted(id2label) != list(range(len(id2label))):
        raise InputError(f"teacher {name}: its id2label must number the labels 0, 1, 2 ...")
    texts = [id2label[i] for i in range(len(id2label))]
    if len(texts) == N_CLASSES and all(text == f"LABEL_{i}" for i, text in enumerate(texts)):
        return np.arange(N_CLASSES)
    indices = np.array([-1 if (i := find(text)) is None else i for text in texts], np.int64)
    known = indices[indices >= 0]
    if not len(known):
        raise InputError(f"teacher {name} knows no AudioSet class: its labels are {', '.join(texts[:3])} ...")
    if len(np.unique(known)) != len(known):
        raise InputError(f"teacher {name} has two outputs for one AudioSet class")
    return indices


def load_hf(folder: Path, name: str, device: torch.device, sha256: str | None = None) -> Teacher:
    """A teacher from a folder with config.json, or from a run's folder. Raises InputError."""
    if not (folder / "config.json").is_file():
        from ced_edge.network.checkpoint import find_checkpoint

        weights = find_checkpoint(folder).weights
        digest = sha256_file(weights)
        _check_hash(folder, digest, sha256)
        return load_ced(weights, name, digest, device)
    config = read_json(folder / "config.json")
    digest = folder_sha256(folder)
    _check_hash(folder, digest, sha256)
    if isinstance(config, dict) and config.get("model_type") == "ced":
        return load_ced(folder, name, digest, device)
    return HuggingFaceTeacher(folder, name, digest, device)


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and hashes of a model folder's configuration and weights."""
    files = [p for pattern in {*FILES, *OLD_FILES} for p in folder.glob(pattern)]
    return sha256_json({p.name: sha256_file(p) for p in sorted(files)})


def _check_hash(folder: Path, digest: str, wanted: str | None) -> None:
    if wanted and digest != wanted.lower():
        raise InputError(f"{folder} has sha256 {digest}, not {wanted}: it is another model, or damaged")


def download(hub_id: str) -> Path:
    """The folder of a hub's model in the cache; downloads it if it is missing. Raises InputError."""
    try:
        import huggingface_hub as hub
    except ImportError as e:
        raise InputError(f"teacher {hub_id} is on the Hugging Face hub: pip install huggingface-hub") from e
    try:
        folder = Path(hub.snapshot_download(hub_id, allow_patterns=list(FILES)))
        if not (folder / "model.safetensors").exists():
            folder = Path(hub.snapshot_download(hub_id, allow_patterns=list(OLD_FILES)))
    except Exception as e:  # the hub's, its HTTP client's and the disk's own errors
        raise InputError(f"no file {hub_id} here, and the Hugging Face hub did not give it: {first_line(e)}") from e
    return folder


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as e:
        raise InputError(f"teacher {name} needs transformers: pip install transformers") from e
    transformers.utils.logging.disable_progress_bar()
    return transformers


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as e:  # transformers, safetensors and pickle each raise their own
        raise InputError(f"{folder} is no usable Hugging Face audio classifier: {first_line(e)}") from e
