"""The accuracy check with the converters: .tflite files beside .onnx ones, and the student of this repository."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx spoils the model files of these tests")
from check_case import LIMITS, Case, replace_file, round_model, run_check, shared_case
from tiny_bundle import export_onnx, tiny_model, with_file

from ced_edge.audio.clips import read_manifest
from ced_edge.errors import CedEdgeError
from ced_edge.network.checkpoint import load_model
from ced_edge.proof.bounds import DEFAULTS
from ced_edge.proof.check import check
from ced_edge.proof.reference import read_reference
from ced_edge.proof.targets import targets
from ced_edge.runtime.bundle import read_bundle
from distill.evaluation.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "students" / "tiny"


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Case:
    return shared_case(tmp_path_factory.getbasetemp() / "case").copy(tmp_path)


FOUR_BITS = """
import sys; from ai_edge_quantizer import quantizer; from ai_edge_quantizer.recipe import TFLOperationName
q = quantizer.Quantizer(sys.argv[1])
q.add_dynamic_config("^(?!.*FrontEnd).*", TFLOperationName.FULLY_CONNECTED, num_bits=4)
q.quantize().export_model(sys.argv[2], overwrite=True)
"""


def python(*arguments: object) -> None:
    """In a process of its own: the converter brings JAX, whose threads forbid later tests to fork."""
    here = Path(__file__).parent
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent)))}
    subprocess.run([sys.executable, *map(str, arguments)], check=True, env=paths, capture_output=True)


@pytest.fixture(scope="module")
def student(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The student of the repository as `ced-edge export` writes it, and the ESC-10 dev clips.

    All 80 of them: with 40, two clips that change places can cost more mAP than the bound allows.
    """
    if not (STUDENT / "model.safetensors").exists():
        pytest.skip(f"no student at {STUDENT}")
    if not find_spec("litert_torch"):
        pytest.skip("no converter: pip install '.[export]'")
    case = Case(tmp_path_factory.mktemp("student"))
    python("-m", "ced_edge", "export", STUDENT, "--out", case.bundle)
    chosen = read_manifest(shared / "audio" / "esc10.csv", "dev")
    rows = [f"{clip.path},{';'.join(map(str, clip.labels or ()))}" for clip in chosen]
    case.data.write_text("\n".join(["filename,labels", *rows]) + "\n")
    model, weights = load_model(str(STUDENT)), STUDENT / "model.safetensors"
    evaluate(model, read_manifest(case.data)).reference(weights).write(case.folder)
    return case


def test_the_real_student(student: Case) -> None:
    """What is exported passes and four bits do not, in both formats, with the bounds that users get."""
    bundle, results = read_bundle(student.bundle), run_check(student, limits=DEFAULTS)
    assert len(results) == 4
    for r in results:
        assert r.mean_ap > 0.85
        assert r.broken == ()
    onnx_file, tflite_file = (student.bundle / f"tiny-int8.{format}" for format in ("onnx", "tflite"))
    float_onnx, float_tflite = (student.bundle / f"tiny-fp32.{format}" for format in ("onnx", "tflite"))
    for how in ({"weight_bits": 4}, {"activation_bits": 4}, None):
        if how:
            round_model(float_onnx, onnx_file, **how)
        else:
            python("-c", FOUR_BITS, float_tflite, tflite_file)
        path = onnx_file if how else tflite_file
        replace_file(bundle, path)
        bundle = read_bundle(student.bundle)
        (spoilt,) = (r for r in run_check(student, "int8", limits=DEFAULTS) if r.file == str(path))
        # On 80 clips the mAP of 4-bit weights may not fall at all, so the mAP alone would not catch them.
        assert any("noise" in what for what in spoilt.broken)


CONVERT = """
import sys; from pathlib import Path
from export.graph import ExportModel; from export.convert import to_tflite
from tiny_bundle import tiny_model
model = tiny_model()
model.outputlayer[1].bias.data[0] += float(sys.argv[2])
to_tflite(ExportModel(model, waveform=False), Path(sys.argv[1]), 32_000)
"""


@pytest.mark.skipif(not find_spec("litert_torch"), reason="no converter: pip install '.[export]'")
def test_litert_beside_onnx(own: Case) -> None:
    path = own.bundle / "24x2-fp32.tflite"
    python("-c", CONVERT, path, 0)
    bundle = with_file(read_bundle(own.bundle), path, "fp32")
    limits = {kind: dataclasses.replace(b, max_window_drop=1.0) for kind, b in LIMITS.items()}
    by_onnx, tflite = run_check(own, "fp32", stream=True, limits=limits)
    assert re.fullmatch(r"ai-edge-litert \d+\.\d+.*", tflite.runtime)
    assert (by_onnx.same_input, tflite.same_input, tflite.reference.clips) == (24, 8, 8)  # those of 2 s
    assert tflite.reference.max_error < 1e-4
    assert tflite.stream_difference == 0.0
    # The others against the .onnx, which gets the same repeated input.
    assert tflite.fp32 is not None
    assert (tflite.fp32.clips, tflite.broken) == (24, ())
    assert tflite.fp32.max_error < 1e-4
    # A logit that is off by the same amount in all clips does not change the mAP.
    python("-c", CONVERT, path, 12)
    replace_file(bundle, path)
    _, tflite = run_check(own, "fp32", limits=limits)
    assert any("probability error from fp32" in what for what in tflite.broken)
    # The fp32 file that it is compared with must be right itself, although it is not among the checked files.
    bundle, path = read_bundle(own.bundle), own.bundle / "24x2-fp32.onnx"
    export_onnx(path, tiny_model(seed=1), "mel", 2.0)
    replace_file(bundle, path)
    wanted = targets(read_bundle(own.bundle), format="tflite")
    with pytest.raises(
        CedEdgeError, match=r"24x2-fp32\.onnx on onnxruntime, which the others are compared with, is off by"
    ):
        check(wanted, read_reference(own.reference), read_manifest(own.data), limits, rounds=1, repeats=1)
