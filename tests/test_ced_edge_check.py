"""The accuracy check: it passes what is right, finds what is broken, and refuses a reference of something else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("onnx", reason="onnx spoils the model files of these tests")
import onnx
from check_case import (
    LIMITS,
    N_CLIPS,
    Case,
    permute_outputs,
    replace_file,
    run_check,
    shared_case,
    spoil,
    write_case,
)
from sklearn.metrics import average_precision_score

from ced_edge.audio.clips import Clip, read_manifest
from ced_edge.errors import InputError
from ced_edge.files import sha256_file
from ced_edge.frontend import StreamMel
from ced_edge.labels import labels
from ced_edge.proof.bounds import DEFAULTS
from ced_edge.proof.check import check, same_input
from ced_edge.proof.reference import read_reference
from ced_edge.proof.targets import targets
from ced_edge.proof.worker import _Served
from ced_edge.runtime.bundle import LABELS_NAME, Bundle, labels_text, read_bundle
from ced_edge.runtime.tagger import Tagger
from ced_edge.spec import SIZES


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return shared_case(tmp_path_factory.getbasetemp() / "case")


@pytest.fixture
def own(case: Case, tmp_path: Path) -> Case:
    return case.copy(tmp_path)


# What it finds.


def test_a_right_bundle_holds_all_bounds(case: Case) -> None:
    int8, fp32 = run_check(case, stream=True)
    assert (int8.kind, fp32.kind) == ("int8", "fp32")
    assert (int8.broken, fp32.broken) == ((), ())
    assert (int8.stream_difference, fp32.stream_difference) == (0.0, 0.0)
    assert fp32.reference.drop == 0.0
    assert fp32.reference.max_error < 1e-5 < int8.reference.max_error
    for r in (int8, fp32):
        assert r.fp32 is None
        assert (r.same_input, r.clips) == (24, 24)
        assert r.runtime.startswith("onnxruntime ")
        assert r.latency_ms > 0
        assert 20 < (r.memory_mb or 0) < 2_000
        assert r.size_mb == (case.bundle / Path(r.file).name).stat().st_size / 1e6


def test_figures_are_those_of_scikit_learn(own: Case) -> None:
    spoil(own, activation_bits=4)
    (result,) = run_check(own, "int8")
    clips, reference = read_manifest(own.data), read_reference(own.reference)
    tagger = Tagger(own.bundle, kind="int8")
    waves = [soundfile.read(clip.path, dtype="float32")[0] for clip in clips]
    probs = np.stack([tagger.predict(wave) for wave in waves])
    truth = np.zeros(probs.shape, bool)
    for row, clip in zip(truth, clips, strict=True):
        row[list(clip.labels or ())] = True
    present = np.flatnonzero(truth.any(axis=0))
    ap = {c: average_precision_score(truth[:, c], probs[:, c]) for c in present}
    assert result.mean_ap == pytest.approx(np.mean(list(ap.values())))
    assert result.reference.drop == pytest.approx(1.0 - result.mean_ap)
    worst = min(ap, key=lambda c: ap[c])
    name, drop = result.reference.worst(1)[0]
    assert (name, drop) == (labels()[worst].name, pytest.approx(1.0 - ap[worst]))
    error = np.abs(probs - reference.probs)
    assert result.reference.max_error == pytest.approx(error.max())
    assert result.reference.mean_error == pytest.approx(error.mean())
    deviation = reference.probs - reference.probs.mean(axis=0)
    assert result.reference.noise == pytest.approx(np.sqrt((error**2).mean() / (deviation**2).mean()), rel=1e-4)
    assert result.reference.top1 == np.mean(probs.argmax(axis=1) == reference.probs.argmax(axis=1))


@pytest.mark.parametrize("bits", [{"weight_bits": 4}, {"activation_bits": 4}, {"weight_bits": 4, "activation_bits": 4}])
def test_a_broken_quantisation_is_caught(own: Case, bits: dict[str, int]) -> None:
    spoil(own, **bits)
    int8, fp32 = run_check(own)
    assert any("noise" in what for what in int8.broken)
    assert any("mAP drop" in what for what in int8.broken) == ("activation_bits" in bits)
    assert fp32.broken == ()


def test_permuted_outputs_are_caught(own: Case) -> None:
    bundle = read_bundle(own.bundle)
    permute_outputs(own.bundle / "24x2-fp32.onnx", own.bundle / "24x2-int8.onnx")
    replace_file(bundle, own.bundle / "24x2-int8.onnx")
    (int8,) = run_check(own, "int8")
    assert int8.reference.top1 == 0
    assert len([what for what in int8.broken if "mAP drop" in what or "top-1" in what]) == 2


def test_permuted_labels_are_refused(own: Case) -> None:
    bundle = read_bundle(own.bundle)
    first, *rest = labels_text().splitlines(keepends=True)
    (own.bundle / LABELS_NAME).write_text("".join([*rest, first]), encoding="utf-8")
    dataclasses.replace(bundle, labels_sha256=sha256_file(own.bundle / LABELS_NAME)).write()
    with pytest.raises(InputError, match=r"labels\.txt"):
        run_check(own)


def test_permuted_labels_in_a_model_file_are_refused(own: Case) -> None:
    bundle, path = read_bundle(own.bundle), own.bundle / "24x2-int8.onnx"
    first, *rest = [label.name for label in labels()]
    for names, refused in (([first, *rest], False), ([*rest, first], True)):
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {"labels": json.dumps(names)})
        onnx.save(model, path)
        replace_file(bundle, path)
        with pytest.raises(InputError, match="carries other labels") if refused else contextlib.nullcontext():
            run_check(own, "int8")


def test_a_broken_stream_is_caught(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose shared log-mel frames are not those of the window on its own."""
    served, wave = _Served(), np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    served.load(str(case.bundle), "24x2-fp32.onnx", "onnxruntime", 1)
    assert served.stream_difference(wave, [320, 5_000, 33]) == 0
    right = StreamMel.log_mel
    monkeypatch.setattr(StreamMel, "log_mel", lambda self, x, start: right(self, x, start) - 6 * (start > 0))
    assert served.stream_difference(wave, [320, 5_000, 33]) > 1e-3


