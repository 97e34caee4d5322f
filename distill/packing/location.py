"""Where a pack or a store lies: a local folder, a folder of a web server, or a folder of a cloud bucket.

The kind of place follows from the location alone, as the user gave it. Nothing that is read from a file can change
it, and no location is ever given to a shell.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ced_edge.errors import InputError, first_line

log = logging.getLogger(__name__)

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each new try, when a server fails."""
REMOTE = ("http", "https", "s3", "gs")
_EXTRA = {"http": "train", "https": "train", "s3": "cloud", "gs": "cloud"}
_CONNECT_S = 30.0
_SILENT_S = 60.0
"""A web server that sends nothing for this long has failed. How long a whole file takes is not limited."""


def scheme(location: str) -> str | None:
    """`http`, `https`, `s3` or `gs`; None for a local folder. Raises InputError for every other kind of address."""
    places = "give a folder, or an address that starts with http://, https://, s3:// or gs://"
    if location.startswith("pipe:"):
        raise InputError(f"{location}: nothing is read through a command: {places}")
    address = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", location)
    if address is None:
        return None
    if address[1] not in REMOTE:
        raise InputError(f"{location}: nothing is read from {address[1]}://: {places}")
    return address[1]


def join(location: str, name: str) -> str:
    """The path or address of the file `name` of a location."""
    return str(Path(location) / name) if scheme(location) is None else f"{location.rstrip('/')}/{name}"


class Reader:
    """A file that is read once, front to back. It hashes what it reads, and never reads more than `most_bytes`.

    A server may fail now and then. The file is then opened again after a while, and read on from where it was.
    """

    def __init__(self, kind: str | None, path: str, mend: str, most_bytes: int) -> None:
        """Open the file. Raises InputError, with `mend`, when it cannot be read."""
        self._kind, self._path, self._mend = kind, path, mend
        self._most_bytes, self._bytes = most_bytes, 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._patiently(lambda _: b"")

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size` of them; none at the end. Raises InputError."""
        block = self._patiently(lambda file: file.read(size))
        self._bytes += len(block)
        if self._bytes > self._most_bytes:
            raise InputError(f"{self._path} is larger than {self._most_bytes} bytes: {self._mend}")
        self._hash.update(block)
        return block

    def _patiently(self, use: Callable[[BinaryIO], bytes]) -> bytes:
        """Use the open file. When a server fails, wait and try again, longer each time. Raises InputError."""
        with _one_line(self._path, self._mend):
            for wait_s in WAITS_S if self._kind else ():
                try:
                    return use(self._opened())
                except Exception as e:
                    if not _may_pass(e):
                        raise
                    log.info("%s: %s; trying again in %g s", self._path, first_line(_cause(e)), wait_s)
                    self.close()
                    time.sleep(wait_s * random.uniform(0.5, 1.5))  # many readers should not come back at once
            return use(self._opened())

    def _opened(self) -> BinaryIO:
        """The file, where it was read up to."""
        if self._file is None:
            self._file = _open(self._kind, self._path)
            skipped = 0
            while skipped < self._bytes:
                if not (block := self._file.read(min(1 << 20, self._bytes - skipped))):
                    raise ValueError("the file has become shorter")
                skipped += len(block)
        return self._file

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(Exception):  # a failed connection may fail once more
                self._file.close()
        self._file = None

    def blocks(self) -> Iterator[bytes]:
        """What is left of the file, in blocks."""
        while block := self.read(1 << 20):
            yield block

    def sha256(self) -> str:
        """SHA-256 of what was read so far, as hex."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def open_file(location: str, name: str, mend: str, most_bytes: int) -> Iterator[Reader]:
    """The file `name` of a location. Raises InputError with `mend`, here and from `read`, when it cannot be read."""
    with contextlib.closing(Reader(scheme(location), join(location, name), mend, most_bytes)) as reader:
        yield reader


def _may_pass(error: Exception) -> bool:
    """Whether it is worth trying again: not for a missing file, missing rights, or a missing library."""
    cause = _cause(error)
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)  # the server is busy, or the client too fast
    return not isinstance(cause, FileNotFoundError | PermissionError | InputError | ImportError)


def _cause(error: BaseException) -> BaseException:
    """fsspec reports a web server that is out of reach as a missing file, too: the cause is what happened."""
    return error.__cause__ or error if isinstance(error, FileNotFoundError) else error


def _open(kind: str | None, path: str) -> BinaryIO:
    """A path or address, open for reading."""
    if kind is None:
        return Path(path).open("rb")
    try:
        # The file system is made here and not kept: fsspec's do not survive the fork of a data loader.
        import fsspec

        if kind not in ("http", "https"):
            file: BinaryIO = fsspec.filesystem(kind).open(path, "rb")
            return file
        import aiohttp

        # aiohttp's default allows five minutes for a whole file, which a shard on a slow line exceeds.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENT_S)
        system = fsspec.filesystem(kind, client_kwargs={"timeout": timeout})
        stream: BinaryIO = system.open(path, "rb", block_size=0)  # 0: one request for the whole file
        return stream
    except ImportError as e:
        library = {"s3": "s3fs", "gs": "gcsfs"}.get(kind, e.name)
        raise InputError(f"reading {kind}:// needs {library}: pip install '.[{_EXTRA[kind]}]'") from e


@contextlib.contextmanager
def _one_line(path: str, mend: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as e:  # the disk's errors, and those of each HTTP and cloud client
        cause = _cause(e)
        if isinstance(cause, FileNotFoundError):
            raise InputError(f"no such file: {path}; {mend}") from e
        raise InputError(f"cannot read {path} ({first_line(cause)}): {mend}") from e
