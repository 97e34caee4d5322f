"""What `ced-edge export` refuses before it begins, and what it reports when a disk is full."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Call

from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import save_model
from ced_edge.spec import ModelSpec
from export import bundle as bundle_module
from export import quantize

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # when the converters are imported

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "run" / "model.safetensors"
    save_model(path, CED(ModelSpec(width=24, heads=3, depth=1)).eval(), {})
    return path


def manifest(folder: Path, *names: str) -> Path:
    path = folder / "m.csv"
    path.write_text("filename,labels\n" + "".join(f"{name},0\n" for name in names))
    return path


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--calibration", "pack", "--int8", "--format", "onnx"],
            "--calibration has no effect on these files, which measure no ranges: leave it out",
        ),
        (
            ["--calibration", "pack", "--kinds", "fp32"],
            "--calibration has no effect on these files, which measure no ranges: leave it out",
        ),
        (["--int8", "--kinds", "fp32"], "--int8 is short for --kinds fp32,int8: give one of the two"),
        (["--split", "dev"], "--split has no effect without --data: give a manifest to verify on, or leave it out"),
        (["--audio-root", "."], "--audio-root has no effect without --data: give a manifest to verify on, or leave it"),
    ],
)
def test_flags_without_effect(call: Call, checkpoint: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    code, out, err = call("export", checkpoint, "--out", tmp_path / "b", *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"ced-edge: {message}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_missing_clips_are_reported_first(
    call: Call, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(*_: Any) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(bundle_module, "to_onnx", convert)
    arguments = ["export", checkpoint, "--out", tmp_path / "b", "--format", "onnx", "--window", 1]
    code, out, err = call(*arguments, "--data", manifest(tmp_path, "a.wav", "b.wav", "c.wav"))
    assert (code, out) == (2, "")
    assert err == (
        f"ced-edge: none of the clips of --data exists: no such file: {tmp_path / 'a.wav'}, and 2 more: "
        "name their folder with --audio-root\n"
    )
    (tmp_path / "b.wav").touch()
    code, _, err = call(*arguments, "--data", manifest(tmp_path, "a.wav", "b.wav"))
    assert code == 1
    missing = f"ced-edge: warning: 1 of 2 clips left out: no such file: {tmp_path / 'a.wav'}"
    assert err.splitlines()[:2] == [missing, "ced-edge: export: 24x1-fp32.onnx"]


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_disk_that_is_full_before(
    call: Call, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1_000_000, 900_000, 100_000))
    code, out, err = call("export", checkpoint, "--out", tmp_path / "b", "--format", format, "--window", 1)
    assert (code, out) == (1, "")
    message = err.splitlines()[-1]
    assert message.startswith(f"ced-edge: no space left for 24x1-fp32.{format}: {tmp_path} has 0.1 MB, and it takes 0.")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_disk_that_fills_up_while_quantising(
    call: Call, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime then reads a file that it could not write completely, and reports it as corrupt."""
    left = [10**9]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 0, left[0]))

    def quantise(*_: Any) -> None:
        left[0] = 4_096
        raise ValueError("Error parsing message: Wire format was corrupt")

    monkeypatch.setattr(quantize, "onnx_int8", quantise)
    code, _, err = call("export", checkpoint, "--out", tmp_path / "b", "--format", "onnx", "--window", 1)
    assert code == 1
    assert "no space left for 24x1-int8.onnx" in err.splitlines()[-1]
    assert "corrupt" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    monkeypatch.setattr(quantize, "onnx_int8", lambda *_: 1 / 0)  # an error with another cause is not changed
    left[0] = 10**9
    assert "ZeroDivisionError" in call("export", checkpoint, "--out", tmp_path / "b", "--format", "onnx")[2]
