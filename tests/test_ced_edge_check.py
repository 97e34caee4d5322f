"""The accuracy check: it passes what is right, finds what is broken, and refuses a reference of something else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("onnx", reason="onnx spoils the model files of these tests")
import onnx
from check_case import N_CLIPS, Case, permute_outputs, replace_file, round_model, shared_case, write_case
from sklearn.metrics import average_precision_score
from tiny_bundle import export_onnx, tiny_model, with_file

from ced_edge.audio.clips import Clip, read_manifest
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
from ced_edge.frontend import StreamMel
from ced_edge.labels import labels
from ced_edge.network.checkpoint import load_model
from ced_edge.proof.bounds import DEFAULTS, Bounds, bounds, read_bounds
from ced_edge.proof.check import Result, broken, check, same_input
from ced_edge.proof.compare import Comparison, compare
from ced_edge.proof.reference import read_reference
from ced_edge.proof.targets import targets
from ced_edge.proof.worker import _Served
from ced_edge.runtime.bundle import LABELS_NAME, Bundle, labels_text, read_bundle
from ced_edge.runtime.tagger import Tagger
from ced_edge.spec import SIZES
from distill.evaluation.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "students" / "tiny-esc10-pool"
QUICK = {"rounds": 1, "repeats": 1}
# Clips change little in the answers of random weights, so eight bits are more noise there.
LIMITS = {kind: dataclasses.replace(b, max_noise=max(b.max_noise, 0.2)) for kind, b in DEFAULTS.items()}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return shared_case(tmp_path_factory.getbasetemp() / "case")


@pytest.fixture
def own(case: Case, tmp_path: Path) -> Case:
    return case.copy(tmp_path)


def run(case: Case, kind: str | None = None, stream: bool = False, limits: dict[str, Bounds] = LIMITS) -> list[Result]:
    wanted = targets(read_bundle(case.bundle), kind=kind)
    clips, reference = read_manifest(case.data), read_reference(case.reference)
    return check(wanted, reference, clips, limits, stream=stream, **QUICK)


def spoil(case: Case, name: str = "24x2-int8.onnx", **bits: int) -> None:
    """Write the int8 file again, with fewer bits."""
    bundle = read_bundle(case.bundle)
    round_model(case.bundle / "24x2-fp32.onnx", case.bundle / name, **bits)
    replace_file(bundle, case.bundle / name)


# What it finds.


def test_a_right_bundle_holds_all_bounds(case: Case) -> None:
    int8, fp32 = run(case, stream=True)
    assert (int8.kind, fp32.kind) == ("int8", "fp32")
    assert (int8.broken, fp32.broken) == ((), ())
    assert (int8.stream_difference, fp32.stream_difference) == (0.0, 0.0)
    assert fp32.reference.drop == 0.0
    assert fp32.reference.max_error < 1e-5 < int8.reference.max_error
    for r in (int8, fp32):
        assert r.fp32 is None
        assert (r.alike, r.clips) == (24, 24)
        assert r.runtime.startswith("onnxruntime ")
        assert r.latency_ms > 0
        assert 20 < (r.memory_mb or 0) < 2_000
        assert r.size_mb == (case.bundle / Path(r.file).name).stat().st_size / 1e6


def test_figures_are_those_of_scikit_learn(own: Case) -> None:
    spoil(own, activation_bits=4)
    (found,) = run(own, "int8")
    clips, reference = read_manifest(own.data), read_reference(own.reference)
    tagger = Tagger(own.bundle, kind="int8")
    waves = [soundfile.read(clip.path, dtype="float32")[0] for clip in clips]
    probs = np.stack([tagger.predict(wave) for wave in waves])
    truth = np.zeros(probs.shape, bool)
    for row, clip in zip(truth, clips, strict=True):
        row[list(clip.labels or ())] = True
    present = np.flatnonzero(truth.any(axis=0))
    ap = {c: average_precision_score(truth[:, c], probs[:, c]) for c in present}
    assert found.mean_ap == pytest.approx(np.mean(list(ap.values())))
    assert found.reference.drop == pytest.approx(1.0 - found.mean_ap)
    worst = min(ap, key=lambda c: ap[c])
    name, drop = found.reference.worst(1)[0]
    assert (name, drop) == (labels()[worst].name, pytest.approx(1.0 - ap[worst]))
    error = np.abs(probs - reference.probs)
    assert found.reference.max_error == pytest.approx(error.max())
    assert found.reference.mean_error == pytest.approx(error.mean())
    deviation = reference.probs - reference.probs.mean(axis=0)
    assert found.reference.noise == pytest.approx(np.sqrt((error**2).mean() / (deviation**2).mean()), rel=1e-4)
    assert found.reference.top1 == np.mean(probs.argmax(axis=1) == reference.probs.argmax(axis=1))


@pytest.mark.parametrize("bits", [{"weight_bits": 4}, {"activation_bits": 4}, {"weight_bits": 4, "activation_bits": 4}])
def test_a_broken_quantisation_is_caught(own: Case, bits: dict[str, int]) -> None:
    spoil(own, **bits)
    int8, fp32 = run(own)
    assert any("noise" in what for what in int8.broken)
    assert any("mAP drop" in what for what in int8.broken) == ("activation_bits" in bits)
    assert fp32.broken == ()


def test_permuted_outputs_are_caught(own: Case) -> None:
    bundle = read_bundle(own.bundle)
    permute_outputs(own.bundle / "24x2-fp32.onnx", own.bundle / "24x2-int8.onnx")
    replace_file(bundle, own.bundle / "24x2-int8.onnx")
    (int8,) = run(own, "int8")
    assert int8.reference.top1 == 0
    assert len([what for what in int8.broken if "mAP drop" in what or "top-1" in what]) == 2


def test_permuted_labels_are_refused(own: Case) -> None:
    bundle = read_bundle(own.bundle)
    first, *rest = labels_text().splitlines(keepends=True)
    (own.bundle / LABELS_NAME).write_text("".join([*rest, first]), encoding="utf-8")
    dataclasses.replace(bundle, labels_sha256=sha256_file(own.bundle / LABELS_NAME)).write()
    with pytest.raises(InputError, match=r"labels\.txt"):
        run(own)


def test_permuted_labels_in_a_model_file_are_refused(own: Case) -> None:
    bundle, path = read_bundle(own.bundle), own.bundle / "24x2-int8.onnx"
    first, *rest = [label.name for label in labels()]
    for names, refused in (([first, *rest], False), ([*rest, first], True)):
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {"labels": json.dumps(names)})
        onnx.save(model, path)
        replace_file(bundle, path)
        with pytest.raises(InputError, match="carries other labels") if refused else contextlib.nullcontext():
            run(own, "int8")


def test_a_broken_stream_is_caught(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose shared log-mel frames are not those of the window on its own."""
    served, wave = _Served(), np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    served.load(str(case.bundle), "24x2-fp32.onnx", "onnxruntime", 1)
    assert served.stream_difference(wave, [320, 5_000, 33]) == 0
    right = StreamMel.log_mel
    monkeypatch.setattr(StreamMel, "log_mel", lambda self, x, start: right(self, x, start) - 6 * (start > 0))
    assert served.stream_difference(wave, [320, 5_000, 33]) > 1e-3