# Windows that the checkpoint did not have.


def test_which_clips_reach_the_model_as_they_reached_the_checkpoint() -> None:
    bundle = Bundle(Path(), SIZES["tiny"], 2.0, "mel", (), "", "")  # the checkpoint takes 10 s at once
    s = 16_000
    found = [[same_input(bundle, fixed, n) for n in (1, s, 2 * s, 2 * s + 1, 4 * s)] for fixed in (False, True)]
    assert found == [[True, True, True, False, False], [False, False, True, False, False]]
    whole = dataclasses.replace(bundle, window_s=10.0)
    found = [[same_input(whole, fixed, n) for n in (5 * s, 10 * s, 20 * s, 23 * s)] for fixed in (False, True)]
    assert found == [[True, True, True, True], [False, True, True, False]]


def test_a_fixed_window_is_compared_with_the_fp32_file(tmp_path: Path) -> None:
    """Padding a clip may change its predictions; the quantisation of the padded clip may not."""
    case = write_case(tmp_path, free=False)
    int8, fp32 = run_check(
        case, limits={kind: dataclasses.replace(b, max_window_drop=1.0) for kind, b in LIMITS.items()}
    )
    assert (fp32.same_input, fp32.clips) == (8, 24)  # of 2 s
    assert (int8.broken, fp32.broken) == ((), ())
    assert fp32.reference.clips == 8
    assert fp32.reference.max_error < 1e-5
    assert int8.fp32 is not None
    assert int8.fp32.clips == 24
    spoil(case, weight_bits=4)
    for kind in (None, "int8"):  # whether or not the fp32 file is checked too
        int8 = run_check(case, kind)[0]
        assert any("noise from fp32" in what for what in int8.broken)


# What it refuses.


def test_a_reference_of_other_weights(own: Case) -> None:
    bundle = read_bundle(own.bundle)
    dataclasses.replace(bundle, checkpoint_sha256="f" * 64).write()
    with pytest.raises(InputError, match=r"of other weights .* than those that .*bundle comes from \(ffff"):
        run_check(own)


def test_a_reference_of_other_data(own: Case) -> None:
    text = own.data.read_text()
    header, first, *rest = text.splitlines()

    def refused(lines: list[str], message: str) -> None:
        own.data.write_text("\n".join([header, *lines]) + "\n")
        with pytest.raises(InputError, match=f"the reference is of other data: {message}"):
            run_check(own)

    refused(rest, r"1 of its clips are missing, such as 00\.wav")
    soundfile.write(own.folder / "more.wav", np.zeros(16_000), 16_000)
    refused([first, *rest, "more.wav,1"], r"1 clips are not in it, such as more\.wav; give the --data and --split")
    refused(["00.wav,9", *rest], "a label or a file has changed")
    own.data.write_text(text)
    soundfile.write(own.folder / "03.wav", np.zeros(16_000), 16_000)
    refused([first, *rest], "a label or a file has changed")


def test_clips_that_the_reference_could_not_read_either_are_left_out(
    own: Case, caplog: pytest.LogCaptureFixture
) -> None:
    (own.folder / "broken.wav").write_text("no sound")
    own.data.write_text(own.data.read_text() + "broken.wav,1\ngone.wav,2\n")
    with pytest.raises(InputError, match=r"2 clips cannot be read, 0 when `.*` ran; such as .*broken\.wav"):
        run_check(own)
    reference = read_reference(own.reference)
    dataclasses.replace(reference, metrics={**reference.metrics, "rejected": 2}).write(own.folder)
    assert {r.clips for r in run_check(own)} == {N_CLIPS}
    assert f"2 of {N_CLIPS + 2} clips left out" in caplog.text


def test_broken_audio_is_named(own: Case) -> None:
    whole = (own.folder / "05.wav").read_bytes()
    soundfile.write(own.folder / "05.wav", np.full(16_000, np.nan, np.float32), 16_000, "FLOAT")
    with pytest.raises(InputError, match=r"05\.wav: unusable samples: the sample at 0\.000 s .* is NaN"):
        run_check(own)
    for content, reason in ((b"", "empty file"), (b"no sound", "not audio"), (whole[:44], "no samples")):
        (own.folder / "05.wav").write_bytes(content)
        with pytest.raises(InputError, match=rf"05\.wav: {reason}"):
            run_check(own)
    (own.folder / "05.wav").unlink()
    with pytest.raises(InputError, match=r"05\.wav: no such file"):
        run_check(own)


def test_a_file_that_nothing_here_runs_is_no_pass(case: Case) -> None:
    wanted = [dataclasses.replace(t, runtime="") for t in targets(read_bundle(case.bundle))]
    clips: list[Clip] = read_manifest(case.data)
    with pytest.raises(InputError, match=r"nothing here runs 24x2-int8\.onnx, .*: pip install onnxruntime, or leave"):
        check(wanted, read_reference(case.reference), clips, DEFAULTS)


def test_a_model_that_fails_is_named(own: Case) -> None:
    bundle, path = read_bundle(own.bundle), own.bundle / "24x2-int8.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    replace_file(bundle, path)
    with pytest.raises(InputError, match=r"24x2-int8\.onnx is not a usable ONNX model"):
        run_check(own)
