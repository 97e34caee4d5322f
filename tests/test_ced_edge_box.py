"""The bundle in the package: it is the student of the repository, it is small, and it works without a flag."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import Call

from ced_edge import Tagger
from ced_edge.arrays import Float32
from ced_edge.audio.clips import read_manifest
from ced_edge.files import sha256_file
from ced_edge.network.ced import predict
from ced_edge.network.checkpoint import load_model
from ced_edge.proof.bounds import DEFAULTS
from ced_edge.proof.check import check
from ced_edge.proof.reference import read_reference
from ced_edge.proof.targets import targets
from ced_edge.runtime.bundle import FORMATS, PACKAGED, read_bundle

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "students" / "tiny" / "model.safetensors"
MAX_BYTES = 14_000_000
"""The wheel is to stay below 15 MB, and the code takes about 0.3 MB."""


def sounds() -> list[Float32]:
    """Ten seconds each: noise, tones, clicks, a sweep, and silence."""
    rng, t = np.random.default_rng(0), np.arange(160_000) / 16_000
    waves = [rng.normal(0, 0.1, len(t)), 0.3 * np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 4 * t) > 0.999, 0 * t]
    waves += [0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t), 0.5 * rng.normal(0, 1, len(t)) * (np.sin(20 * t) > 0)]
    return [np.clip(w, -1, 1).astype(np.float32) for w in waves]


def test_it_is_the_student_of_the_repository() -> None:
    bundle = read_bundle(PACKAGED)
    assert bundle.checkpoint_sha256 == sha256_file(STUDENT), "run runs/student_box.py: the student has changed"
    assert {file.kind for file in bundle.files} == {"int8"}
    assert {file.format for file in bundle.files} == set(FORMATS)
    assert bundle.window_s == 10.0
    assert bundle.thresholds


@pytest.mark.parametrize("format", FORMATS)
def test_its_predictions_are_the_students(format: str) -> None:
    """Within the bounds that export has; the weights of the student are stored in 16 bits."""
    waves = sounds()
    model = load_model(STUDENT)
    with torch.inference_mode():
        expected = np.concatenate([predict(model, torch.from_numpy(wave[None])).numpy() for wave in waves])
    tagger = Tagger(format=format)
    found = np.stack([tagger.predict_window(wave) for wave in waves])
    bounds = DEFAULTS["int8"]
    assert np.abs(found - expected).max() <= bounds.max_error
    assert np.sqrt(np.mean((found - expected) ** 2)) <= 0.01


@pytest.mark.slow
def test_the_script_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "runs"))
    from student_box import box

    again = box(STUDENT, tmp_path / "box")
    for format in FORMATS:
        ours, theirs = Tagger(format=format), Tagger(again, format=format)
        for wave in sounds():
            np.testing.assert_allclose(ours.predict_window(wave), theirs.predict_window(wave), atol=1e-6)


def test_it_is_small(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "box.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in PACKAGED.iterdir():
            archive.write(file, file.name)
    assert (tmp_path / "box.zip").stat().st_size < MAX_BYTES


def test_tag_works_right_after_installation(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    soundfile.write("noise.wav", sounds()[0], 16_000)
    code, out, err = call("tag", "noise.wav")
    assert (code, err) == (0, f"ced-edge: using the bundle of this package, {PACKAGED}\n")
    assert out.startswith("noise.wav")
    assert call("info")[0] == 0
    # A run of the user's own comes first.
    shutil.copytree(PACKAGED, "runs/mine/bundle")
    assert call("tag", "noise.wav")[1:] == (out, "ced-edge: using the bundle runs/mine/bundle\n")


def test_it_is_held_to_the_reference_of_the_student(shared: Path) -> None:
    """`ced-edge check` on the dev clips of ESC-10, with the bounds that users get."""
    clips = read_manifest(shared / "audio" / "esc10.csv", "dev")
    reference = read_reference(STUDENT.parent)
    assert reference.weights_hash == sha256_file(STUDENT)
    results = check(targets(read_bundle(PACKAGED)), reference, clips, DEFAULTS, rounds=1, repeats=1)
    assert {Path(r.file).name for r in results} == {"tiny-int8.onnx", "tiny-int8.tflite"}
    for r in results:
        assert r.broken == ()
        assert r.mean_ap > 0.93