# The real student, where its clips are.


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
    """The student of the repository as `ced-edge export` writes it, and every second ESC-10 dev clip."""
    if not (STUDENT / "model.safetensors").exists():
        pytest.skip(f"no student at {STUDENT}")
    if not find_spec("litert_torch"):
        pytest.skip("no converter: pip install '.[export]'")
    case = Case(tmp_path_factory.mktemp("student"))
    python("-m", "ced_edge", "export", STUDENT, "--out", case.bundle)
    chosen = read_manifest(shared / "audio" / "esc10.csv", "dev")[::2]
    rows = [f"{clip.path},{';'.join(map(str, clip.labels or ()))}" for clip in chosen]
    case.data.write_text("\n".join(["filename,labels", *rows]) + "\n")
    model, weights = load_model(str(STUDENT)), STUDENT / "model.safetensors"
    evaluate(model, read_manifest(case.data)).reference(weights).write(case.folder)
    return case


def test_the_real_student(student: Case) -> None:
    """What is exported passes and four bits do not, in both formats, with the bounds that users get."""
    bundle, results = read_bundle(student.bundle), run(student, limits=DEFAULTS)
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
        (spoilt,) = (r for r in run(student, "int8", limits=DEFAULTS) if r.file == str(path))
        # On so few clips the mAP of weights at four bits may not fall at all: it takes more than the mAP to tell.
        assert any("noise" in what for what in spoilt.broken)


