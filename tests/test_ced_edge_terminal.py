"""Where the output of a command goes: terminals of any width and kind, a full disk, a closed stdout, a closed pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_bundle import shared_bundle

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """6 s of noise."""
    soundfile.write(tmp_path / "x.wav", np.random.default_rng(2).uniform(-0.5, 0.5, 6 * 16_000), 16_000)
    return tmp_path / "x.wav"


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "ced_edge", *map(str, args), "--bundle", str(shared_bundle().folder)]


def environment(**changed: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("TERM", "NO_COLOR", "COLUMNS", "LINES")}
    return clean | {"PYTHONPATH": str(ROOT)} | changed


def on_terminal(columns: int, args: list[str], **changed: str) -> tuple[int, str]:
    """Exit code and output of a command whose stdout is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(args, cwd=ROOT, env=environment(**changed), stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        out = b""
        try:
            while data := os.read(ours, 65_536):
                out += data
        except OSError:  # Linux reports the end of a terminal in this way
            pass
        os.close(ours)
        process.communicate()
        return process.returncode, out.decode().replace("\r\n", "\n")


EVENTS = ("--class", "Dog=0.001/0.001", "--on", "1")


@pytest.mark.parametrize("changed", [{}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_plain_terminal_gets_plain_lines_that_fit(sound: Path, changed: dict[str, str]) -> None:
    code, out = on_terminal(20, command("listen", sound, "--top", 2, *EVENTS), **changed)
    assert code == 0
    assert "\x1b" not in out
    assert "\r" not in out
    assert max(map(len, out.splitlines())) < 20
    assert "Dog" in out
    assert out.count("dBFS") == 9  # one for each window


@pytest.mark.parametrize("columns", [20, 80])
def test_a_screen_is_drawn_in_place_and_shows_names(sound: Path, columns: int) -> None:
    code, out = on_terminal(columns, command("listen", sound, "--top", 2, *EVENTS), TERM="xterm-256color")
    assert code == 0
    assert out.count("\x1b[3F\x1b[J") == 9  # 8 new windows, and an event
    text = re.sub(r"\x1b\[[0-9]*[FJ]", "", out)
    assert max(map(len, text.splitlines())) < columns
    names = [line for line in text.splitlines() if re.match(r" ?[01]\.\d\d ", line)]
    assert len(names) == 20
    assert all(re.search(r"[A-Za-z]{3}", line) for line in names)
    assert ("#" in text) == (columns == 80)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", ["tag", "listen"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_disk_is_one_line(sound: Path, name: str, flags: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(name, sound, *flags), cwd=ROOT, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "ced-edge: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("name", ["tag", "listen"])
def test_a_closed_stdout_is_one_line(sound: Path, name: str) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command(name, sound)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ced-edge: stdout is closed: send it to a file, or to /dev/null\n"


def test_a_closed_stderr_is_no_mistake(sound: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", *command("tag", sound)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(str(sound))


@pytest.mark.parametrize("name", ["tag", "listen"])
def test_a_reader_that_leaves(sound: Path, name: str) -> None:
    script = '"$@" | head -1; echo "${PIPESTATUS[0]}" >&2'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command(name, sound, "--hop", "0.01")],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == "1\n"


def test_bench_without_a_place_for_temporary_files(tmp_path: Path) -> None:
    code = (
        "import sys, tempfile\ntempfile.tempdir = '/nowhere'\n"
        "sys.argv[0] = 'ced-edge'\nfrom ced_edge.cli import main\nmain()"
    )
    args = ["bench", "--bundle", str(shared_bundle().folder), "--cold", "1", "--rounds", "1", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == "ced-edge: no folder for temporary files (No such file or directory): set TMPDIR to one"
