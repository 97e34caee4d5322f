"""The bundle, a folder with all that a device needs: bundle.json, labels.txt and model files. It is checked at load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError, first_line
from ced_edge.files import read_json, sha256_file, write_json
from ced_edge.labels import TABLE_NAME, labels, labels_hash, table
from ced_edge.spec import ModelSpec, is_number

FORMAT = 1
BUNDLE_NAME, LABELS_NAME = "bundle.json", "labels.txt"
INPUTS = ("waveform", "mel")
KINDS = ("int8", "int8-static", "fp32")
"""Arithmetic of a model file, the default first: int8 is the fastest on a CPU at equal accuracy."""
FORMATS = ("onnx", "tflite")
PACKAGED = Path(__file__).parents[1] / "models" / "tiny"
"""The bundle that is installed with this package."""

# Nothing in a bundle is trusted: it may come from anywhere. So every size has a limit, far above what real bundles
# have, before memory is spent on it.
_MAX_JSON_BYTES = 1 << 20
_MAX_LABELS_BYTES = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(onnx|tflite)")
"""A plain file name, which cannot lead out of the bundle's folder. The file may be a link to another place: that is the
choice of the owner of the folder (Hugging Face's cache does it), not of bundle.json."""


@dataclass(frozen=True)
class ModelFile:
    """One model file of a bundle."""

    name: str
    """`<size>-<kind>.onnx` or `.tflite`."""
    kind: str
    """fp32, int8 or int8-static."""
    quantisation: str
    """A description of what was quantised and how."""
    bytes: int
    sha256: str

    @property
    def format(self) -> str:
        """onnx or tflite."""
        return Path(self.name).suffix[1:]


@dataclass(frozen=True)
class Bundle:
    """The content of bundle.json, and the `folder` that it is in."""

    folder: Path
    spec: ModelSpec
    window_s: float
    """Seconds of the longest input of one call. A .tflite file accepts this length alone."""
    input: str
    """`waveform`: (B, samples) at the spec's rate, the front end is in the graph. `mel`: (B, n_mels, frames) in dB."""
    files: tuple[ModelFile, ...]
    checkpoint_sha256: str
    labels_sha256: str
    """Hash of the file labels.txt."""
    reference: dict[str, Any] | None = None
    """Metrics from the checkpoint's reference.json, if there was one at export."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Packages that made the bundle -> their versions."""
    output: str = "prob"
    """`prob`: probabilities (B, n_classes)."""
    labels_hash: str = dataclasses.field(default_factory=labels_hash)
    """Hash of the mids and names of all classes, in the order of the outputs."""
    thresholds: dict[str, float] = dataclasses.field(default_factory=dict)
    """Class -> the probability from which on this model has it right more often than not; `listen` uses them."""

    @property
    def window_samples(self) -> int:
        """Samples of a full window at the spec's rate."""
        return round(self.window_s * self.spec.frontend.rate_hz)

    @property
    def window_frames(self) -> int:
        """Log-mel frames of a full window."""
        return self.spec.frontend.frames(self.window_samples)

    def fitting(self, name: str | None = None, kind: str | None = None, format: str | None = None) -> list[ModelFile]:
        """The model files with this name, kind and format, in the order of KINDS and FORMATS.

        Raises InputError, with the names of all files, when there is none.
        """
        fitting = [
            f for f in self.files if name in (None, f.name) and kind in (None, f.kind) and format in (None, f.format)
        ]
        if not fitting:
            wanted = " ".join(word for word in (name, kind, format) if word)
            raise InputError(f"{self.folder} has no {wanted} file: it holds {', '.join(f.name for f in self.files)}")
        return sorted(fitting, key=lambda f: (KINDS.index(f.kind), FORMATS.index(f.format)))

    def file(self, name: str | None = None, kind: str | None = None, format: str | None = None) -> ModelFile:
        """The first of the `fitting` model files. Raises InputError as `fitting` does."""
        return self.fitting(name, kind, format)[0]

    def path(self, file: ModelFile) -> Path:
        """The path of a model file."""
        return self.folder / file.name

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for bundle.json."""
        fields = {"format": FORMAT, **dataclasses.asdict(self)}
        del fields["folder"]
        if not self.thresholds:
            del fields["thresholds"]  # bundles without any are as they were before there were thresholds
        return {**fields, "sha256": _digest(fields)}

    def write(self) -> None:
        """Write bundle.json into `folder`. The other files must be there already."""
        write_json(self.folder / BUNDLE_NAME, self.to_dict())


def read_bundle(folder: Path | str) -> Bundle:
    """Read a bundle, and check the hash of every file, the labels and every number.

    Raises InputError, which names the fault, when anything is missing, damaged, or made by another version.
    """
    folder = Path(folder)
    path = folder / BUNDLE_NAME
    if not folder.is_dir():
        raise InputError(f"no such bundle: {folder} (a folder that `ced-edge export` wrote)")
    if not path.is_file():
        raise InputError(f"{folder} is no bundle: it has no {BUNDLE_NAME}; `ced-edge export` writes one")
    _check_size(path, _MAX_JSON_BYTES)
    fields = read_json(path)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}: export the bundle again")
    # This finds accidents. It does not stop an attacker, who can compute the hash again; the checks below do.
    if fields.pop("sha256", None) != _digest(fields):
        raise InputError(f"{path} is not as it was exported (its hash differs): copy or export the bundle again")
    bundle = _parse(folder, {k: v for k, v in fields.items() if k != "format"})
    _check_labels(bundle)
    for file in bundle.files:
        _check_file(bundle.path(file), file)
    return bundle


def _digest(fields: dict[str, Any]) -> str:
    """SHA-256 of the fields, whatever their order and layout. A changed rate does as much harm as a changed weight."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _parse(folder: Path, fields: dict[str, Any]) -> Bundle:
    path = folder / BUNDLE_NAME
    try:
        spec = ModelSpec.from_dict(fields.pop("spec"))
        files = tuple(ModelFile(**f) for f in fields.pop("files"))
        bundle = Bundle(folder=folder, spec=spec, files=files, **fields)
        problem = next(_problems(bundle), None)
    except InputError as e:
        raise InputError(f"{path} is broken: {e}") from e
    # A wrong type fails in many ways, and so does a size of 0 that something is divided by.
    except (TypeError, KeyError, AttributeError, ValueError, ArithmeticError) as e:
        raise InputError(f"{path} is broken ({first_line(e)}): export the bundle again") from e
    if problem is not None:
        raise InputError(f"{path} has {problem}, which this version does not know: export the bundle again")
    return bundle


def _problems(b: Bundle) -> Iterator[str]:
    """Values that this version cannot use. The first one is reported. The spec has checked itself already."""
    if not is_number(b.window_s) or not b.spec.min_samples <= b.window_samples <= b.spec.max_samples:
        yield f"a window of {b.window_s!r:.40} s"
    if b.input not in INPUTS:
        yield f"the input {b.input!r:.40}"
    if b.output != "prob":
        yield f"the output {b.output!r:.40}"
    if not isinstance(b.reference, dict | None) or not isinstance(b.versions, dict):
        yield "a reference or versions that are no JSON objects"
    elif not isinstance((b.reference or {}).get("metrics", {}), dict):
        yield "metrics that are no JSON object"
    if not isinstance(b.checkpoint_sha256, str):
        yield f"the checkpoint hash {b.checkpoint_sha256!r:.40}"
    if problem := thresholds_problem(b.thresholds):
        yield problem
    if not b.files:
        yield "no model file"
    for f in b.files:
        if not _FILE_NAME.fullmatch(f.name):
            yield f"a file with the name {f.name!r:.40}"
        if f.kind not in KINDS:
            yield f"a file of the kind {f.kind!r:.40}"


def thresholds_problem(thresholds: object) -> str | None:
    """What is wrong with the thresholds of a bundle or a checkpoint; None if nothing is."""
    names = {label.name for label in labels()}
    if not isinstance(thresholds, dict) or not thresholds.keys() <= names:
        return "thresholds of other classes"
    if not all(is_number(p) and 0.0 < p < 1.0 for p in thresholds.values()):
        return "a threshold that is no probability"
    return None


def _check_size(path: Path, most: int) -> None:
    if path.stat().st_size > most:
        raise InputError(f"{path} is larger than {most} bytes: it is damaged or hostile")


def _check_file(path: Path, file: ModelFile) -> None:
    if not path.is_file():
        # Users delete these files to save space. A bundle that never had them is known to be complete.
        smaller = ", or write one without fp32 files: ced-edge export CHECKPOINT --kinds int8" * (file.kind == "fp32")
        mend = f"copy the whole bundle again{smaller}"
        raise InputError(f"{path.parent} lacks {file.name}, which its {BUNDLE_NAME} names: {mend}")
    # The size first: it costs nothing, and a file that was cut short is common.
    if (size := path.stat().st_size) != file.bytes:
        difference = f"it has {size} bytes, not {file.bytes}"
    elif sha256_file(path) != file.sha256:
        difference = "its hash differs"
    else:
        return
    raise InputError(f"{path} is not the file that was exported ({difference}): copy the bundle again")


def _check_labels(bundle: Bundle) -> None:
    path = bundle.folder / LABELS_NAME
    if not path.is_file():
        raise InputError(f"{bundle.folder} lacks {LABELS_NAME}: copy the whole bundle again")
    _check_size(path, _MAX_LABELS_BYTES)
    count = len(path.read_text(encoding="utf-8", errors="replace").splitlines())
    if count != bundle.spec.n_classes:
        raise InputError(f"{path} has {count} labels for a model of {bundle.spec.n_classes} classes")
    if sha256_file(path) != bundle.labels_sha256:
        raise InputError(f"{path} is not the file that was exported (its hash differs): copy the bundle again")
    if bundle.labels_hash != labels_hash():
        raise InputError(f"{bundle.folder} was exported for another list of classes than this version's")
    # The contents are compared too: anyone can compute a hash again, and bundle.json has no hash of the table.
    for name, text in ((LABELS_NAME, labels_text()), (TABLE_NAME, table())):
        path = bundle.folder / name
        if path.exists() and (path.stat().st_size != len(text.encode()) or path.read_bytes() != text.encode()):
            raise InputError(f"{path} has other labels than the model, or another order: export the bundle again")


def labels_text() -> str:
    """The content of labels.txt: one display name per line, in the order of the outputs."""
    return "".join(f"{label.name}\n" for label in labels())
