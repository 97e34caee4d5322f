"""The pages are short enough to read, and what they name exists: links, files, functions, commands and flags."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from ced_edge.cli import cli
from ced_edge.proof.bounds import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "students").glob("*/README.md"))]
SCRIPTS = sorted((ROOT / "runs").glob("*.sh"))
FOLDERS = "ced_edge|distill|export|docs|runs|benchmarks|interop|students|tests|android_demo"
MADE_BY_RUNS = re.compile(r"runs/(\*|NAME|[\w-]+)(/|$)")
"""Folders that runs write. The scripts and recipes of the repository lie in runs/ itself and have a suffix."""


def rel(path: Path) -> str:
    return str(path.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=rel)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|^    .*?$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_blocks(text: str) -> list[str]:
    """The sh blocks of a page, and its indented blocks."""
    indented = re.findall(r"(?:^    .*\n)+", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S) + indented


def commands(text: str) -> list[list[str]]:
    """The words behind each `ced-edge` of a script, up to the end of its command."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a line of a function in another language
            continue
        for i, word in enumerate(words):
            if word in ("ced-edge", "${launch[@]}") or words[i - 1 : i + 1] == ["-m", "ced_edge"]:
                rest = words[i + 1 :]
                ends = [k for k, w in enumerate(rest) if w in ("|", "&", "&&") or w.startswith(">")]
                ends += [k + 1 for k, w in enumerate(rest) if w.endswith(";")]
                found.append([w.rstrip(";") for w in rest[: min(ends, default=None)]])
    return [words for words in found if words]


def test_the_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) < 150
    assert [n for n, line in enumerate(lines, 1) if len(line) > 120] == []


@pages
def test_prose_lines_are_short(page: Path) -> None:
    """Rows of a table cannot be broken; every other line can."""
    lines = page.read_text().splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith("|")] == []


def test_the_readme_has_one_small_picture() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text())
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 150_000


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.M)
    missing = []
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = page.parent / target if target else page
        if not path.exists():
            missing.append(link)
        elif anchor:
            # GitHub makes anchors of headings: lower case, blanks become hyphens, other signs go.
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            missing += [link] * (anchor not in anchors)
    assert missing == []


@pages
def test_named_files_exist(page: Path) -> None:
    named = set(re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./*-]*[\w*/]", page.read_text()))
    assert [name for name in sorted(named) if not MADE_BY_RUNS.match(name) and not list(ROOT.glob(name))] == []


def test_design_names_what_the_code_has() -> None:
    """Functions and classes, each in the file that is named nearest before it, or in its row of the table."""
    text = (ROOT / "docs" / "design.md").read_text()
    wrong, checked = [], 0
    for row in re.findall(r"^\| .*\?.* \|$", text, re.M):
        _, _, files, names, _ = row.split("|")
        sources = [(ROOT / file).read_text() for file in re.findall(r"`([\w/]+\.py)`", files)]
        for name in re.findall(r"`([\w.]+)`", names):
            if name.startswith("."):  # a suffix of files
                continue
            checked += 1
            last = name.rpartition(".")[2]
            wrong += [name] * (not any(re.search(rf"\b{last}\b", source) for source in sources))
    every = "\n".join(
        f.read_text() for package in ("ced_edge", "distill", "export") for f in ROOT.glob(f"{package}/**/*.py")
    )
    for name in re.findall(r"`([A-Za-z_]\w*(?:\.[a-z_]+)?)`", text):
        checked += 1
        wrong += [name] * (not re.search(rf"\b{name.rpartition('.')[2]}\b", every))
    assert checked > 50
    assert wrong == []


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=rel)
def test_commands_have_these_flags(page: Path) -> None:
    """Every `ced-edge` command of the pages and scripts is parsed, without running it."""
    text = page.read_text()
    for words in commands(text if page.suffix == ".sh" else "\n".join(code_blocks(text))):
        if words[0].startswith("-"):
            continue
        try:
            command = cli.get_command(click.Context(cli), words[0])
        except ModuleNotFoundError as e:
            pytest.skip(str(e))
        assert command is not None, words
        # Only the names of flags are checked, because values may be shell variables. Arrays may hold any flags.
        arguments = [word for word in words[1:] if "[@]" not in word]
        try:
            command.make_parser(click.Context(command)).parse_args(arguments)
        except click.UsageError as e:
            pytest.fail(f"{' '.join(words)}: {e.format_message()}")


@pytest.mark.parametrize("script", SCRIPTS, ids=rel)
def test_scripts_are_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_ratio_of_the_readme_is_that_of_the_table() -> None:
    """The readme's one speed claim is copied from docs/results.md, where its command stands."""
    (claimed,) = re.findall(r"is ([\d.]+) times as fast as sherpa-onnx", README.read_text())
    results = (ROOT / "docs" / "results.md").read_text()
    assert f"**tiny-int8.tflite** | 6.23 | 14.3 | **{claimed}**" in results
    assert "benchmarks/vs_sherpa_onnx.py" in results


def test_the_guide_has_the_bounds_of_the_code() -> None:
    rows = re.findall(r"^\| (fp32|int8|int8-static) \| (.+) \|$", (ROOT / "docs" / "guide.md").read_text(), re.M)
    written = {kind: [float(cell) for cell in cells.split(" | ")] for kind, cells in rows}
    names = ("max_drop", "max_class_drop", "max_error", "max_noise", "min_top1")
    assert written == {kind: [getattr(bounds, name) for name in names] for kind, bounds in DEFAULTS.items()}