# Windows that the checkpoint did not hear.


def test_which_clips_are_heard_alike() -> None:
    bundle = Bundle(Path(), SIZES["tiny"], 2.0, "mel", (), "", "")  # the checkpoint hears 10 s at once
    s = 16_000
    found = [[same_input(bundle, fixed, n) for n in (1, s, 2 * s, 2 * s + 1, 4 * s)] for fixed in (False, True)]
    assert found == [[True, True, True, False, False], [False, False, True, False, False]]
    whole = dataclasses.replace(bundle, window_s=10.0)
    found = [[same_input(whole, fixed, n) for n in (5 * s, 10 * s, 20 * s, 23 * s)] for fixed in (False, True)]
    assert found == [[True, True, True, True], [False, True, True, False]]


def test_a_fixed_window_is_held_to_fp32_beside_it(tmp_path: Path) -> None:
    """Clips that must be filled up may answer otherwise than the checkpoint; the quantisation may not."""
    case = write_case(tmp_path, free=False)
    int8, fp32 = run(case, limits={kind: dataclasses.replace(b, max_window_drop=1.0) for kind, b in LIMITS.items()})
    assert (fp32.alike, fp32.clips) == (8, 24)  # of 2 s
    assert (int8.broken, fp32.broken) == ((), ())
    assert fp32.reference.clips == 8
    assert fp32.reference.max_error < 1e-5
    assert int8.fp32 is not None
    assert int8.fp32.clips == 24
    spoil(case, weight_bits=4)
    for kind in (None, "int8"):  # whether or not the file that it is held to was asked for
        int8 = run(case, kind)[0]
        assert any("noise from fp32" in what for what in int8.broken)


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
    by_onnx, tflite = run(own, "fp32", stream=True, limits=limits)
    assert re.fullmatch(r"ai-edge-litert \d+\.\d+.*", tflite.runtime)
    assert (by_onnx.alike, tflite.alike, tflite.reference.clips) == (24, 8, 8)  # those of 2 s
    assert tflite.reference.max_error < 1e-4
    assert tflite.stream_difference == 0.0
    # The others against the .onnx, which hears them repeated too.
    assert tflite.fp32 is not None
    assert (tflite.fp32.clips, tflite.broken) == (24, ())
    assert tflite.fp32.max_error < 1e-4
    # A logit that is off for all clips alike does not move the mAP.
    python("-c", CONVERT, path, 12)
    replace_file(bundle, path)
    _, tflite = run(own, "fp32", limits=limits)
    assert any("probability error from fp32" in what for what in tflite.broken)
    # Nor may what it is held to be wrong itself, whether or not that was asked for.
    bundle, path = read_bundle(own.bundle), own.bundle / "24x2-fp32.onnx"
    export_onnx(path, tiny_model(seed=1), "mel", 2.0)
    replace_file(bundle, path)
    wanted = targets(read_bundle(own.bundle), format="tflite")
    with pytest.raises(CedEdgeError, match=r"24x2-fp32\.onnx on onnxruntime, which the others are held to, is off by"):
        check(wanted, read_reference(own.reference), read_manifest(own.data), limits, **QUICK)


# Bounds.


def comparison(drop: float = 0.0, class_drop: float = 0.0, clips: int = 9, error: float = 0.0) -> Comparison:
    drops = np.full(527, np.nan)
    drops[[3, 5]] = -0.1, class_drop
    return Comparison(drop, drops, clips, *((error, error / 2, 1.5 * error, 1 - error) if clips else (math.nan,) * 4))


def result(reference: Comparison, fp32: Comparison | None = None, alike: int = 9) -> Result:
    return Result("b/x.onnx", "int8", "r 1", 0.5, reference, fp32, 9, alike, None, 20.0, 0.1, 6.0, 90.0)


