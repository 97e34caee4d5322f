"""A bundle predicts what torch predicts, with the first file that can be run. A file with false claims is refused."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_bundle import SPEC, shared_bundle, tiny_model, with_file, write_bundle

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.network.ced import CED, predict
from ced_edge.runtime import backends, tagger
from ced_edge.runtime.backends import Port
from ced_edge.runtime.bundle import Bundle, read_bundle
from ced_edge.runtime.tagger import Tagger, Tags, mean_probs

RATE, WINDOW = SPEC.frontend.rate_hz, 2 * SPEC.frontend.rate_hz
Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> CED:
    return tiny_model()


@pytest.fixture(params=["waveform", "mel"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    shutil.copytree(shared_bundle(request.param).folder, tmp_path / "bundle")
    return read_bundle(tmp_path / "bundle")


def noise(samples: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def by_torch(model: CED, wave: Float32) -> Float32:
    with torch.no_grad():
        return predict(model, torch.from_numpy(wave)[None])[0].numpy()  # type: ignore[no-any-return]


class Fake:
    """A backend that returns the mean of its input, and keeps its inputs."""

    runtime, metadata = "fake 1.0", {}

    def __init__(self, inputs: tuple[Port, ...], outputs: tuple[Port, ...] = (Port("prob", (1, 527), "float32"),)):
        self.inputs, self.outputs = inputs, outputs
        self.given: list[NDArray[Any]] = []

    def run(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        self.given.append(inputs[0].copy())
        return [np.full((1, 527), np.abs(inputs[0]).mean(), np.float32)]


# Shorter than half an FFT, than a patch and than a window; one window; more; a multiple of the window.
@pytest.mark.parametrize("samples", [1, 256, 257, 2_399, 2_400, 20_001, WINDOW, WINDOW + 1, 3 * WINDOW, 75_000])
@pytest.mark.parametrize("input", ["waveform", "mel"])
def test_predictions_are_those_of_torch(model: CED, input: str, samples: int) -> None:
    wave = noise(samples, samples)
    np.testing.assert_allclose(Tagger(shared_bundle(input)).predict(wave), by_torch(model, wave), rtol=0, atol=1e-5)


def test_predictions_differ_between_clips(model: CED) -> None:
    """If they did not, the test above would prove nothing."""
    tone = np.sin(2 * np.pi * 440 * np.arange(WINDOW) / RATE).astype(np.float32)
    quiet, loud = by_torch(model, noise(WINDOW)), by_torch(model, tone)
    assert np.abs(quiet - loud).max() > 0.01


@pytest.mark.parametrize("input", ["waveform", "mel"])
def test_a_fixed_window_is_filled_by_repeating(model: CED, tmp_path: Path, input: str) -> None:
    fixed = Tagger(write_bundle(tmp_path, input, free=False))
    assert fixed.backend.inputs[0].shape[-1] > 0
    for samples in (300, 20_001, WINDOW):
        wave = noise(samples)
        repeated = by_torch(model, np.tile(wave, -(-WINDOW // samples))[:WINDOW])
        np.testing.assert_allclose(fixed.predict_window(wave), repeated, rtol=0, atol=1e-5)
    # In the mean over windows, each has the weight of its own samples, without the repeated ones.
    wave = noise(WINDOW + 4_000)
    full, tail = fixed.predict_window(wave[:WINDOW]), fixed.predict_window(wave[WINDOW:])
    np.testing.assert_allclose(
        fixed.predict(wave), (WINDOW * full + 4_000 * tail) / (WINDOW + 4_000), rtol=0, atol=1e-6
    )


def test_tflite_takes_its_one_window(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """The ports of a real TFLite file: other names, one shape, no free axis."""
    shape = (1, WINDOW) if bundle.input == "waveform" else (1, 64, 201)
    fake = Fake((Port("serving_default_args_0:0", shape, "float32"),), (Port("out:0", (1, 527), "float32"),))
    (bundle.folder / "m.tflite").write_bytes(b"model")
    monkeypatch.setattr(tagger, "load_backend", lambda path, threads, runtime: fake)
    tiny = Tagger(with_file(bundle, bundle.folder / "m.tflite", "int8"), format="tflite")
    for samples in (1, 3_000, WINDOW):
        tiny.tag(noise(samples))
    assert {x.shape for x in fake.given} == {shape}


def test_rate_channels_and_windows(model: CED) -> None:
    tagger = Tagger(shared_bundle())
    wave = noise(3 * RATE)
    stereo = np.stack([wave, np.zeros_like(wave)], axis=1)
    np.testing.assert_array_equal(tagger.predict(stereo), tagger.predict(wave / 2))
    tags = tagger.tag(wave, window_s=1.0, hop_s=0.5)
    assert [(t.start_s, t.end_s) for t in tags] == [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.5), (2, 3)]
    np.testing.assert_allclose(tags[3].probs, by_torch(model, wave[24_000:40_000]), rtol=0, atol=1e-5)
    # A tone sounds the same at another sample rate.
    t_in, t_out = np.arange(2 * 44_100) / 44_100, np.arange(2 * RATE) / RATE
    there, here = (np.sin(2 * np.pi * 1_000 * t).astype(np.float32) for t in (t_in, t_out))
    np.testing.assert_allclose(tagger.predict(there, 44_100), tagger.predict(here), rtol=0, atol=0.05)


@pytest.mark.parametrize("samples", [0, WINDOW + 1])
def test_a_window_of_a_wrong_length(samples: int) -> None:
    with pytest.raises(ValueError, match=f"a window holds 1 to 32000 samples, not {samples}"):
        Tagger(shared_bundle()).predict_window(noise(samples))


def test_no_samples() -> None:
    assert Tagger(shared_bundle()).tag(np.zeros(0, np.float32)) == []
    with pytest.raises(InputError, match="there are no samples to predict"):
        Tagger(shared_bundle()).predict(np.zeros(0, np.float32))


def test_top_and_mean() -> None:
    probs = np.zeros(527, np.float32)
    probs[[0, 74, 500]] = 0.25, 0.75, 0.5
    tags = Tags(0.0, 1.0, probs)
    assert [(label.name, p) for label, p in tags.top(2)] == [("Dog", 0.75), ("Silence", 0.5)]
    assert [label.index for label, _ in tags.top(9, threshold=0.5)] == [74, 500]
    assert len(tags.top(9)) == 9
    # Worked out by hand: 3 s of one and 1 s of the other.
    mean = mean_probs([Tags(0.0, 3.0, np.full(527, 0.8, np.float32)), Tags(3.0, 4.0, np.full(527, 0.4, np.float32))])
    np.testing.assert_allclose(mean, 0.7, rtol=1e-6)


def test_first_file_whose_runtime_is_installed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The int8 .tflite comes before the fp32 .onnx, if a runtime for it is installed."""
    path = bundle.folder / "m.tflite"
    path.write_bytes(b"not read without a runtime")
    more = with_file(bundle, path, "int8")
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", (("no_such_runtime", "ai-edge-litert"),))
    assert Tagger(more).file == bundle.files[0]
    assert Tagger(more).backend.runtime.startswith("onnxruntime ")
    for wanted in ({"format": "tflite"}, {"kind": "int8"}, {"file": "m.tflite"}):
        with pytest.raises(InputError, match=r"m\.tflite needs a TFLite runtime: pip install ai-edge-litert"):
            Tagger(more, **wanted)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="pip install ai-edge-litert"):
        Tagger(more)  # the message names the runtime of the first choice
    with pytest.raises(InputError, match="pip install onnxruntime"):
        Tagger(more, format="onnx")


