"""`ced-edge export`: files that predict what the checkpoint predicts, or none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from ai_edge_litert.interpreter import Interpreter
from conftest import Call
from sklearn.metrics import average_precision_score
from tiny_bundle import random_model

from ced_edge.network.ced import CED, predict
from ced_edge.network.checkpoint import save_model
from ced_edge.runtime.bundle import read_bundle
from ced_edge.runtime.tagger import Tagger
from ced_edge.spec import N_CLASSES, ModelSpec
from export import bundle as bundle_module
from export import quantize
from export.sounds import fill, synthetic_waves

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the converters, while they are imported


@pytest.fixture(scope="module")
def model() -> CED:
    return random_model()


@pytest.fixture(scope="module")
def checkpoint(model: CED, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, model, {})
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder of short sounds."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = ["filename,labels"]
    for i, wave in enumerate(synthetic_waves(20_000, 16_000, seed=5)[:6]):
        soundfile.write(folder / f"{i}.wav", wave, 16_000)
        rows.append(f"{i}.wav,{i % 3}")
    (folder / "sounds.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of everything, 1 s windows."""
    out = tmp_path_factory.mktemp("out") / "bundle"
    config = bundle_module.ExportConfig(
        kinds=("fp32", "int8", "int8-static"), window_s=1.0, calibration=sounds / "sounds.csv"
    )
    bundle_module.export_bundle(checkpoint, out, config)
    return out


NAMES = [f"48x2-{kind}.{format}" for format in ("onnx", "tflite") for kind in ("fp32", "int8", "int8-static")]


@pytest.mark.parametrize("name", NAMES)
def test_each_file_predicts_as_the_checkpoint(exported: Path, model: CED, name: str) -> None:
    tagger = Tagger(exported, file=name)
    limit = 1e-4 if "fp32" in name else 0.1
    for wave in synthetic_waves(16_000, 16_000, seed=7):
        padded = wave if name.endswith("onnx") else fill(wave, 16_000)
        with torch.inference_mode():
            expected = predict(model, torch.from_numpy(padded.copy())[None])[0].numpy()
        assert np.abs(tagger.predict_window(wave) - expected).max() < limit


def test_the_bundle_describes_itself(exported: Path) -> None:
    bundle = read_bundle(exported)
    assert [f.name for f in bundle.files] == NAMES
    assert bundle.file().kind == "int8"
    assert (bundle.input, bundle.window_samples, bundle.reference) == ("waveform", 16_000, None)
    assert all("int8" in f.quantisation for f in bundle.files if f.kind != "fp32")


def test_int8_is_int8(exported: Path) -> None:
    """A quarter of the float file's weights, but for the front end's constants."""
    for format in ("onnx", "tflite"):
        float_, int8 = ((exported / f"48x2-{kind}.{format}").stat().st_size for kind in ("fp32", "int8"))
        assert int8 < 0.75 * float_
    graph = onnx.load(exported / "48x2-int8.onnx").graph
    products = {n.name for n in graph.node if n.op_type == "MatMulInteger"}
    assert sum("blocks.0" in name for name in products) == 4
    assert not any("front_end" in name for name in products)


