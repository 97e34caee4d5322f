"""A bundle without fp32 files, for a device. Everything reads it, and `check` states what it cannot compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import Call, refused
from tiny_bundle import random_model

from ced_edge.network.ced import predict
from ced_edge.network.checkpoint import save_model
from ced_edge.runtime.bundle import read_bundle
from ced_edge.runtime.tagger import Tagger
from export.bundle import export_bundle
from export.config import ExportConfig
from export.sounds import fill, synthetic_waves

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the converters, while they are imported


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, an int8-only bundle of both formats, and the same bundle with fp32 files."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model.safetensors", random_model(), {})
    export_bundle(folder, folder / "both", ExportConfig(window_s=1.0))
    verdicts = export_bundle(folder, folder / "bundle", ExportConfig(kinds=("int8",), window_s=1.0))
    assert [v.file for v in verdicts] == ["48x2-int8.onnx", "48x2-int8.tflite"]
    return folder


@pytest.fixture(scope="module")
def data(run: Path) -> Path:
    """Clips of 1.0 s, which fill the window, and of 0.5 s, which a .tflite file repeats."""
    rows = ["filename,labels"]
    for i, wave in enumerate(synthetic_waves(16_000, 16_000, seed=5)[:6]):
        soundfile.write(run / f"{i}.wav", wave[: 16_000 if i < 3 else 8_000], 16_000)
        rows.append(f"{i}.wav,{i % 3}")
    (run / "clips.csv").write_text("\n".join(rows) + "\n")
    return run / "clips.csv"


def test_the_bundle_holds_int8_files_alone(run: Path) -> None:
    names = {p.name for p in (run / "bundle").iterdir()}
    assert names == {"bundle.json", "labels.txt", "48x2-int8.onnx", "48x2-int8.tflite"}
    bundle = read_bundle(run / "bundle")
    assert [f.kind for f in bundle.files] == ["int8", "int8"]
    for file in bundle.files:
        # The same bytes as beside fp32 files, but for the .onnx file's names.
        assert file.bytes == (run / "both" / file.name).stat().st_size
        tagger, model = Tagger(bundle, file=file.name), random_model()
        for wave in synthetic_waves(16_000, 16_000, seed=7):
            with torch.inference_mode():
                expected = predict(model, torch.from_numpy(fill(wave, 16_000))[None])[0].numpy()
            assert np.abs(tagger.predict_window(fill(wave, 16_000)) - expected).max() < 0.1


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--kinds", "int8", "--format", "onnx"], ["48x2-int8.onnx"]),
        (["--int8", "--format", "onnx"], ["48x2-fp32.onnx", "48x2-int8.onnx"]),
    ],
)
def test_kinds(call: Call, run: Path, tmp_path: Path, flags: list[str], names: list[str]) -> None:
    code, out, err = call("export", run, "--out", tmp_path / "b", "--window", 1, *flags, "--json")
    assert code == 0, err
    assert [row["file"] for row in json.loads(out)["files"]] == names
    assert sorted(p.name for p in (tmp_path / "b").glob("48x2*")) == names
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_file_that_fails_verification_leaves_nothing(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from export import quantize

    def crushed(source: Path, target: Path, per_channel: bool) -> None:
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                x = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.sign(x) * np.abs(x).mean(), tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(quantize, "onnx_int8", crushed)
    code, _, err = call("export", run, "--out", tmp_path / "b", "--format", "onnx", "--window", 1, "--kinds", "int8")
    assert code == 1
    assert "48x2-int8.onnx: probability error" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_deleting_the_fp32_files_by_hand_is_refused_with_the_command(call: Call, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "both", tmp_path / "b")
    (tmp_path / "b" / "48x2-fp32.onnx").unlink()
    mend = "or write one without fp32 files: ced-edge export CHECKPOINT --kinds int8"
    refused(call("info", "--bundle", tmp_path / "b"), 2, "lacks 48x2-fp32.onnx", "copy the whole bundle again", mend)
    shutil.copy(run / "both" / "48x2-fp32.onnx", tmp_path / "b")
    (tmp_path / "b" / "48x2-int8.onnx").unlink()
    _, _, err = call("info", "--bundle", tmp_path / "b")
    assert "lacks 48x2-int8.onnx" in err
    assert "--kinds" not in err


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_all_that_a_device_runs(call: Call, run: Path, data: Path, format: str) -> None:
    bundle, wave = ("--bundle", run / "bundle"), run / "0.wav"
    for command in (
        ("tag", wave, "--format", format),
        ("listen", wave, "--format", format),
        ("bench", "--format", format, "--rounds", 1, "--repeats", 1, "--cold", 1),
        ("info",),
    ):
        code, out, err = call(*command, *bundle)
        assert code == 0, err
        assert out


def test_check_states_what_it_compares_with(call: Call, run: Path, data: Path, tmp_path: Path) -> None:
    assert call("evaluate", run, "--data", data, "--out", run)[0] == 0
    arguments = ("check", "--reference", run, "--data", data)
    # Random weights: predictions hardly differ between clips, so eight bits are more noise than in a real model.
    bounds = ("--max-noise", 9, "--max-class-drop", 1, "--max-drop", 1, "--min-top1", 0.1)
    html = tmp_path / "check.html"
    code, out, err = call(*arguments, *bounds, "--bundle", run / "bundle", "--json", "--report", html)
    assert code == 0, err
    onnx_, tflite = json.loads(out)["results"]
    alone = "the reference alone, as the bundle has no fp32 file"
    assert (onnx_["compared_with"], tflite["compared_with"]) == (alone, alone)
    # The .onnx file gets every clip as the checkpoint did, so that every bound has been applied.
    assert (onnx_["unchecked"], onnx_["same_input"]) == ([], 6)
    assert tflite["unchecked"] == ["max_error, max_noise, min_top1 of 3 of 6 clips", "max_class_drop"]
    assert (tflite["same_input"], tflite["fp32"]) == (3, None)
    assert f"warning: some bounds of 1 of 2 files could not be checked: compared with {alone}" in err
    code, out, err = call(*arguments, *bounds, "--bundle", run / "bundle")
    for text in (out, html.read_text()):
        assert f"48x2-int8.onnx on onnxruntime {onnx_['runtime'].split()[-1]}: compared with {alone}" in text
        assert "NOT CHECKED: max_error, max_noise, min_top1 of 3 of 6 clips" in text
        assert "NOT CHECKED: max_class_drop" in text
    assert [line.split("  ")[0] for line in out.splitlines()[1:3]] == ["ok", "ok, in part"]
    assert "All bounds that could be checked hold" in html.read_text()
    # With the fp32 files, nothing is left unchecked.
    code, out, err = call(*arguments, *bounds, "--bundle", run / "both", "--kind", "int8", "--json")
    results = json.loads(out)["results"]
    assert [r["unchecked"] for r in results] == [[], []]
    assert [r["compared_with"] for r in results] == ["the reference", "the reference and the fp32 file"]
    assert "could not be checked" not in err


def test_bounds_that_still_have_a_meaning_are_kept(call: Call, run: Path, data: Path) -> None:
    assert call("evaluate", run, "--data", data, "--out", run)[0] == 0
    code, _, err = call(
        *("check", "--reference", run, "--data", data, "--bundle", run / "bundle", "--format", "tflite"),
        *("--max-error", 1e-9, "--max-size-mb", 0.001, "--max-latency-ms", 1e-6),
    )
    assert code == 1
    for bound in ("probability error", "size in MB", "latency in ms"):
        assert bound in err.splitlines()[-1]
