"""Replace the folder of a bundle in one step, so that a reader never sees a half-written bundle."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from ced_edge.errors import InputError
from ced_edge.files import disk_errors, lock, read_json
from ced_edge.labels import TABLE_NAME
from ced_edge.runtime.bundle import BUNDLE_NAME, FORMATS, LABELS_NAME


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into. It replaces `folder` on success, and is removed on any failure.

    It has the permissions of the folder that it replaces, or those that `mkdir` gives. Raises InputError when
    `folder` exists and is no bundle, or holds other files too; CedEdgeError on a full disk.
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
        # Not mkdtemp, which makes a private folder: the user's umask decides who may read a bundle.
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
        temporary.mkdir()
    try:
        with _locked(temporary):
            with disk_errors(folder, temporary):
                yield temporary
            with disk_errors(folder):
                _check_replaceable(folder)  # again: the caller may have needed minutes to fill the new folder
                if folder.exists():
                    temporary.chmod(stat.S_IMODE(folder.stat().st_mode))
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
    """Raise InputError unless `folder` may be deleted: it is missing, empty, or holds a bundle and nothing else.

    bundle.json may come from anyone, and may name any file. Only plain names of model files count as the bundle's
    own, and no folders. So a hostile bundle cannot make the export delete a user's files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        manifest = read_json(folder / BUNDLE_NAME)
        names = {file["name"] for file in manifest["files"]}
        known = {BUNDLE_NAME, LABELS_NAME, TABLE_NAME, *filter(_is_model_name, names)}
        is_bundle = isinstance(manifest["format"], int)
    except (InputError, TypeError, KeyError):
        is_bundle = False
    if not is_bundle:
        raise InputError(f"{folder} is there and is no bundle: choose another --out")
    if foreign := sorted(p.name for p in folder.iterdir() if p.name not in known or p.is_dir()):
        some = ", ".join([*foreign[:5], *["..."] * (len(foreign) > 5)])
        raise InputError(f"{folder} holds files besides its bundle: {some}; move them, or choose another --out")


def _is_model_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and Path(name).suffix[1:] in FORMATS


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders: in one step where the kernel can do so (Linux), else in three renames."""
    if sys.platform == "linux":
        at_fdcwd, rename_exchange = -100, 2
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 and renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0:
            return
    aside = _aside(b)
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed before its last rename
    with _locked(b):
        b.rename(aside)
        try:
            a.rename(b)
        except OSError:
            aside.rename(b)
            raise
        aside.rename(a)


def _put_back(folder: Path) -> None:
    """Undo the first rename of an `_exchange` that was killed right after it."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        with _locked(aside) as free:
            if free is not False:  # nothing is removed here, so a disk without locks (None) is no danger
                aside.rename(folder)


def _aside(folder: Path) -> Path:
    """Where `_exchange` puts `folder` meanwhile. Not the name of a leftover: it may be the only copy of the bundle."""
    return folder.with_name(f".{folder.name}.ced-edge-old")