def test_one_scale_per_tensor(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    config = bundle_module.ExportConfig(per_channel=False, window_s=1.0)
    bundle_module.export_bundle(checkpoint, tmp_path / "b", config)
    assert "weights int8 per tensor" in read_bundle(tmp_path / "b").file().quantisation
    for folder, largest in ((exported, N_CLASSES), (tmp_path / "b", 1)):
        graph = onnx.load(folder / "48x2-int8.onnx").graph
        scales = [tensor for tensor in graph.initializer if tensor.name.endswith("_scale")]
        assert max(max(tensor.dims, default=1) for tensor in scales) == largest
        details = Interpreter(str(folder / "48x2-int8.tflite")).get_tensor_details()
        assert max(len(d["quantization_parameters"]["scales"]) for d in details) == largest


def test_a_mel_bundle_takes_any_batch_and_time(checkpoint: Path, model: CED, tmp_path: Path) -> None:
    config = bundle_module.ExportConfig(formats=("onnx",), kinds=("fp32",), input="mel", window_s=2.0)
    bundle_module.export_bundle(checkpoint, tmp_path / "mel", config)
    tagger = Tagger(tmp_path / "mel")
    wave = np.stack(synthetic_waves(30_000, 16_000)[:3])
    with torch.inference_mode():
        mel = model.front_end(torch.from_numpy(wave)).numpy()
        expected = predict(model, torch.from_numpy(wave)).numpy()
    np.testing.assert_allclose(tagger.backend.run(mel)[0], expected, atol=1e-5)


def test_command_line(
    call: Call, checkpoint: Path, sounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    arguments = ["export", checkpoint, "--out", tmp_path / "b", "--format", "onnx", "--window", 1]
    code, out, err = call(*arguments, "--data", sounds / "sounds.csv", "--json")
    assert code == 0, err
    rows = json.loads(out)["files"]
    assert [(r["file"], r["clips"]) for r in rows] == [
        (f"48x2-{kind}.onnx", n) for n in (9, 6) for kind in ("fp32", "int8")
    ]
    assert rows[2]["mean_ap"] == pytest.approx(rows[2]["expected_mean_ap"], abs=1e-6)
    assert all(r["problems"] == [] for r in rows)
    assert caplog.messages == [
        *(f"export: 48x2-{kind}.onnx" for kind in ("fp32", "int8")),
        "verify: synthetic sounds",
        "verify: clips",
    ]


def test_clips_without_labels_or_sound(
    call: Call, checkpoint: Path, sounds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A clip without labels counts in the errors only. One without a file is left out, as in `evaluate`, `check`."""
    lines = (sounds / "sounds.csv").read_text().splitlines()
    (tmp_path / "x.csv").write_text("\n".join([*lines[:-1], "5.wav,", "gone.wav,1"]) + "\n")
    arguments = [
        "export",
        checkpoint,
        "--out",
        tmp_path / "b",
        "--format",
        "onnx",
        "--window",
        1,
        "--kinds",
        "fp32",
        "--json",
    ]
    code, out, err = call(*arguments, "--data", tmp_path / "x.csv", "--audio-root", sounds)
    assert code == 0, err
    row = json.loads(out)["files"][-1]
    assert row["clips"] == 6
    waves = [soundfile.read(sounds / f"{i}.wav", dtype="float32")[0][:16_000] for i in range(5)]
    probs = [Tagger(tmp_path / "b").predict_window(wave) for wave in waves]
    targets = np.zeros((5, N_CLASSES), bool)
    targets[np.arange(5), np.arange(5) % 3] = True
    assert row["mean_ap"] == pytest.approx(average_precision_score(targets[:, :3], np.stack(probs)[:, :3]), abs=1e-6)
    assert "1 of 7 clips left out" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "tflight"], "'tflight' is not one of 'onnx', 'tflite'"),
        (["--window", "0.1", "--format", "onnx"], "--window 0.1 does not fit the model: choose 0.15 to 10 seconds\n"),
        (["--window", "0.3"], "--window 0.3 does not fit the model: choose 0.31 to 10 seconds, or from 0.15 with"),
        (["--window", "11"], "--window 11 does not fit the model"),
        (["--kinds", "int8-static"], "int8-static needs sounds"),
        (["--data", "nowhere.csv"], "no such manifest or folder: nowhere.csv"),
    ],
)
def test_bad_input(call: Call, checkpoint: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    code, out, err = call("export", checkpoint, "--out", tmp_path / "b", *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "window"), [("onnx", 0.15), ("onnx,tflite", 0.31)])
def test_the_shortest_window(checkpoint: Path, tmp_path: Path, format: str, window: float) -> None:
    config = bundle_module.ExportConfig(formats=tuple(format.split(",")), kinds=("fp32",), window_s=window)
    bundle_module.export_bundle(checkpoint, tmp_path / "b", config)
    assert read_bundle(tmp_path / "b").window_s == window


def test_a_checkpoint_of_other_classes(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, CED(ModelSpec(width=24, heads=3, depth=1, n_classes=10)).eval(), {})
    code, _, err = call("export", path, "--format", "onnx", "--window", 1)
    assert (code, err) == (
        2,
        f"ced-edge: {path} has 10 classes: only the 527 of AudioSet can be exported\n",
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_a_device_cannot_load_is_not_written(
    call: Call, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "labels_text", lambda: "Speech\n" * N_CLASSES)
    code, _, err = call(
        "export", checkpoint, "--out", tmp_path / "b", "--format", "onnx", "--kinds", "fp32", "--window", 1
    )
    assert code == 2
    assert "has other labels than the model" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_no_run_yet(call: Call, tmp_path: Path) -> None:
    code, _, err = call("export", "--runs", tmp_path)
    assert code == 2
    assert "ced-edge distill" in err


def test_a_folder_that_is_no_bundle_is_left_alone(call: Call, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    code, _, err = call("export", checkpoint, "--out", tmp_path, "--format", "onnx")
    assert code == 2
    assert "is there and is no bundle" in err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def crushed(source: Path, target: Path, per_channel: bool) -> None:
    """A quantisation that keeps the sign of the weights and nothing else."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            x = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.sign(x) * np.abs(x).mean(), tensor.name))
    onnx.save(model, target)


def test_what_fails_verification_is_not_written(
    call: Call, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["export", checkpoint, "--out", tmp_path / "b", "--format", "onnx", "--window", 1]
    assert call(*arguments, "--kinds", "fp32")[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    monkeypatch.setattr(quantize, "onnx_int8", crushed)
    code, _, err = call(*arguments)
    assert code == 1
    assert "48x2-int8.onnx: probability error" in err.splitlines()[-1]
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_damaged_reference_is_reported_before_the_conversion(
    call: Call, model: CED, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    save_model(tmp_path / "model.safetensors", model, {})
    (tmp_path / "reference.json").write_text("{")
    code, _, err = call("export", tmp_path, "--format", "onnx", "--window", 1)
    assert code == 2
    assert "reference.json" in err.splitlines()[-1]
    assert caplog.messages == []


def test_thresholds_come_from_the_checkpoint(
    call: Call, model: CED, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are in the bundle. Wrong ones are reported before the conversion."""
    caplog.set_level(logging.INFO)
    weights = tmp_path / "model.safetensors"
    flags = ["--kinds", "fp32", "--format", "onnx", "--window", 1]
    for wrong, problem in (({"Dogg": 0.5}, "thresholds of other classes"), ({"Dog": 7}, "a threshold that is no prob")):
        save_model(weights, model, {"thresholds": wrong})
        code, _, err = call("export", weights, *flags)
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"the metadata of {weights} holds {problem}" in err
    assert caplog.messages == []
    save_model(weights, model, {"thresholds": {"Dog": 0.55}})
    assert call("export", weights, *flags)[0] == 0
    assert read_bundle(tmp_path / "bundle").thresholds == {"Dog": 0.55}


def test_only_the_graphs_of_the_chosen_formats_are_made(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    build = bundle_module.ExportModel

    def watched(model: CED, with_front_end: bool, block: type) -> object:
        made.append(block)
        return build(model, with_front_end, block)

    monkeypatch.setattr(bundle_module, "ExportModel", watched)
    config = bundle_module.ExportConfig(formats=("onnx",), kinds=("fp32",), window_s=1.0)
    bundle_module.export_bundle(checkpoint, tmp_path / "bundle", config)
    assert made == [bundle_module.FoldedBlock]


def test_weights_of_four_bits_are_refused(
    call: Call, checkpoint: Path, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise catches them. The largest error does not: no probability is off by 0.1."""
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe import TFLOperationName

    dynamic, static = Quantizer.add_dynamic_config, Quantizer.add_static_config

    def static_4(self: Quantizer, where: str, op: TFLOperationName, **options: Any) -> None:
        static(self, where, op, **options)
        if op is TFLOperationName.ALL_SUPPORTED:
            static(self, where, TFLOperationName.FULLY_CONNECTED, **{**options, "weight_num_bits": 4})

    monkeypatch.setattr(
        Quantizer, "add_dynamic_config", lambda *args, **options: dynamic(*args, **{**options, "num_bits": 4})
    )
    monkeypatch.setattr(Quantizer, "add_static_config", static_4)
    arguments = [
        "--format",
        "tflite",
        "--window",
        1,
        "--kinds",
        "int8,int8-static",
        "--calibration",
        sounds / "sounds.csv",
    ]
    code, _, err = call("export", checkpoint, "--out", tmp_path / "b", *arguments)
    assert code == 1
    last = err.splitlines()[-1]
    assert "48x2-int8.tflite: noise 0.35 is over 0.05" in last
    assert "48x2-int8-static.tflite: noise 0.35 is over 0.1" in last
    assert "probability error" not in last
    assert not list(tmp_path.iterdir())
