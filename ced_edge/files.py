"""Write files atomically, read them with a largest size, hash them, tell pipes, and lock the folder of a run."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import io
import json
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from ced_edge.errors import CedEdgeError, InputError, first_line

MAX_TEXT_BYTES = 1 << 26
"""Largest JSON or TOML file that is read (64 MiB). Parsed, it can take 20 times as much memory."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_T = TypeVar("_T")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`. It is renamed to `path` on success, and removed on any failure.

    Threads, processes, and hosts that share the disk may write one path at the same time: the last one to finish wins.
    Files that a killed process left behind are removed. Raises CedEdgeError, which names `path`, on a full disk or a
    folder without write permission. An OSError of the body about any other file is raised unchanged.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError), leftover.open("rb") as f:
                if lock(f):  # None is not enough: without locks, a file of a live process looks the same
                    leftover.unlink()
        temporary, locked = _new_file(path)
    with locked:
        try:
            with disk_errors(path, temporary):
                yield temporary
            with disk_errors(path):
                with temporary.open("r+b") as f:  # Windows cannot sync a file that is open for reading only
                    os.fsync(f.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Turn an OSError about `path` (a full disk, no permission, no such folder) into a CedEdgeError that names it.

    With `temporary`, the block is a caller's code, which may use other files too. Then only these errors are about
    `path`: errors with the name of `path` or `temporary` or a file in them, and a full disk without a name.
    """
    try:
        yield
    except OSError as e:
        if temporary is not None and not _is_about(e, path, temporary):
            raise
        if e.errno in _DISK_FULL:
            raise CedEdgeError(f"disk full while writing {path}: free some space and run again to continue") from e
        if e.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise CedEdgeError(f"cannot write {path}: {e.strerror}") from e
        if e.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            # The name helps: the missing part may be a folder above `path`.
            raise CedEdgeError(f"cannot write {path}: {e.strerror}: {e.filename}") from e
        raise


def _is_about(e: OSError, *paths: Path) -> bool:
    names = [name for name in (e.filename, e.filename2) if isinstance(name, str | bytes | os.PathLike)]
    if not names:
        return e.errno in _DISK_FULL  # an error of `write` never has a name
    # `abspath` and not `resolve`: a link at `path` is itself the thing that is written.
    absolute = [Path(os.path.abspath(os.fsdecode(name))) for name in names]
    return any(name.is_relative_to(os.path.abspath(path)) for name in absolute for path in paths)


def _new_file(path: Path) -> tuple[Path, IO[bytes]]:
    """A new empty file beside `path`, open and locked. The lock marks it as in use."""
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        f = temporary.open("xb")
        # Another process may lock the new file first and remove it as a leftover: then try the next name.
        if lock(f) is not False and os.fstat(f.fileno()).st_nlink:
            return temporary, f
        f.close()


def lock(f: IO[Any] | int) -> bool | None:
    """Lock an open file or folder until it is closed or its process ends.

    True: locked. False: another process or thread holds it. None: this system or disk has no such locks, so nobody
    can know. Code that removes something must have True.
    """
    try:
        import fcntl

        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as p:
        p.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file that somebody else may have written. Raises InputError above `most_bytes`, and OSError."""
    data = bytearray()
    with path.open("rb") as f:
        # The size that the disk reports is not enough: a device has none, and a file may grow.
        while len(data) <= most_bytes and os.fstat(f.fileno()).st_size <= most_bytes:
            if not (block := f.read(1 << 20)):
                return bytes(data)
            data += block
    raise InputError(f"{path} is larger than {most_bytes} bytes: it is damaged, or another kind of file")


def read_json(path: Path) -> Any:
    """Read a JSON file of at most MAX_TEXT_BYTES. Raises InputError when it is missing, too large or not JSON."""
    return _parsed(path, "JSON", json.loads)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of at most MAX_TEXT_BYTES. Raises InputError when it is missing, too large or not TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return _parsed(path, "TOML", tomllib.loads)


def _parsed(path: Path, kind: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(read_bounded(path, MAX_TEXT_BYTES).decode("utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"no such file: {path}") from e
    # ValueError: wrong syntax, no UTF-8, a number of thousands of digits. RecursionError: lists in lists in lists ...
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} is not readable {kind}: {first_line(e)}") from e


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


def valid_text(name: str) -> str:
    r"""A file name as text that UTF-8 can hold: a byte that is no UTF-8, such as E9, becomes the letters `\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def csv_line(row: Sequence[object]) -> str:
    """A row of a CSV file with its end, such that every reader gives the cells back unchanged."""
    # Before Python 3.13, csv.writer leaves a carriage return without quotes, and readers then end the row there.
    odd = any("\r" in str(cell) for cell in row)
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL).writerow(row)
    return line.getvalue()


def is_fifo(path: Path | str) -> bool:
    """Whether it is a named pipe, or a shell's `<(command)`: it can be read once only."""
    # os.path, as Path.exists raises on names that the system refuses.
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def path_inside(folder: Path, name: str) -> Path:
    """`folder / name`, for a name that was read from a file.

    Raises InputError unless the path lies below `folder`, with every `..` and every link followed.
    """
    path = folder / name
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # NUL, surrogates; a loop of links
        real, root = path.resolve(), folder.resolve()
        if real != root and real.is_relative_to(root):
            return path
    raise InputError(f"{name!r} is not the name of a file inside {folder}: the file with this name in it is unsafe")


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process. The system removes the lock when the process ends, even if it is killed.

    Raises InputError when another run has the lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        f = (folder / ".lock").open("w")
    except OSError as e:
        raise InputError(f"cannot write into {folder}: {e.strerror}") from e
    with f:
        # On a disk without locks (None) the run goes on unguarded: better than no run at all.
        if lock(f) is False:
            raise InputError(f"another run is at work in {folder}: wait for it, or choose another folder")
        yield