def test_the_runtime_decides_which_file_is_loaded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle.folder / "m.tflite"
    path.write_bytes(b"not read without a runtime")
    more = with_file(bundle, path, "int8")
    tagger = Tagger(more, runtime="onnxruntime", threads=2)  # the int8 .tflite would be the first choice
    assert tagger.file == bundle.files[0]
    twin = tagger.copy()
    assert (twin.file, twin.backend.runtime) == (tagger.file, tagger.backend.runtime)
    assert twin.backend is not tagger.backend
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", (("json", "other"), ("no_such_runtime", "none")))
    with pytest.raises(InputError, match=r"m\.tflite needs none: pip install none"):
        Tagger(more, runtime="none")
    with pytest.raises(InputError, match=r"abacus does not run m\.tflite, .*onnx of .*: choose other or none or onnx"):
        Tagger(more, runtime="abacus")


def test_a_broken_file_is_not_skipped(bundle: Bundle) -> None:
    """Another file in its place would hide that it is broken."""
    path = bundle.folder / "m.onnx"
    path.write_bytes(b"this is no model" * 100)
    more = with_file(bundle, path, "int8")
    with pytest.raises(InputError, match=r"m\.onnx is not a usable ONNX model"):
        Tagger(more)
    assert Tagger(more, kind="fp32").file.kind == "fp32"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"kind": "int8"}, "has no int8 file: it holds 24x2-fp32.onnx"),
        ({"format": "tflite", "kind": "fp32"}, "has no fp32 tflite file"),
        ({"file": "other.onnx"}, "has no other.onnx file"),
    ],
)
def test_a_file_that_the_bundle_lacks(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tagger(shared_bundle(), **wanted)


def wrong_ports(mel: bool) -> list[tuple[str, Fake]]:
    name, shape = ("mel", (-1, 64, -1)) if mel else ("waveform", (-1, -1))
    good = Port(name, shape, "float32")

    def of(**changes: Any) -> tuple[Port, ...]:
        return (dataclasses.replace(good, **changes),)

    return [
        ("input", Fake(of(name="audio"))),
        ("input", Fake(of(dtype="int8"))),
        ("input", Fake(of(shape=(*shape[:-1], 12_345)))),
        ("input", Fake(of(shape=(2, *shape[1:])))),
        ("input", Fake(of(shape=shape[1:]))),
        ("input", Fake((good, good))),
        ("output", Fake((good,), (Port("prob", (-1, 521), "float32"),))),
        ("output", Fake((good,), (Port("logits", (-1, 527), "float32"),))),
        ("output", Fake((good,), ())),
        *([("input", Fake(of(shape=(-1, 80, -1))))] if mel else []),
    ]


@pytest.mark.parametrize(
    ("input", "case"), [(input, i) for input in ("waveform", "mel") for i in range(len(wrong_ports(input == "mel")))]
)
def test_a_file_that_does_not_fit_bundle_json(monkeypatch: pytest.MonkeyPatch, input: str, case: int) -> None:
    what, fake = wrong_ports(input == "mel")[case]
    monkeypatch.setattr(tagger, "load_backend", lambda path, threads, runtime: fake)
    message = rf"is not what its bundle.json says: its {what} is .*export the bundle again"
    with pytest.raises(InputError, match=message) as e:
        Tagger(shared_bundle(input))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("output", [np.full((1, 527), np.nan, np.float32), np.zeros((1, 521), np.float32)])
def test_an_output_of_nan_or_of_another_size_is_an_error(monkeypatch: pytest.MonkeyPatch, output: Any) -> None:
    fake = Fake((Port("waveform", (-1, -1), "float32"),), (Port("prob", (-1, -1), "float32"),))
    monkeypatch.setattr(fake, "run", lambda *inputs: [output])
    monkeypatch.setattr(tagger, "load_backend", lambda path, threads, runtime: fake)
    with pytest.raises(CedEdgeError, match="did not return 527 finite numbers: it is broken, export it again"):
        Tagger(shared_bundle()).predict(noise(3_000))


def test_threads_reach_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    threads_given: list[int] = []

    def load(path: Path, threads: int, runtime: str | None) -> Fake:
        threads_given.append(threads)
        return Fake((Port("waveform", (-1, -1), "float32"),))

    monkeypatch.setattr(tagger, "load_backend", load)
    Tagger(shared_bundle(), threads=3)
    assert threads_given == [3]


def test_a_cold_process_imports_little() -> None:
    """The first prediction must be quick, so torch, matplotlib and scipy are not loaded for it."""
    code = (
        "import sys, numpy as np\nfrom ced_edge.runtime.tagger import Tagger\n"
        f"Tagger({str(shared_bundle().folder)!r}).predict(np.zeros(16000, np.float32))\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert isinstance(sys.modules["ced_edge.runtime.tagger"], types.ModuleType)
    assert not {"torch", "matplotlib", "scipy", "ai_edge_litert", "tensorflow", "click"} & set(done.stdout.split())
