"""Files are whole or not there, whoever writes them at the same time."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import atomic_path, csv_line, folder_lock, path_inside, read_json, read_toml, valid_text

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
    ("place", "message"),
    [
        ("/proc/nope/x", "No such file or directory: .*nope"),
        ("file/x", "exists|Not a directory"),
        ("x" * 300, "too long"),
    ],
)
def test_a_place_that_cannot_be(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CedEdgeError, match=f"cannot write .*({message})"), atomic_path(tmp_path / place):
        pass


def no_such_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without flock, as some network disks are."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_no_live_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_such_locks(monkeypatch)
    path = tmp_path / "x"
    with atomic_path(path) as slow:
        slow.write_text("slow")
        with atomic_path(path) as quick:
            quick.write_text("quick")
        assert slow.read_text() == "slow"
    assert path.read_text() == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_run_without_locks_is_unguarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder_lock(tmp_path), pytest.raises(InputError, match="another run is at work"), folder_lock(tmp_path):
        pass
    no_such_locks(monkeypatch)
    with folder_lock(tmp_path), folder_lock(tmp_path):
        pass


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "other.wav"),
        PermissionError(errno.EACCES, "Permission denied"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
    ],
)
def test_an_error_about_another_file_is_not_about_the_target(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)) as e, atomic_path(tmp_path / "x"):
        raise error
    assert e.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_elsewhere_is_not_about_the_target(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as e, atomic_path(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/cache")
    assert e.value.filename == "/elsewhere/cache"


@pytest.mark.parametrize("relative", [True, False])
def test_an_error_of_writing_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("x") if relative else tmp_path / "x"

    def write(as_folder: bool) -> None:
        with atomic_path(path) as temporary:
            if as_folder:
                (temporary.absolute() / "y").mkdir()  # an error about the absolute name of the temporary file
            raise OSError(errno.ENOSPC, "No space left on device")  # what `write` raises: without a name

    with pytest.raises(CedEdgeError, match=r"cannot write .*x: Not a directory"):
        write(as_folder=True)
    with pytest.raises(CedEdgeError, match=r"disk full while writing .*x: free some space"):
        write(as_folder=False)


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with (
        pytest.raises(CedEdgeError, match=r"cannot write .*x: Is a directory"),
        atomic_path(tmp_path / "x") as temporary,
    ):
        temporary.touch()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../../x", "a/..", "/etc/passwd", "link", "link/x", "loop/../../x", "a\0b", "\ud800"],
)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="is not the name of a file inside") as e:
        path_inside(folder, name)
    str(e.value).encode()  # the message can be printed


def test_a_name_inside_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").symlink_to("a")  # a link that stays inside
    for name in ("x", "a/b", "a/../b", "..x", "there/x", "x ; touch y"):
        assert path_inside(tmp_path, name) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    assert path_inside(Path(), "x") == Path("x")


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b", "out", "in", "\0", "/"]) | st.text(max_size=5), max_size=6))
def test_no_name_leads_out(parts: list[str]) -> None:
    """Opening the path reaches nothing outside the folder: the kernel, not `resolve`, says where it leads."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "folder")
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "out").symlink_to(root)
        (folder / "a" / "in").symlink_to(folder / "a" / "b")
        try:
            path = path_inside(folder, "/".join(parts))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except (InputError, OSError, ValueError):
            pass
        assert set(os.listdir(root)) == {"folder"}


@pytest.mark.parametrize("read", [read_json, read_toml])
def test_a_text_too_large_is_refused_before_it_is_read(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with (tmp_path / "x").open("wb") as f:
        f.truncate(10 << 30)  # a hole: it takes no disk
    with pytest.raises(InputError, match=r"x is larger than .* bytes"):
        read(tmp_path / "x")
    with pytest.raises(InputError, match=r"larger than .* bytes"):
        read(Path("/dev/zero"))  # has no size to look at


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_json, "[" * 100_000),
        (read_json, "1" * 10_000),
        (read_json, "\xff"),
        (read_json, "{"),
        (read_toml, "a = " + "[" * 100_000),
        (read_toml, "a = " + "1" * 10_000),
        (read_toml, "a"),
    ],
)
def test_what_cannot_be_parsed_is_one_line(tmp_path: Path, read: Callable[[Path], Any], text: str) -> None:
    (tmp_path / "x").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"x is not readable (JSON|TOML): .{1,200}$"):
        read(tmp_path / "x")
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=4))
def test_a_row_of_csv_comes_back(row: list[str]) -> None:
    lines = csv_line(["first", "row"]) + csv_line(row) + csv_line(["last", 1])
    assert list(csv.reader(io.StringIO(lines, newline=""), strict=True)) == [["first", "row"], row, ["last", "1"]]
    assert csv_line(["a", 'b"c', "d,e", 2]) == 'a,"b""c","d,e",2\n'


@given(st.binary(min_size=1, max_size=20))
def test_a_name_of_any_bytes_becomes_valid_text(name: bytes) -> None:
    text = valid_text(os.fsdecode(name))
    assert text.encode("utf-8").decode("utf-8") == text
    assert valid_text(text) == text
    assert text == os.fsdecode(name) or "\\udc" in text
