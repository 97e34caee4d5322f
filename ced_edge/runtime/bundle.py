"""The bundle on disk, which is all that a device needs: bundle.json, labels.txt and model files; checked at load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError
from ced_edge.files import read_json, sha256_file, write_json
from ced_edge.labels import TABLE_NAME, labels, labels_hash, table
from ced_edge.spec import ModelSpec

FORMAT = 1
BUNDLE_NAME, LABELS_NAME = "bundle.json", "labels.txt"
INPUTS = ("waveform", "mel")
KINDS = ("int8", "int8-static", "fp32")
"""Arithmetic of a model file, the default first."""
FORMATS = ("onnx", "tflite")


@dataclass(frozen=True)
class ModelFile:
    """One model file of a bundle."""

    name: str
    """`<size>-<kind>.onnx` or `.tflite`."""
    kind: str
    """fp32, int8 or int8-static."""
    quantisation: str
    """What was quantised and how, in words."""
    bytes: int
    sha256: str

    @property
    def format(self) -> str:
        """onnx or tflite."""
        return Path(self.name).suffix[1:]


@dataclass(frozen=True)
class Bundle:
    """What bundle.json says. `folder` is where it was read from."""

    folder: Path
    spec: ModelSpec
    window_s: float
    """Longest input of one call, and the only one of a .tflite file."""
    input: str
    """`waveform` (B, samples) at the spec's rate, front end in the graph; or `mel` (B, n_mels, frames) in dB."""
    files: tuple[ModelFile, ...]
    checkpoint_sha256: str
    labels_sha256: str
    """Of labels.txt."""
    reference: dict[str, Any] | None = None
    """Metrics of the checkpoint's reference.json, where there was one at export."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    output: str = "prob"
    """(B, n_classes) probabilities."""
    labels_hash: str = dataclasses.field(default_factory=labels_hash)

    @property
    def window_samples(self) -> int:
        """Samples of a full window at the spec's rate."""
        return round(self.window_s * self.spec.frontend.rate_hz)

    @property
    def window_frames(self) -> int:
        """Log-mel frames of a full window."""
        return self.spec.frontend.frames(self.window_samples)

    def fitting(self, name: str | None = None, kind: str | None = None, format: str | None = None) -> list[ModelFile]:
        """The model files that fit, in the order of KINDS and FORMATS. Raises InputError naming what there is."""
        fitting = [
            f for f in self.files if name in (None, f.name) and kind in (None, f.kind) and format in (None, f.format)
        ]
        if not fitting:
            asked = " ".join(word for word in (name, kind, format) if word)
            raise InputError(f"{self.folder} has no {asked} file: it holds {', '.join(f.name for f in self.files)}")
        return sorted(fitting, key=lambda f: (KINDS.index(f.kind), FORMATS.index(f.format)))

    def file(self, name: str | None = None, kind: str | None = None, format: str | None = None) -> ModelFile:
        """The first model file that fits. Raises InputError naming what there is."""
        return self.fitting(name, kind, format)[0]

    def path(self, file: ModelFile) -> Path:
        """Where a model file lies."""
        return self.folder / file.name

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for bundle.json."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        del fields["folder"]
        return {**fields, "sha256": _digest(fields)}

    def write(self) -> None:
        """Write bundle.json into `folder`, whose other files are there already."""
        write_json(self.folder / BUNDLE_NAME, self.to_dict())


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle: every file's hash, the labels, the spec. Raises InputError saying what is wrong."""
    if not folder.is_dir():
        raise InputError(f"no such bundle: {folder} (a folder that `ced-edge export` wrote)")
    if not (folder / BUNDLE_NAME).is_file():
        raise InputError(f"{folder} is no bundle: it has no {BUNDLE_NAME}; `ced-edge export` writes one")
    fields = read_json(folder / BUNDLE_NAME)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise InputError(f"{folder / BUNDLE_NAME} is of another format than {FORMAT}: export the bundle again")
    if fields.pop("sha256", None) != _digest(fields):
        raise InputError(
            f"{folder / BUNDLE_NAME} is not as it was exported (its hash differs): copy or export the bundle again"
        )
    bundle = _parse(folder, {k: v for k, v in fields.items() if k != "format"})
    _check_labels(bundle)
    for file in bundle.files:
        path = bundle.path(file)
        if not path.is_file():
            raise InputError(f"{folder} lacks {file.name}, which its manifest names: copy the whole bundle again")
        if sha256_file(path) != file.sha256:
            raise InputError(f"{path} is not the file that was exported (its hash differs): copy the bundle again")
    return bundle


def _digest(fields: dict[str, Any]) -> str:
    """SHA-256 of a manifest's fields, whatever their order and layout: a rate of 11000 Hz is as wrong as a weight."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _parse(folder: Path, fields: dict[str, Any]) -> Bundle:
    path = folder / BUNDLE_NAME
    try:
        spec = ModelSpec.from_dict(fields.pop("spec"))
        files = tuple(ModelFile(**f) for f in fields.pop("files"))
        bundle = Bundle(folder=folder, spec=spec, files=files, **fields)
        known = (
            bundle.input in INPUTS
            and bundle.output == "prob"
            and bool(files)
            and all(f.kind in KINDS and f.format in FORMATS and Path(f.name).name == f.name for f in files)
            and spec.min_samples <= bundle.window_samples <= spec.max_samples
        )
    except InputError as e:
        raise InputError(f"{path} is broken: {e}") from e
    except (TypeError, KeyError, AttributeError, ValueError) as e:
        raise InputError(f"{path} is broken ({e}): export the bundle again") from e
    if not known:
        raise InputError(f"{path} tells of an input, kind, file or window that this version does not know")
    return bundle


def _check_labels(bundle: Bundle) -> None:
    path = bundle.folder / LABELS_NAME
    if not path.is_file():
        raise InputError(f"{bundle.folder} lacks {LABELS_NAME}: copy the whole bundle again")
    count = len(path.read_text(encoding="utf-8", errors="replace").splitlines())
    if count != bundle.spec.n_classes:
        raise InputError(f"{path} has {count} labels for a model of {bundle.spec.n_classes} classes")
    if sha256_file(path) != bundle.labels_sha256:
        raise InputError(f"{path} is not the file that was exported (its hash differs): copy the bundle again")
    if bundle.labels_hash != labels_hash():
        raise InputError(f"{bundle.folder} was exported for another list of classes than this version's")
    # A hash made to fit proves nothing, and the table, which others read, has none.
    for name, text in ((LABELS_NAME, labels_text()), (TABLE_NAME, table())):
        path = bundle.folder / name
        if path.exists() and path.read_bytes() != text.encode():
            raise InputError(f"{path} has other labels than the model, or another order: export the bundle again")


def labels_text() -> str:
    """The content of labels.txt: a display name per line, in the order of the outputs."""
    return "".join(f"{label.name}\n" for label in labels())