TIGHT = Bounds(0.01, 0.05, 0.1, 0.2, 0.95, 0.02, 30, 7, 100)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (result(comparison()), []),
        (result(comparison(0.01, 0.05, error=0.04)), []),
        (result(comparison(0.02)), ["mAP drop 0.02 is over 0.01"]),
        (result(comparison(0.0, 0.06)), [f"drop of {labels()[5].name} 0.06 is over 0.05"]),
        (
            result(comparison(error=0.2)),
            [
                "probability error 0.2 is over 0.1",
                "noise 0.3 is over 0.2",
                "top-1 agreement 0.800 is below 0.95",
            ],
        ),
        (result(comparison(math.nan)), ["mAP drop nan is over 0.01"]),
        # Of clips heard otherwise neither classes nor probabilities are held to the reference.
        (result(comparison(0.03, 0.5, clips=0), alike=0), []),
        (result(comparison(0.04), alike=0), ["mAP drop 0.04 is over 0.03"]),
        (result(comparison(0.03), comparison(0.02), alike=0), ["mAP drop below fp32 0.02 is over 0.01"]),
        (dataclasses.replace(result(comparison()), stream_difference=0.0), []),
        (dataclasses.replace(result(comparison()), stream_difference=1e-9), ["difference in a stream 1e-09 is over 0"]),
        (dataclasses.replace(result(comparison()), latency_ms=31.0), ["latency in ms 31 is over 30"]),
        (dataclasses.replace(result(comparison()), size_mb=7.5), ["size in MB 7.5 is over 7"]),
        (dataclasses.replace(result(comparison()), memory_mb=101.0), ["memory in MB 1e+02 is over 100"]),
        (dataclasses.replace(result(comparison()), memory_mb=None), ["memory cannot be measured on this system"]),
    ],
)
def test_broken_bounds(found: Result, told: list[str]) -> None:
    assert broken(found, TIGHT) == told


def test_compare_by_hand() -> None:
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], bool)
    base = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]], np.float32)
    probs = np.array([[0.9, 0.1, 0.0], [0.8, 0.7, 0.0], [0.7, 0.3, 0.0]], np.float32)
    everywhere, known = np.ones(3, bool), np.array([True, True, True])
    c = compare(truth, probs, base, known, everywhere)
    # Class 0 now ranks clips 0, 1, 2: precision 1 and 2/3 at its two hits.
    assert c.drop == pytest.approx((1 - 5 / 6) / 2)
    np.testing.assert_allclose(c.class_drops, [1 / 6, 0, np.nan])
    assert (c.max_error, c.mean_error) == (pytest.approx(0.6), pytest.approx(0.7 / 9))
    assert c.top1 == pytest.approx(2 / 3)
    c = compare(truth, probs, base, np.array([True, False, True]), np.array([True, False, False]))
    assert (c.drop, c.clips, c.max_error, c.top1) == (0, 1, 0, 1)
    c = compare(truth, probs, base, known, ~everywhere)
    assert (c.clips, math.isnan(c.max_error), math.isnan(c.top1)) == (0, True, True)
    assert c.to_dict()["max_error"] is None


def test_bounds_come_from_flags_then_kinds_then_the_table(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.ced-edge.check]\nmax_latency_ms = 40\nmax_drop = 0.1\n[tool.ced-edge.check.int8]\nmax_drop = 0.2\n"
    )
    found = read_bounds(tmp_path, {"max_latency_ms": None, "max_error": 0.5})
    assert {k: (b.max_drop, b.max_latency_ms, b.max_error) for k, b in found.items()} == {
        "fp32": (0.1, 40, 0.5),
        "int8": (0.2, 40, 0.5),
        "int8-static": (0.1, 40, 0.5),
    }
    assert found["int8"].max_noise == DEFAULTS["int8"].max_noise
    assert read_bounds(tmp_path, {"max_drop": math.inf})["int8"].max_drop == math.inf
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert read_bounds(tmp_path, {}) == DEFAULTS == read_bounds(tmp_path / "nowhere", {}) == bounds({}, {})


