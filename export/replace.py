"""Replace a bundle's folder by a new one in one step, so that no half-written bundle is ever in place."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ced_edge.errors import InputError
from ced_edge.files import disk_errors, lock, read_json
from ced_edge.labels import TABLE_NAME
from ced_edge.runtime.bundle import BUNDLE_NAME, LABELS_NAME


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to fill, which takes its place on success and is removed on any failure.

    Raises InputError where `folder` is there and is no bundle, or holds other files too; CedEdgeError on a full disk.
    """
    with disk_errors(folder):
        folder = folder.resolve()  # the folder that a link leads to is replaced, not the link
        _put_back(folder)
        _check_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
            with _locked(leftover) as free:
                if free:
                    shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        with _locked(temporary):
            with disk_errors(folder, temporary):
                yield temporary
            with disk_errors(folder):
                temporary.chmod(0o755)
                _check_replaceable(folder)  # again: the caller may have needed minutes to fill the new folder
                if folder.exists():
                    _exchange(temporary, folder)
                else:
                    temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool | None]:
    """Lock a folder while it is in use. Gives True, False where another process holds it, or None without locks."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield lock(fd)
    finally:
        os.close(fd)


def _check_replaceable(folder: Path) -> None:
    """Raise InputError unless nothing is lost with `folder`: it is missing, empty, or a bundle of any format alone."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = read_json(folder / BUNDLE_NAME)
        # Other programs have a manifest.json too.
        known = {BUNDLE_NAME, LABELS_NAME, TABLE_NAME, *(file["name"] for file in manifest["files"])}
        is_bundle = isinstance(manifest["format"], int)
    except (InputError, TypeError, KeyError):
        is_bundle = False
    if not is_bundle:
        raise InputError(f"{folder} is there and is no bundle: choose another --out")
    if foreign := sorted({path.name for path in folder.iterdir()} - known):
        some = ", ".join([*foreign[:5], *["..."] * (len(foreign) > 5)])
        raise InputError(f"{folder} holds files besides its bundle: {some}; move them, or choose another --out")


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders: in one step where the kernel can (Linux), else in three."""
    if sys.platform == "linux":
        at_fdcwd, rename_exchange = -100, 2
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 and renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0:
            return
    aside = _aside(b)
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed before its last step
    with _locked(b):
        b.rename(aside)
        try:
            a.rename(b)
        except OSError:
            aside.rename(b)
            raise
        aside.rename(a)


def _put_back(folder: Path) -> None:
    """Undo the first step of an `_exchange` that was killed after it."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        with _locked(aside) as free:
            if free is not False:  # nothing is removed here, so a disk without locks (None) is no danger
                aside.rename(folder)


def _aside(folder: Path) -> Path:
    """Where `_exchange` sets `folder` aside: no name of a leftover, as it may be the only bundle that there is."""
    return folder.with_name(f".{folder.name}.ced-edge-old")
