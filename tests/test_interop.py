"""Other programs take our files unchanged and answer as our own runtime does. `make interop` builds their homes."""

from __future__ import annotations

import json
import os
import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ced_edge.frontend import hann_window, log_mel
from ced_edge.labels import labels
from ced_edge.runtime.backends import load_backend
from ced_edge.runtime.bundle import read_bundle
from ced_edge.spec import FrontendSpec
from distill.demo.synth import synthesise

ROOT = Path(__file__).resolve().parents[1]
HOMES = ROOT / ".venv" / "interop"
STUDENT = ROOT / "students" / "tiny"
SPEC = FrontendSpec()
SECONDS = (10.0, 10.0, 10.0)
SHORT_SECONDS = 2.5

Float32 = NDArray[np.float32]

# The first test exports the bundles.
pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, clips: dict[Path, Float32]) -> Path:
    """A folder with the student as `waveform`, `mel` and `per-tensor` bundle; CED_EDGE_BUNDLES names one there is."""
    if "CED_EDGE_BUNDLES" in os.environ:
        return Path(os.environ["CED_EDGE_BUNDLES"])
    export = pytest.importorskip("export.bundle", reason="the export extra writes the files")
    folder = tmp_path_factory.mktemp("bundles")
    every = {"kinds": ("fp32", "int8", "int8-static"), "calibration": next(iter(clips)).parent}
    configs = {
        "waveform": export.ExportConfig(**every),
        "mel": export.ExportConfig(formats=("onnx",), input="mel"),
        "per-tensor": export.ExportConfig(formats=("tflite",), per_channel=False, **every),
    }
    for name, config in configs.items():
        export.export_bundle(STUDENT, folder / name, config)
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Float32]:
    """16-bit wav files of synthesised sounds, and their samples; the last one is shorter than a window."""
    folder = tmp_path_factory.mktemp("clips")
    found = {}
    for i, seconds in enumerate((*SECONDS, SHORT_SECONDS)):
        samples = (np.clip(synthesise(i, 1, seconds)[0], -1, 1) * 32767).astype("<i2")
        with wave.open(str(folder / f"{i}.wav"), "wb") as f:
            f.setparams((1, 2, SPEC.rate_hz, 0, "NONE", ""))
            f.writeframes(samples.tobytes())
        found[folder / f"{i}.wav"] = samples.astype(np.float32) / 32768
    return found


def model(bundles: Path, name: str, kind: str, format: str) -> Path:
    bundle = read_bundle(bundles / name)
    return bundle.path(bundle.file(kind=kind, format=format))


def run(client: str, script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    home = HOMES / client
    if not (home / "ready").exists():
        pytest.skip(f"{client} is not installed in {home}: make interop")
    program = ["node"] if script.endswith(".mjs") else [str(home / "bin" / "python")]
    command = [*program, str(ROOT / "interop" / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=500)


def predict_with(client: str, script: str, file: Path, clips: list[Path]) -> Float32:
    """What a client answers, (clips, classes)."""
    done = run(client, script, file, *clips)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, float]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(clips)
    return np.array([[answer[label.name] for label in labels()] for answer in answers], np.float32)


def ours(file: Path, inputs: list[Float32]) -> Float32:
    backend = load_backend(file)
    return np.concatenate([backend.run(x[None])[0] for x in inputs])


def top5(probs: Float32) -> list[list[int]]:
    return np.argsort(-probs, axis=1, kind="stable")[:, :5].tolist()


def assert_same(theirs: Float32, expected: Float32, tolerance: float) -> None:
    assert np.abs(theirs - expected).max() <= tolerance
    if tolerance <= 1e-3:
        assert top5(theirs) == top5(expected)
    for five, ours_five in zip(top5(theirs), top5(expected), strict=True):
        assert five[0] == ours_five[0]
        assert len(set(five) & set(ours_five)) >= 4  # the fifth and the sixth may be that near to each other


@pytest.mark.parametrize("kind", ["fp32", "int8", "int8-static"])
def test_mediapipe(bundles: Path, clips: dict[Path, Float32], kind: str) -> None:
    """MediaPipe reads rate and window from the metadata and the names from the packed labels."""
    file, whole = model(bundles, "waveform", kind, "tflite"), list(clips)[: len(SECONDS)]
    theirs = predict_with("mediapipe", "mediapipe_client.py", file, whole)
    assert_same(theirs, ours(file, [clips[c] for c in whole]), 1e-3)


@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-5), ("int8", 1e-2), ("int8-static", 0.03)])
@pytest.mark.parametrize("client", ["tensorflow", "tflite-runtime"])
def test_tflite(bundles: Path, clips: dict[Path, Float32], client: str, kind: str, tolerance: float) -> None:
    file = model(bundles, "waveform", kind, "tflite")
    if client == "tflite-runtime" and kind != "fp32":
        # It knows no weights with a scale per channel: it must say so, and not answer nonsense.
        done = run(client, "tflite_client.py", file, *clips)
        assert done.returncode != 0
        assert "'FULLY_CONNECTED' version '12'" in done.stderr
        file = model(bundles, "per-tensor", kind, "tflite")
    window = read_bundle(bundles / "waveform").window_samples
    theirs = predict_with(client, "tflite_client.py", file, list(clips))
    # int8: another release of the kernels may round an activation to the other side.
    assert_same(theirs, ours(file, [np.resize(x, window) for x in clips.values()]), tolerance)