def test_all_problems_of_the_bounds_are_told(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(
        "[tool.ced-edge.check]\nmax_drops = 1\nmax_error = 'low'\nmax_size_mb = true\nint8 = 3\n"
        "[tool.ced-edge.check.fp32]\nspeed = 1\n"
    )
    with pytest.raises(InputError) as e:
        read_bounds(tmp_path, {})
    for told in (str(path), "unknown key max_drops", "there are max_drop, ", "max_error must be a number, not 'low'"):
        assert told in str(e.value)
    for told in ("max_size_mb must be a number, not True", "int8 must be a table, not 3", "unknown key fp32.speed"):
        assert told in str(e.value)
    with pytest.raises(InputError, match="max_drop must be a number of at least 0, not -1") as e:
        bounds({"int8": {"min_top1": 2}}, {"max_drop": -1.0, "max_error": math.nan})
    assert "max_error must be a number of at least 0, not nan" in str(e.value)
    assert "min_top1 must be at most 1, not 2" in str(e.value)
    assert str(e.value).count("max_drop") == 1
    path.write_text("[tool]\nced-edge = 1\n")
    with pytest.raises(InputError, match="must be a table"):
        read_bounds(tmp_path, {})


# What it refuses.


def test_a_reference_of_other_weights(own: Case) -> None:
    bundle = read_bundle(own.bundle)
    dataclasses.replace(bundle, checkpoint_sha256="f" * 64).write()
    with pytest.raises(InputError, match=r"of other weights .* than those that .*bundle comes from \(ffff"):
        run(own)


def test_a_reference_of_other_data(own: Case) -> None:
    text = own.data.read_text()
    header, first, *rest = text.splitlines()

    def refused(lines: list[str], told: str) -> None:
        own.data.write_text("\n".join([header, *lines]) + "\n")
        with pytest.raises(InputError, match=f"the reference is of other data: {told}"):
            run(own)

    refused(rest, r"1 of its clips are missing, such as 00\.wav")
    soundfile.write(own.folder / "more.wav", np.zeros(16_000), 16_000)
    refused([first, *rest, "more.wav,1"], r"1 clips it does not know, such as more\.wav; give the --data and --split")
    refused(["00.wav,9", *rest], "a label or a file has changed")
    own.data.write_text(text)
    soundfile.write(own.folder / "03.wav", np.zeros(16_000), 16_000)
    refused([first, *rest], "a label or a file has changed")


def test_what_the_reference_could_not_hear_either_is_left_out(own: Case, caplog: pytest.LogCaptureFixture) -> None:
    (own.folder / "broken.wav").write_text("no sound")
    own.data.write_text(own.data.read_text() + "broken.wav,1\ngone.wav,2\n")
    with pytest.raises(InputError, match=r"2 clips cannot be read, 0 when `.*` ran; such as .*broken\.wav"):
        run(own)
    reference = read_reference(own.reference)
    dataclasses.replace(reference, metrics={**reference.metrics, "rejected": 2}).write(own.folder)
    assert {r.clips for r in run(own)} == {N_CLIPS}
    assert f"2 of {N_CLIPS + 2} clips left out" in caplog.text


def test_broken_audio_is_named(own: Case) -> None:
    whole = (own.folder / "05.wav").read_bytes()
    soundfile.write(own.folder / "05.wav", np.full(16_000, np.nan, np.float32), 16_000, "FLOAT")
    with pytest.raises(InputError, match=r"05\.wav: NaN or infinite samples"):
        run(own)
    for content, told in ((b"", "empty file"), (b"no sound", "not audio"), (whole[:44], "no samples")):
        (own.folder / "05.wav").write_bytes(content)
        with pytest.raises(InputError, match=rf"05\.wav: {told}"):
            run(own)
    (own.folder / "05.wav").unlink()
    with pytest.raises(InputError, match=r"05\.wav: no such file"):
        run(own)


def test_a_file_that_nothing_here_runs_is_no_pass(case: Case) -> None:
    wanted = [dataclasses.replace(t, runtime="") for t in targets(read_bundle(case.bundle))]
    clips: list[Clip] = read_manifest(case.data)
    with pytest.raises(InputError, match=r"nothing here runs 24x2-int8\.onnx: pip install onnxruntime, or"):
        check(wanted, read_reference(case.reference), clips, DEFAULTS)


def test_a_model_that_fails_is_named(own: Case) -> None:
    bundle, path = read_bundle(own.bundle), own.bundle / "24x2-int8.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    replace_file(bundle, path)
    with pytest.raises(InputError, match=r"24x2-int8\.onnx is not a usable ONNX model"):
        run(own)
