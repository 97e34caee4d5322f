"""Writing files so that nothing is ever half-written, hashing them, and keeping two runs apart."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ced_edge.errors import CedEdgeError, InputError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it on success and removed on any failure.

    Threads, processes, and hosts that share the disk may write one path at once: whoever ends last has written it.
    What a killed one left of it is removed. Raises CedEdgeError on a full disk or an unwritable folder, naming `path`.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError), leftover.open("rb") as f:
                if lock(f):
                    leftover.unlink()
        with _new_file(path) as temporary:
            yield temporary
            with temporary.open("r+b") as f:  # Windows syncs no file that is open for reading alone
                os.fsync(f.fileno())
            os.replace(temporary, path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Make a full disk, or a place that cannot be written, a CedEdgeError that names `path`."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CedEdgeError(f"disk full while writing {path}: free some space and run again to go on") from e
        if e.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise CedEdgeError(f"cannot write {path}: {e.strerror}") from e
        if e.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            # With the name, as whoever writes there may look for a file elsewhere.
            raise CedEdgeError(f"cannot write {path}: {e.strerror}: {e.filename}") from e
        raise


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, locked, which tells it from what a killed process left; removed at the end."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with temporary.open("xb") as f:
            if not lock(f) or not os.fstat(f.fileno()).st_nlink:
                continue  # someone took it for a leftover before it was locked
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            return


def lock(f: IO[Any] | int) -> bool:
    """Lock an open file or folder for as long as it is open, or its process lives; False when someone else holds it."""
    try:
        import fcntl

        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a system or a disk that knows no such locks: better unguarded than not at all
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as p:
        p.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InputError when it is missing or no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as e:
        raise InputError(f"no such file: {path}") from e
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InputError(f"{path} is not readable JSON: {e}") from e


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises InputError when it is missing or no TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"no such file: {path}") from e
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InputError(f"{path} is not readable TOML: {e}") from e


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def _digest(f: Any) -> str:
    # hashlib.file_digest came with Python 3.11.
    h = hashlib.sha256()
    while block := f.read(1 << 20):
        h.update(block)
    return h.hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form, as hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def path_inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name that was read from a file. Raises InputError when that lies outside of `folder`."""
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()) or path.resolve() == folder.resolve():
        raise InputError(f"{name!r} is no name of a file inside {folder}: the file that names it is damaged or hostile")
    return path


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock dies with the process, however it ends.

    Raises InputError when another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        f = (folder / ".lock").open("w")
    except OSError as e:
        raise InputError(f"cannot write into {folder}: {e.strerror}") from e
    with f:
        if not lock(f):
            raise InputError(f"another run is at work in {folder}: wait for it, or choose another folder")
        yield
