"""Export of a checkpoint as a bundle. Nothing is put in place before all of its files are verified."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ced_edge.arrays import Float32
from ced_edge.audio.clips import Clip
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
from ced_edge.frontend import log_mel
from ced_edge.labels import TABLE_NAME, table
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import find_checkpoint, load_model, read_metadata
from ced_edge.proof.reference import JSON_NAME, read_reference
from ced_edge.runtime.bundle import KINDS, LABELS_NAME, Bundle, ModelFile, labels_text, read_bundle, thresholds_problem
from ced_edge.spec import N_CLASSES
from export import metadata, quantize
from export.config import ExportConfig
from export.convert import to_onnx, to_tflite
from export.graph import CentredBlock, ExportModel, FoldedBlock
from export.replace import atomic_folder
from export.sounds import calibration_waves
from export.verify import Verdict, verify

log = logging.getLogger(__name__)

_KINDS = sorted(KINDS, key=lambda kind: kind != "fp32")
"""The fp32 file first: the others are made from it."""
_FULL = 1_000_000
"""With less free space than this, in bytes, a failure is reported as "no space left"."""


def export_bundle(source: str | Path, out: Path, config: ExportConfig, clips: Sequence[Clip] = ()) -> list[Verdict]:
    """Export the checkpoint `source` into the bundle `out`. Verify it on synthetic sounds, and on `clips` if any.

    Raises InputError for input that cannot be used, and CedEdgeError when the predictions of a file differ too much
    from the checkpoint's. `out` is then unchanged.
    """
    weights = find_checkpoint(source).weights
    model = load_model(weights)
    spec, rate = model.spec, model.spec.frontend.rate_hz
    if spec.n_classes != N_CLASSES:
        # A device shows the names in labels.txt, and there is only one list of names.
        raise InputError(f"{weights} has {spec.n_classes} classes: only the {N_CLASSES} of AudioSet can be exported")
    shortest_s, longest_s = spec.min_samples / rate, spec.max_samples / rate
    hint = ""
    if "tflite" in config.formats:
        # With a single column of patches, litert-torch writes a product of shapes that do not fit.
        hint = f", or from {shortest_s:g} with --format onnx"
        shortest_s = (2 * spec.patch - 1) * spec.frontend.hop / rate
    if not shortest_s <= config.window_s <= longest_s:
        raise InputError(
            f"--window {config.window_s:g} does not fit the model: choose {shortest_s:g} to {longest_s:g} seconds{hint}"
        )
    # Whole samples: 10 s are exactly 160,000, and so is what the device computes from `window_s`.
    window = round(config.window_s * rate)
    thresholds = read_metadata(weights).get("thresholds", {})
    if problem := thresholds_problem(thresholds):
        raise InputError(f"the metadata of {weights} holds {problem}: remove them, or train again")
    reference = _reference(weights)  # before the conversions, which take minutes: a damaged one is reported at once
    with atomic_folder(out) as folder:
        files = _Files(folder, model, config, window)
        kept = [(kind, format) for format in config.formats for kind in _KINDS if kind in config.kinds]
        for format in config.formats:
            files.make_all(format)
        (folder / LABELS_NAME).write_text(labels_text(), encoding="utf-8")
        if config.input == "mel":
            # sherpa-onnx, which mel files are for, reads the names of the classes from this table.
            (folder / TABLE_NAME).write_text(table(), encoding="utf-8")
        bundle = Bundle(
            folder=folder,
            spec=spec,
            window_s=config.window_s,
            input=config.input,
            # Metadata comes last: it shortens the names of tensors by which quantisation finds its layers.
            files=tuple(files.describe(kind, format) for kind, format in kept),
            checkpoint_sha256=sha256_file(weights),
            labels_sha256=sha256_file(folder / LABELS_NAME),
            reference=reference,
            versions=_versions(),
            thresholds=thresholds,
        )
        bundle.write()
        bundle = read_bundle(folder)  # with every check that a device makes
        log.info("verify: synthetic sounds")
        verdicts = verify(bundle, model)
        if clips:
            log.info("verify: clips")
            verdicts += verify(bundle, model, clips)
        if problems := [f"{v.file}: {p}" for v in verdicts for p in v.problems]:
            raise CedEdgeError(f"{out} was not written: {'; '.join(problems)}")
    return verdicts


class _Files:
    """Writes the model files of a bundle."""

    def __init__(self, folder: Path, model: CED, config: ExportConfig, window: int) -> None:
        self.folder, self.model, self.config, self.window = folder, model, config, window
        self._models = {
            format: ExportModel(model, config.input == "waveform", block)
            for format, block in (("onnx", FoldedBlock), ("tflite", CentredBlock))
            if format in config.formats
        }
        # Before the conversion, which takes minutes: a wrong path is reported at once.
        self._calibration = self._calibrate() if config.needs_ranges else []

    def make_all(self, format: str) -> None:
        """Write the files of a format, without metadata. Raises CedEdgeError when the disk is full."""
        for kind in _KINDS:
            if kind == "fp32" or kind in self.config.kinds:
                self._make(kind, format)
        if "fp32" not in self.config.kinds:
            self._path("fp32", format).unlink()

    def _make(self, kind: str, format: str) -> None:
        path = self._path(kind, format)
        log.info("export: %s", path.name)
        # Room for the float file and a third more: quantising and metadata work on copies.
        self._check_space(path, round(1.3 * 4 * sum(p.numel() for p in self.model.parameters())))
        try:
            self._convert(kind, format, path)
        except Exception:
            # When the disk is full, converters report something else, such as a corrupt file. So check the disk first.
            self._check_space(path, _FULL)
            raise

    def _convert(self, kind: str, format: str, path: Path) -> None:
        if kind == "fp32":
            {"onnx": to_onnx, "tflite": to_tflite}[format](self._models[format], path, self.window)
        elif (kind, format) == ("int8", "onnx"):
            quantize.onnx_int8(self._path("fp32", format), path, self.config.per_channel)
        else:
            quantise = {
                ("int8", "tflite"): quantize.tflite_int8,
                ("int8-static", "tflite"): quantize.tflite_int8_static,
                ("int8-static", "onnx"): quantize.onnx_int8_static,
            }[kind, format]
            quantise(self._path("fp32", format), path, self._calibration, self.config.per_channel)

    def _check_space(self, path: Path, needed: int) -> None:
        """Raise CedEdgeError when the target's disk or that of temporary files has less free space than `needed`."""
        for place in (self.folder.parent, Path(tempfile.gettempdir())):
            if (free := shutil.disk_usage(place).free) < needed:
                raise CedEdgeError(
                    f"no space left for {path.name}: {place} has {free / 1e6:.1f} MB, and it takes {needed / 1e6:.1f}: "
                    "free some, and export again"
                )

    def describe(self, kind: str, format: str) -> ModelFile:
        """Write metadata into a model file, and return its entry for bundle.json."""
        path = self._path(kind, format)
        add = {"onnx": metadata.add_onnx_metadata, "tflite": metadata.add_tflite_metadata}[format]
        add(path, self.model.spec, self.config.input, self.config.window_s)
        words = quantize.describe(format, kind, self.config.per_channel)
        return ModelFile(path.name, kind, words, path.stat().st_size, sha256_file(path))

    def _path(self, kind: str, format: str) -> Path:
        return self.folder / f"{self.model.spec.name}-{kind}.{format}"

    def _calibrate(self) -> list[Float32]:
        s = self.model.spec.frontend
        waves = calibration_waves(self.config.calibration, s.rate_hz, self.window)
        if self.config.input == "mel":
            return [log_mel(w, s)[None] for w in waves]
        return [w[None] for w in waves]


def _reference(weights: Path) -> dict[str, Any] | None:
    """What the reference beside the checkpoint says, without its arrays; None if it is of other weights."""
    if not (weights.parent / JSON_NAME).is_file():
        return None
    reference = read_reference(weights.parent)
    if reference.weights_hash != sha256_file(weights):
        return None
    names = {f.name for f in dataclasses.fields(reference)} - {"ids", "probs", "per_class_ap"}
    return {name: getattr(reference, name) for name in sorted(names)}


def _versions() -> dict[str, str]:
    """Versions of the packages that wrote the files."""
    packages = ("ced-edge", "torch", "onnx", "onnxruntime", "litert-torch", "ai-edge-quantizer")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
