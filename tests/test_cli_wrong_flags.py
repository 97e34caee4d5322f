"""Wrong flags: one line and exit code 2, before any heavy library is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click import Command, Context, Option
from conftest import refused

from ced_edge.cli import COMMANDS, cli
from distill.evaluation.evaluate import DTYPES

ROOT = Path(__file__).resolve().parents[1]
HEAVY = [
    "torch",
    "onnxruntime",
    "ai_edge_litert",
    "tensorflow",
    "onnx",
    "litert_torch",
    "matplotlib",
    "pyarrow",
    "rich",
]
RANGE = "is not in the range"
FINITE = "nan is not a finite number"

WRONG: list[tuple[str, str]] = [
    ("pack x --out y --rate 0", f"'--rate': 0 {RANGE}"),
    ("pack x --out y --segment nan", FINITE),
    ("pack x --out y --clips-per-shard 0", RANGE),
    ("pack x --out y --workers many", "'many' is not a valid integer"),
    ("teachers --sha256 0", "--sha256 has no effect without --fetch"),
    ("teach --pack p --out s", "run `ced-edge teachers --fetch mn04_as` and `ced-edge teachers --fetch yamnet_"),
    ("teach --pack p --out s -k 528", RANGE),
    ("teach --pack p --out s --workers 0", RANGE),
    ("teach --pack p --out s --device abacus", "unknown device 'abacus': choose cpu or cuda"),
    ("teach --pack p --out s --windows 2", "--windows 2: give EPOCHSxSECONDS"),
    ("teach --pack p --out s --windows 1xnan", "0.1 to 60 s"),
    ("teach --pack p --out s --view-seed -1", RANGE),
    ("teach --pack p --out s --views views.toml", "mask_probability must be within 0 and 1"),
    ("teach --pack p --out s --labels --teacher t=x.pt", "--labels are the only teacher"),
    ("train --pack p --store s --out o --size huge --lr nan", "--lr must be above 0, not nan"),
    ("train --pack p --store s --out o --config config.toml", "--size must be one of tiny"),
    ("train --pack p --store s --out o --config other.toml", "unknown key stpes"),
    ("train --pack p --store s --out o --batch 0", "--batch must be at least 1"),
    ("train --pack p --store s --out o --device cuda:x", "unknown device 'cuda:x'"),
    ("train --pack p --store s --out o --views views.toml", "mask_probability"),
    ("pretrain --pack p --out o --mask 1", "--mask must be between 0 and 1"),
    ("pretrain --pack p --out o --seconds nan", "--seconds must be within 0.5 and 10, not nan"),
    ("train --pack p --store s --out o --gain 1.5", "--gain must be from 0 to 1, not 1.5"),
    ("train --pack p --store s --out o --patchout 1", "--patchout must be from 0 to below 1"),
    (
        "train --pack p --store s --out o --patchout-kind some",
        "--patchout-kind must be one of unstructured, structured",
    ),
    ("agreement c --pack p --store s --level 3", RANGE),
    ("agreement c --pack p --store s --level nan", FINITE),
    ("evaluate c --data d --rate 0", f"'--rate': 0 {RANGE}"),
    ("evaluate c --data d --dtype foo", "'foo' is not one of 'fp32', 'bf16'"),
    ("evaluate c --data d --batch 0", RANGE),
    ("evaluate c --data d --device abacus", "unknown device"),
    ("evaluate --data d", "give a CHECKPOINT"),
    ("evaluate c --data d --teacher t=", "names no file"),
    ("distill --size huge", "--size must be one of tiny, mini, small, base, not 'huge'"),
    ("distill --data d --teacher t=x.pt --size huge", "--size must be one of"),
    ("distill --lr inf", "--lr must be above 0"),
    ("distill --windows 5", "--windows 5: give"),
    ("distill --split train", "--split need --data"),
    ("distill --data d", "no teacher"),
    ("distill --device gpu", "unknown device 'gpu'"),
    ("android c --abi mips -o a.apk", "'mips' is not one of 'arm64-v8a', 'armeabi-v7a', 'x86_64'"),
    ("android c --bundle b -o a.apk", "give c or --bundle b, not both"),
    ("android c", "Missing option '-o' / '--out'"),
    ("export c --format pdf", "'pdf' is not one of 'onnx', 'tflite'"),
    ("export c --kinds fp32,int5", "'int5' is not one of 'fp32', 'int8', 'int8-static'"),
    ("export c --int8-static", "No such option '--int8-static'"),
    ("export c --int8 --kinds fp32", "--int8 is short for --kinds fp32,int8"),
    ("export c --input spectrum", "'spectrum' is not one of 'waveform', 'mel'"),
    ("export c --window nan", FINITE),
    ("export c --window 0", RANGE),
    ("export c --split dev", "--split has no effect without --data"),
    ("export c --calibration pack --kinds int8 --format onnx", "--calibration has no effect"),
    ("check --reference r --data d --max-drop nan", "nan is not a number"),
    ("check --reference r --data d --max-drop -1", RANGE),
    ("check --reference r --data d --min-top1 2", "min_top1 must be at most 1"),
    ("check --reference r --data d --threads 0", RANGE),
    ("check --reference r --data d --runtime abacus", "'abacus' is not one of"),
    ("check bundle --reference r --data d", "unexpected extra argument (bundle)"),
    ("check --data d", "Missing option '--reference'"),
    ("bench --threads 3-1", "--threads 3-1: give numbers from 1 to 256"),
    ("bench --rounds 0", RANGE),
    ("bench --kind int5", "'int5' is not one of"),
    ("bench --format pdf", "'pdf' is not one of"),
    ("info bundle", "unexpected extra argument (bundle)"),
    ("tag x.wav --runtime tflite", "'tflite' is not one of 'onnxruntime', 'ai-edge-litert'"),
    ("tag x.wav --format pdf", "'pdf' is not one of 'onnx', 'tflite'"),
    ("tag x.wav --window nan", FINITE),
    ("tag x.wav --hop 0", RANGE),
    ("tag x.wav --jobs 0", RANGE),
    ("tag x.wav --threshold nan", FINITE),
    ("tag x.wav --plot x.wav", "give it a name that ends in .png"),
    ("listen --on 0.1", "on 0.1 and off 0.2"),
    ("listen --off nan", FINITE),
    ("listen --rate 48000", "--rate has an effect on raw PCM"),
    ("listen - --pcm-format u8", "'u8' is not one of"),
    ("listen - --class Dog", "give NAME=ON/OFF"),
    ("listen - --min-duration inf", "inf is not a finite number"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Command line -> exit code, stdout, stderr; all in one child process, in which the heavy libraries are missing."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "views.toml").write_text("mask_probability = nan\n")
    (folder / "config.toml").write_text('size = "huge"\n')
    (folder / "other.toml").write_text("stpes = 3\n")
    program = f"""
