"""A bundle's folder is replaced as a whole or not at all, and nothing else is ever replaced."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_bundle import edit_bundle, shared_bundle

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.labels import TABLE_NAME, table
from ced_edge.runtime.bundle import BUNDLE_NAME, Bundle, read_bundle
from export import replace
from export.replace import atomic_folder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    shutil.copytree(shared_bundle().folder, tmp_path / "bundle")
    return read_bundle(tmp_path / "bundle")


def mark_old(bundle: Bundle) -> None:
    """Mark a bundle, so that it differs from its replacement."""
    edit_bundle(bundle.folder, lambda m: m.update(versions={"torch": "old"}))


def is_old(folder: Path) -> bool:
    return read_bundle(folder).versions == {"torch": "old"}


def test_a_bundle_is_swapped_in_as_a_whole_or_not_at_all(bundle: Bundle) -> None:
    def fill(fail: bool) -> None:
        with atomic_folder(bundle.folder) as folder:
            shutil.copytree(shared_bundle().folder, folder, dirs_exist_ok=True)
            if fail:
                raise RuntimeError("half-way")

    mark_old(bundle)
    with pytest.raises(RuntimeError, match="half-way"):
        fill(fail=True)
    assert is_old(bundle.folder)
    killed = bundle.folder.with_name(".bundle.1.tmp")  # the leftover of a killed export
    killed.mkdir()
    fill(fail=False)
    assert not is_old(bundle.folder)
    read_bundle(bundle.folder)
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["bundle"]


def test_the_folder_behind_a_link_is_replaced(bundle: Bundle) -> None:
    link = bundle.folder.with_name("current")
    link.symlink_to(bundle.folder.name)
    mark_old(bundle)
    for _ in range(2):
        with atomic_folder(link) as folder:
            shutil.copytree(shared_bundle().folder, folder, dirs_exist_ok=True)
    assert link.is_symlink()
    assert not is_old(bundle.folder)
    assert sorted(p.name for p in bundle.folder.parent.iterdir()) == ["bundle", "current"]


@pytest.mark.parametrize(
    "files",
    [
        {"mine.txt": "dear"},
        {BUNDLE_NAME: '{"name": "My app", "icons": []}', "index.html": "<p>"},
        {BUNDLE_NAME: '{"format": "a", "files": []}'},
        {BUNDLE_NAME: '{"format": 1, "files": ["index.html"]}'},
        {BUNDLE_NAME: "[]"},
        {BUNDLE_NAME: "{"},
    ],
)
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, files: dict[str, str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(InputError, match="is there and is no bundle: choose another --out"), atomic_folder(folder):
        pass
    assert {p.name: p.read_text() for p in folder.iterdir()} == files


def test_files_beside_the_bundles_own_are_not_lost(bundle: Bundle) -> None:
    mark_old(bundle)
    (bundle.folder / TABLE_NAME).write_text(table())
    (bundle.folder / "notes").mkdir()
    (bundle.folder / "thesis.txt").write_text("years")

    def replace_it(late: bool = False) -> None:
        with atomic_folder(bundle.folder) as folder:
            (folder / "new").touch()
            if late:
                (bundle.folder / "late.txt").touch()

    with pytest.raises(InputError, match=r"besides its bundle: notes, thesis\.txt; move them"):
        replace_it()
    (bundle.folder / "notes").rmdir()
    (bundle.folder / "thesis.txt").unlink()
    with pytest.raises(InputError, match=r"besides its bundle: late\.txt"):
        replace_it(late=True)
    assert is_old(bundle.folder)
    (bundle.folder / "late.txt").unlink()
    edit_bundle(bundle.folder, lambda m: m.update(format=0))  # of an older version
    replace_it()
    assert [p.name for p in bundle.folder.iterdir()] == ["new"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        (folder / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["empty", "new"]


@pytest.mark.parametrize("place", ["/proc/nope/x", "file/x", "file/x/y", "x" * 300])
def test_an_impossible_place(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CedEdgeError, match="cannot write") as e, atomic_folder(tmp_path / place):
        pass
    assert "\n" not in str(e.value)


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", deny)  # root may write anywhere
    with pytest.raises(CedEdgeError, match=r"cannot write .*: Permission denied"), atomic_folder(tmp_path / "bundle"):
        pass


def test_a_killed_export_leaves_the_old_bundle_and_is_cleared_away(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from export.replace import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as f:\n"
        "    (f / 'bundle.json').write_text('{}')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    bundle = tmp_path / "bundle"
    with atomic_folder(bundle) as folder:
        write_marked(folder, "old")
    done = subprocess.run([sys.executable, "-c", script, bundle], check=False)
    assert done.returncode == -signal.SIGKILL
    assert mark(bundle) == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_folder(bundle) as folder:
        write_marked(folder, "newer")
        # A second export at the same time does not remove the folder of the first.
        with atomic_folder(tmp_path / "bundle") as other:
            write_marked(other, "between")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert mark(bundle) == "newer"


def write_marked(folder: Path, text: str) -> None:
    """The least that counts as a bundle when it is replaced."""
    (folder / BUNDLE_NAME).write_text(json.dumps({"format": 1, "files": [], "mark": text}))


def mark(folder: Path) -> Any:
    return json.loads((folder / BUNDLE_NAME).read_text())["mark"]


@pytest.fixture
def other_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without renameat2, and without a C library to look for it."""
    monkeypatch.setattr(replace, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(replace.ctypes, "CDLL", None)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_between_the_renames(tmp_path: Path, other_system: None, step: int) -> None:
    """Killed before each of the three, the old or the new bundle is there for the next export, and stays."""
    bundle = tmp_path / "bundle"
    with atomic_folder(bundle) as folder:
        write_marked(folder, "old")
    script = (
        "import os, pathlib, sys, types; from export import replace\n"
        "replace.sys = types.SimpleNamespace(platform='darwin')\n"
        "real, count = pathlib.Path.rename, 0\n"
        "def rename(self, target):\n"
        "    global count\n"
        "    count += 1\n"
        f"    os.kill(os.getpid(), 9) if count == {step} else real(self, target)\n"
        "pathlib.Path.rename = rename\n"
        "with replace.atomic_folder(pathlib.Path(sys.argv[1])) as f:\n"
        """    (f / 'bundle.json').write_text('{"format": 1, "files": [], "mark": "new"}')\n"""
    )
    assert subprocess.run([sys.executable, "-c", script, bundle], check=False).returncode == -signal.SIGKILL
    assert bundle.exists() == (step != 2)
    with pytest.raises(RuntimeError, match="half-way"), atomic_folder(bundle):
        raise RuntimeError("half-way")
    assert mark(bundle) == ("new" if step == 3 else "old")
    with atomic_folder(bundle) as folder:
        write_marked(folder, "newer")
    assert mark(bundle) == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_rename_that_fails_leaves_the_old_bundle(
    tmp_path: Path, other_system: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    with atomic_folder(bundle) as folder:
        write_marked(folder, "old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CedEdgeError, match="cannot write"), atomic_folder(bundle) as folder:
        write_marked(folder, "new")
    assert mark(bundle) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_an_error_about_another_file_does_not_name_the_bundle(tmp_path: Path) -> None:
    """While the new folder is filled, checkpoints and sounds are read too."""
    for error in (FileNotFoundError(2, "No such file", "weights.pt"), OSError(28, "No space left", "/elsewhere/x")):
        with pytest.raises(OSError, match="No s") as e, atomic_folder(tmp_path / "bundle"):
            raise error
        assert e.value is error
    with (
        pytest.raises(CedEdgeError, match=r"disk full while writing .*bundle:"),
        atomic_folder(tmp_path / "bundle") as f,
    ):
        raise OSError(28, "No space left", str(f / "model.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_without_locks_no_live_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_folder(tmp_path / "bundle") as slow:
        with atomic_folder(tmp_path / "bundle") as quick:
            write_marked(quick, "quick")
        write_marked(slow, "slow")
    assert mark(tmp_path / "bundle") == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


# Permissions, and bundles that lie.


def write_named(folder: Path, *names: object) -> None:
    """The least that counts as a bundle when it is replaced."""
    text = {"format": 1, "files": [{"name": name} for name in names]}
    (folder / BUNDLE_NAME).write_text(json.dumps(text))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027, 0o002])
def test_a_new_bundle_has_the_permissions_that_mkdir_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        (tmp_path / "plain").mkdir()
        with atomic_folder(tmp_path / "bundle") as folder:
            write_named(folder)
    finally:
        os.umask(before)
    assert mode(tmp_path / "bundle") == mode(tmp_path / "plain") == 0o777 & ~umask


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_a_replaced_bundle_keeps_its_permissions(tmp_path: Path) -> None:
    """A bundle that its owner made private does not become public by a new export."""
    for _ in range(2):
        with atomic_folder(tmp_path / "bundle") as folder:
            write_named(folder)
        (tmp_path / "bundle").chmod(0o750)
    with atomic_folder(tmp_path / "bundle") as folder:
        write_named(folder, "new.onnx")
    assert mode(tmp_path / "bundle") == 0o750
    assert "new.onnx" in (tmp_path / "bundle" / BUNDLE_NAME).read_text()


@pytest.mark.parametrize("name", ["thesis.txt", "photos", "photos/a.onnx", "../thesis.txt", "", ".", "..", 7, None])
def test_a_hostile_bundle_does_not_claim_other_files(tmp_path: Path, name: object) -> None:
    """An export deletes the bundle that it replaces, and bundle.json names what belongs to it."""
    bundle = tmp_path / "bundle"
    (bundle / "photos").mkdir(parents=True)
    (bundle / "photos" / "a.onnx").write_text("a")
    (bundle / "thesis.txt").write_text("years")
    write_named(bundle, "x.onnx", name)
    (bundle / "x.onnx").write_text("x")
    with (
        pytest.raises(InputError, match=r"bundle holds files besides its bundle: photos, thesis\.txt; move them"),
        atomic_folder(bundle) as folder,
    ):
        write_named(folder)
    assert sorted(p.name for p in bundle.iterdir()) == [BUNDLE_NAME, "photos", "thesis.txt", "x.onnx"]


def test_a_folder_with_the_name_of_a_model_file_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "x.onnx").mkdir(parents=True)
    (tmp_path / "bundle" / "x.onnx" / "a").write_text("a")
    write_named(tmp_path / "bundle", "x.onnx")
    with (
        pytest.raises(InputError, match=r"holds files besides its bundle: x\.onnx"),
        atomic_folder(tmp_path / "bundle") as folder,
    ):
        write_named(folder)
    assert (tmp_path / "bundle" / "x.onnx" / "a").read_text() == "a"
