"""`ced-edge check` and `ced-edge bench`: results on stdout, the report, and one line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Call

pytest.importorskip("onnx", reason="onnx spoils the model files of these tests")
from check_case import Case, replace_file, round_model, shared_case

from ced_edge.errors import InputError
from ced_edge.proof.cli import parse_threads
from ced_edge.runtime import backends
from ced_edge.runtime.bundle import read_bundle

ROOT = Path(__file__).resolve().parents[1]
LOUD = ("--max-noise", "0.2")  # with random weights, predictions hardly differ between clips


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return shared_case(tmp_path_factory.getbasetemp() / "case")


@pytest.fixture
def spoilt(case: Case, tmp_path: Path) -> Case:
    own = case.copy(tmp_path / "own")
    bundle, path = read_bundle(own.bundle), own.bundle / "24x2-int8.onnx"
    round_model(own.bundle / "24x2-fp32.onnx", path, activation_bits=4)
    replace_file(bundle, path)
    return own


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def check(case: Case, *flags: object) -> list[object]:
    return ["check", "--bundle", case.bundle, "--reference", case.reference, "--data", case.data, *flags]


class Page(HTMLParser):
    """The tags of an HTML page, and the files that it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data") and (v or " ")[0] != "#"]


def test_a_good_bundle(call: Call, case: Case) -> None:
    pytest.importorskip("matplotlib", reason="no matplotlib: pip install matplotlib")
    code, out, err = call(*check(case, *LOUD, "--stream", "--report", "out.html"))
    assert (code, err) == (0, "ced-edge: report: out.html\n")
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["verdict", "file", "runtime", "mAP", "drop"]
    assert [line.split()[:2] for line in lines[1:3]] == [["ok", "24x2-int8.onnx"], ["ok", "24x2-fp32.onnx"]]
    assert len(re.findall("predictions in a stream are exactly equal", out)) == 2
    text = Path("out.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == 2
    assert page.tags.count("table") == 3
    assert page.loads == []
    assert "script" not in page.tags
    assert "@import" not in text
    assert "All bounds hold." in text
    assert text.count("24x2-int8.onnx") >= 3


def test_a_broken_bundle(call: Call, spoilt: Case) -> None:
    code, out, err = call(*check(spoilt, *LOUD, "--report", "out.html", "--kind", "int8"))
    assert code == 1
    assert re.search(r"ced-edge: \d bounds are broken: 24x2-int8\.onnx on onnxruntime [\d.]+: mAP drop 0\.1", err)
    assert err.count("\n") == 2  # the path of the report, and the error
    assert out.splitlines()[1].split()[0] == "BROKEN"
    assert "lost most: " in out
    assert "Bounds are broken." in Path("out.html").read_text()


def test_json_and_bounds_from_a_file(call: Call, spoilt: Case) -> None:
    lenient = "max_noise = inf\nmax_error = 1\nmax_drop = 1\nmax_class_drop = 1\nmin_top1 = 0\n"
    Path("pyproject.toml").write_text(f"[tool.ced-edge.check]\n{lenient}")
    code, out, err = call(*check(spoilt, "--json"))
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["reference"]["metrics"]["mean_ap"] == 1.0
    int8, fp32 = found["results"]
    assert int8["reference"]["drop"] > 0.05
    assert fp32["fp32"] is None
    assert len(int8["reference"]["worst"]) == 10
    code, out, err = call(*check(spoilt, "--json", "--max-drop", 0.01))
    assert code == 1
    assert json.loads(out)["results"][0]["broken"] == [what for what in err.strip().split(": ") if "mAP drop" in what]
    Path("pyproject.toml").write_text("[tool.ced-edge.check]\nmax_dorp = 1\n")
    code, _, err = call(*check(spoilt))
    assert code == 2
    assert "pyproject.toml [tool.ced-edge.check]: unknown key max_dorp; there are max_drop" in err


def test_bad_input_is_one_line(call: Call, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, *args: object, code: int = 2) -> None:
        found, out, err = call(*args)
        assert (found, out) == (code, "")
        assert message in err

    refused(
        "no such bundle: nowhere", "check", "--bundle", "nowhere", "--reference", case.reference, "--data", case.data
    )
    refused("no such file: nowhere", "check", "--bundle", case.bundle, "--reference", "nowhere", "--data", case.data)
    refused("no such manifest", "check", "--bundle", case.bundle, "--reference", case.reference, "--data", "nowhere")
    monkeypatch.setattr("ced_edge.options.PACKAGED", tmp_path)
    refused("no bundle in runs/*/bundle", "check", "--reference", case.reference, "--data", case.data)
    refused("unexpected extra argument", "bench", case.bundle)
    refused("'--max-drop': -1.0 is not in the range x>=0", *check(case, "--max-drop", -1))
    refused("has no int8-static file", *check(case, "--kind", "int8-static"))
    refused("'abacus' is not one of 'onnxruntime', 'ai-edge-litert'", *check(case, "--runtime", "abacus"))
    refused("runs on 'tensorflow' here: there is onnxruntime", *check(case, "--runtime", "tensorflow"))
    refused("has no `split` column", *check(case, "--split", "dev"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused("--report needs matplotlib: pip install matplotlib", *check(case, "--report", "x.html"))
    monkeypatch.setattr(backends, "ONNX_RUNTIMES", (("no_such_module", "onnxruntime"),))
    missing = "nothing here runs 24x2-int8.onnx, 24x2-fp32.onnx: pip install onnxruntime"
    refused(f"{missing}, or leave it out", *check(case))
    refused(f"{missing}\n", "bench", "--bundle", case.bundle)
    assert list(Path().iterdir()) == []


def test_it_runs_without_torch(case: Case) -> None:
    """As on a device: neither this process nor its children import it."""
    code = "import sys; sys.modules['torch'] = None; from ced_edge.cli import main; main()"
    args = [str(a) for a in check(case, *LOUD, "--kind", "fp32", "--json")]
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["results"][0]["memory_mb"] < 250  # torch alone takes more


def test_bench(call: Call, case: Case) -> None:
    quick = ("--rounds", 1, "--repeats", 2, "--cold", 1)
    code, out, err = call("bench", "--bundle", case.bundle, "--threads", "1-2", "--profile", *quick)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split()[:4] == ["file", "runtime", "threads", "ms"]
    rows = [(line.split()[0], line.split()[3]) for line in lines[2:6]]
    assert rows == [(f"24x2-{kind}.onnx", threads) for threads in "12" for kind in ("int8", "fp32")]
    assert len(re.findall(r"^24x2-.*\.onnx on onnxruntime [\d.]+, threads: 1$", out, re.MULTILINE)) == 2
    assert len(re.findall(r"^sum of operators [\d.]+ ms, whole model [\d.]+ ms$", out, re.MULTILINE)) == 2
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/bundle").symlink_to(case.bundle)
    code, out, err = call("bench", "--kind", "fp32", "--json", *quick)
    assert (code, err) == (0, "ced-edge: using the bundle runs/x/bundle\n")
    found = json.loads(out)
    assert found["profiles"] == []
    (timing,) = found["timings"]
    assert (timing["threads"], timing["kind"]) == (1, "fp32")
    assert timing["cold_ms"] > timing["load_ms"] > 0


def test_threads() -> None:
    assert parse_threads("4") == [4]
    assert parse_threads("1-3, 8") == [1, 2, 3, 8]
    assert parse_threads("2,1,2") == [1, 2]
    for text in ("", "0", "two", "1-", "3-1", "-1", "1,,2", "9999", "1-999999999999"):
        with pytest.raises(InputError, match="--threads"):
            parse_threads(text)
