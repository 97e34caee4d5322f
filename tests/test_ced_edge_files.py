"""Files are whole or not there, whoever writes them at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ced_edge.errors import CedEdgeError
from ced_edge.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]


def test_two_writers_of_one_path(tmp_path: Path) -> None:
    """Neither takes the other's file away; the last to end has written it."""
    path = tmp_path / "x"
    with atomic_path(path) as slow:
        slow.write_text("slow")
        with atomic_path(path) as quick:
            assert quick != slow
            quick.write_text("quick")
        assert path.read_text() == "quick"
        assert slow.read_text() == "slow"
    assert path.read_text() == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_threads_that_write_one_path(tmp_path: Path) -> None:
    path, failures = tmp_path / "x", []

    def write(letter: str) -> None:
        try:
            for _ in range(50):
                with atomic_path(path) as temporary:
                    temporary.write_text(letter * 10_000)
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert path.read_text() in {letter * 10_000 for letter in "abcd"}
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_a_killed_one_left_goes_and_what_a_live_one_writes_stays(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom ced_edge.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as p:\n"
        "    p.write_text('half')\n    print(p, flush=True)\n    input()"
    )
    path = tmp_path / "x"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        theirs = Path(child.stdout.readline().strip())
        with atomic_path(path) as mine:
            mine.write_text("mine")
        assert theirs.read_text() == "half"
        os.kill(child.pid, signal.SIGKILL)
    assert theirs.exists()
    with atomic_path(path) as mine:
        mine.write_text("again")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "again"


def test_another_files_leftovers_stay(tmp_path: Path) -> None:
    (tmp_path / ".y.123.tmp").touch()
    with atomic_path(tmp_path / "x") as temporary:
        temporary.touch()
    assert {p.name for p in tmp_path.iterdir()} == {"x", ".y.123.tmp"}


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/proc/nope/x", "No such file or directory: .*nope"),
        ("file/x", "exists|Not a directory"),
        ("x" * 300, "too long"),
    ],
)
def test_a_place_that_cannot_be(tmp_path: Path, place: str, told: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CedEdgeError, match=f"cannot write .*({told})"), atomic_path(tmp_path / place):
        pass
