"""Libraries that are not installed: each subcommand names the one it needs and the extra that installs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Call, refused

from ced_edge.cli import COMMANDS, _extras

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from ced_edge.cli import main
main()
"""


def without(blocked: list[str], *args: object) -> tuple[int, str, str]:
    """The command line in a child process in which these modules cannot be found."""
    command = [sys.executable, "-c", WITHOUT.format(blocked=blocked), *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("args", "blocked", "message"),
    [
        (["teach", "--pack", "p", "--out", "s", "--labels"], "torch", "`ced-edge teach` needs torch: {train}"),
        (["train", "--pack", "p", "--store", "s", "--out", "o"], "pyarrow", "`ced-edge train` needs pyarrow: {train}"),
        (["evaluate", "c", "--data", "TMP"], "torch", "`ced-edge evaluate` needs torch: {train}"),
        (["distill"], "torch", "`ced-edge distill` needs torch: {train}"),
        (["pretrain", "--pack", "p", "--out", "o"], "torch", "`ced-edge pretrain` needs torch: {train}"),
        (["export", "c"], "torch", "`ced-edge export` needs torch: {export}"),
        (["teachers"], "rich", "`ced-edge teachers` needs rich: {train}"),
        (["info"], "numpy", "`ced-edge info` needs numpy: pip install numpy"),
        (["pack", "x", "--out", "o"], "distill", "this installation is broken: it lacks distill; install ced-edge ag"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, args: list[str], blocked: str, message: str) -> None:
    (tmp_path / "x.wav").touch()
    advice = {extra: f"pip install 'ced-edge[{extra}]'" for extra in ("train", "export")}
    result = without([blocked], *[str(tmp_path) if arg == "TMP" else arg for arg in args])
    refused(result, 1, message.format(**advice))
    assert len(result[2].splitlines()) == 1


def test_pack_and_teachers_need_no_torch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    code, out, err = without(["torch", "torchaudio"], "pack", tmp_path, "--out", tmp_path / "p", "--json")
    assert (code, json.loads(out)["clips"]) == (0, 1), err
    code, out, err = without(["torch", "torchaudio"], "teachers")
    assert (code, err) == (0, "")
    assert out.startswith("ced-tiny ")


def test_what_a_device_runs_needs_the_device_install_alone() -> None:
    for name, (module, _) in COMMANDS.items():
        if module.startswith("ced_edge."):
            code, out, err = without(["torch", "rich", "matplotlib", "onnxruntime", "ai_edge_litert"], name, "--help")
            assert (code, err) == (0, ""), name
            assert out.startswith("Usage: ")


def test_a_part_of_a_library_that_is_missing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older version may lack a module: pip would call the package installed."""

    def fail(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'click.colours'", name="click.colours")

    monkeypatch.setattr("ced_edge.runtime.cli.find_bundle", fail)
    refused(call("info"), 1, "needs click.colours, but the installed click lacks it: pip install -U click")


def test_extras_come_from_the_metadata() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package in ("torch", "sounddevice", "av", "transformers", "onnx", "ai-edge-litert"):
        expected = [
            e for e, lines in table.items() if any(line.startswith((f"{package}>", f"{package}=")) for line in lines)
        ]
        assert _extras(package) == expected
    assert _extras("tensorflow")[:1] == ["tensorflow"]
    assert _extras("numpy") == []