@pytest.mark.parametrize("client", ["tensorflow", "tflite-runtime"])
def test_our_own_runtime_finds_them(bundles: Path, clips: dict[Path, Float32], tmp_path: Path, client: str) -> None:
    """Where LiteRT is not installed, `load_backend` takes what there is."""
    file, window = model(bundles, "waveform", "fp32", "tflite"), read_bundle(bundles / "waveform").window_samples
    inputs = np.stack([np.resize(x, window) for x in clips.values()])
    np.save(tmp_path / "inputs.npy", inputs)
    done = run(client, "answer.py", tmp_path / "out.npz", tmp_path / "inputs.npy", file)
    assert done.returncode == 0, done.stderr
    assert f"{file.name} on {client}" in done.stderr
    with np.load(tmp_path / "out.npz") as answers:
        assert_same(answers[file.name], ours(file, list(inputs)), 1e-5)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_onnxruntime_web(bundles: Path, clips: dict[Path, Float32], kind: str) -> None:
    file = model(bundles, "waveform", kind, "onnx")
    theirs = predict_with("onnxruntime-web", "onnxruntime_web_client.mjs", file, list(clips))
    assert_same(theirs, ours(file, list(clips.values())), 1e-5 if kind == "fp32" else 5e-3)


def kaldi_log_mel(samples: Float32) -> Float32:
    """sherpa-onnx's features for CED, (64, frames), from what is documented of Kaldi's filter bank.

    Frames are centred half a hop later than the published ones, edges are mirrored with their first sample, and the
    triangles of the filters are straight in mel.
    """
    n, hop, n_fft = len(samples), SPEC.hop, SPEC.n_fft
    i = np.arange((n + hop // 2) // hop)[:, None] * hop + (hop - n_fft) // 2 + np.arange(n_fft)
    i = np.where(i < 0, -i - 1, i)
    i = np.where(i >= n, 2 * n - 1 - i, i)
    power = np.abs(np.fft.rfft(samples[i] * hann_window(n_fft))) ** 2

    def mel(hz: Any) -> NDArray[np.float64]:
        return np.asarray(1127 * np.log(1 + np.asarray(hz) / 700))

    at = mel(np.arange(SPEC.n_bins) * SPEC.rate_hz / n_fft)
    edges = np.linspace(mel(SPEC.f_min_hz), mel(SPEC.f_max_hz), SPEC.n_mels + 2)[:, None]
    rising, falling = (at - edges[:-2]) / (edges[1] - edges[0]), (edges[2:] - at) / (edges[1] - edges[0])
    db = 10 * np.log10(np.maximum(np.maximum(0, np.minimum(rising, falling)) @ power.T, SPEC.min_power))
    return np.maximum(db, db.max() - SPEC.top_db).astype(np.float32)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_sherpa_onnx(bundles: Path, clips: dict[Path, Float32], kind: str) -> None:
    """The network answers as ours does to sherpa-onnx's own features; those differ from the published ones."""
    file = model(bundles, "mel", kind, "onnx")
    theirs = predict_with("sherpa-onnx", "sherpa_onnx_client.py", file, list(clips))
    waves = list(clips.values())
    assert_same(theirs, ours(file, [kaldi_log_mel(x) for x in waves]), 1e-5 if kind == "fp32" else 5e-3)
    # docs/clients.md has how much that is on recorded sounds.
    published = ours(file, [log_mel(x, SPEC) for x in waves])
    assert np.abs(theirs - published).max() <= 0.1
    assert np.abs(theirs - published).mean() <= 1e-3


@pytest.mark.parametrize("client", ["mediapipe", "tflite", "sherpa_onnx", "onnxruntime_web"])
def test_the_documented_code_is_what_is_tested(client: str) -> None:
    script = next((ROOT / "interop").glob(f"{client}_client.*"))
    tested = {line.strip() for line in script.read_text().splitlines()}
    page = (ROOT / "docs" / "clients.md").read_text()
    code = page.split(f"<!-- {script.name} -->")[1].split("```")[1].splitlines()[1:]
    assert len(code) >= 3
    assert [line for line in code if line.strip() not in tested] == []
