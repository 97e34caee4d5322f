"""The bundle on disk, which is all that a device needs: manifest.json, labels.txt and model files; checked at load."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError
from ced_edge.files import disk_errors, lock, read_json, sha256_file, write_json
from ced_edge.labels import TABLE_NAME, labels, labels_hash, table
from ced_edge.spec import ModelSpec

FORMAT = 1
MANIFEST_NAME, LABELS_NAME = "manifest.json", "labels.txt"
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
    """What manifest.json says. `folder` is where it was read from."""

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
        """Plain dict for manifest.json."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        del fields["folder"]
        return {**fields, "sha256": _digest(fields)}

    def write(self) -> None:
        """Write manifest.json into `folder`, whose other files are there already."""
        write_json(self.folder / MANIFEST_NAME, self.to_dict())


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle: every file's hash, the labels, the spec. Raises InputError saying what is wrong."""
    if not folder.is_dir():
        raise InputError(f"no such bundle: {folder} (a folder that `ced-edge export` wrote)")
    if not (folder / MANIFEST_NAME).is_file():
        raise InputError(f"{folder} is no bundle: it has no {MANIFEST_NAME}; `ced-edge export` writes one")
    fields = read_json(folder / MANIFEST_NAME)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST_NAME} is of another format than {FORMAT}: export the bundle again")
    if fields.pop("sha256", None) != _digest(fields):
        raise InputError(
            f"{folder / MANIFEST_NAME} is not as it was exported (its hash differs): copy or export the bundle again"
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
    path = folder / MANIFEST_NAME
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


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to fill, which takes its place on success and is removed on any failure.

    Raises InputError where `folder` is there and is no bundle, or holds other files too; CedEdgeError on a full disk.
    """
    with disk_errors(folder):
        folder = folder.resolve()  # of a link the folder that it leads to
        _put_back(folder)
        _check_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
            with _locked(leftover) as free:
                if free:
                    shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        try:
            with _locked(temporary):
                yield temporary
                temporary.chmod(0o755)
                _check_replaceable(folder)  # to fill the new one took minutes
                if folder.exists():
                    _exchange(temporary, folder)
                else:
                    temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder, which tells it from what a killed process left; False when someone else holds it."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield lock(fd)
    finally:
        os.close(fd)


def _check_replaceable(folder: Path) -> None:
    """Raise InputError unless nothing is lost with `folder`: it is missing, empty, or a bundle of any format alone."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = read_json(folder / MANIFEST_NAME)
        # Other programs have a manifest.json too.
        known = {MANIFEST_NAME, LABELS_NAME, TABLE_NAME, *(file["name"] for file in manifest["files"])}
        is_bundle = isinstance(manifest["format"], int)
    except (InputError, TypeError, KeyError):
        is_bundle = False
    if not is_bundle:
        raise InputError(f"{folder} is there and is no bundle: choose another --out")
    if foreign := sorted({path.name for path in folder.iterdir()} - known):
        some = ", ".join([*foreign[:5], *["..."] * (len(foreign) > 5)])
        raise InputError(f"{folder} holds files besides its bundle: {some}; move them, or choose another --out")


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders: in one step where the kernel can (Linux), else in three."""
    if sys.platform == "linux":
        at_fdcwd, rename_exchange = -100, 2
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 and renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0:
            return
    aside = _aside(b)
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed before its last step
    with _locked(b):
        b.rename(aside)
        try:
            a.rename(b)
        except OSError:
            aside.rename(b)
            raise
        aside.rename(a)


def _put_back(folder: Path) -> None:
    """Undo the first step of an `_exchange` that was killed after it."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        with _locked(aside) as free:
            if free:
                aside.rename(folder)


def _aside(folder: Path) -> Path:
    """Where `_exchange` sets `folder` aside: no name of a leftover, as it may be the only bundle that there is."""
    return folder.with_name(f".{folder.name}.ced-edge-old")