import contextlib, io, json, sys
sys.path.insert(0, {str(ROOT)!r})

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from ced_edge.cli import main
for line in json.load(sys.stdin):
    sys.argv, code = ["ced-edge", *line.split()], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as e:
            code = e.code
    print(json.dumps([line, code, out.getvalue(), err.getvalue()]))
"""
    lines = json.dumps([line for line, _ in WRONG])
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["config.toml", "other.toml", "views.toml"]
    rows: list[Any] = [json.loads(row) for row in done.stdout.splitlines()]
    return {line: (code, out, err) for line, code, out, err in rows}


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_wrong_flag_is_refused_at_once(results: dict[str, tuple[int, str, str]], line: str, message: str) -> None:
    refused(results[line], 2, message)
    assert len(results[line][2].splitlines()) == 1


def test_every_command_is_in_the_table() -> None:
    assert {line.split()[0] for line, _ in WRONG} == set(COMMANDS)


def command_named(name: str) -> Command:
    command = cli.get_command(Context(cli), name)
    assert command is not None
    return command


def test_the_choices_are_those_of_the_code() -> None:
    """The command repeats them: to import them would import torch."""
    command = command_named("evaluate")
    (dtype,) = [p for p in command.params if p.name == "dtype"]
    assert tuple(dtype.type.choices) == DTYPES


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_and_every_command_json(name: str) -> None:
    command = command_named(name)
    options = [p for p in command.params if isinstance(p, Option)]
    assert [o.name for o in options if not o.help] == []
    assert "--json" in [flag for o in options for flag in o.opts]
