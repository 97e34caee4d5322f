"""Keep notes of C libraries off the terminal. mpg123, inside libsndfile, prints them on `stderr` of C."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def quiet_c() -> Iterator[None]:
    """While this is open, in any thread, `stderr` of C is /dev/null. `sys.stderr` of Python is not affected.

    File descriptor 2 stays as it is, because other threads may write to it. Works with glibc and on macOS.
    """
    global _users
    stream, null = _streams()
    if stream is None:
        yield
        return
    with _lock:
        if _users == 0:
            _shown[0], stream.value = stream.value, null
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                stream.value = _shown[0]


_shown: list[int | None] = [None]
"""The `FILE *` that was replaced."""


@functools.cache
def _streams() -> tuple[ctypes.c_void_p | None, int | None]:
    """The variable `stderr` of C, and an open `FILE *` of /dev/null; None where the variable cannot be written."""
    is_glibc = platform.libc_ver()[0] == "glibc"
    if not (is_glibc or platform.system() == "Darwin"):
        return None, None
    try:
        library = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(library, "stderr" if is_glibc else "__stderrp")
        library.fopen.restype = ctypes.c_void_p
        null = library.fopen(os.devnull.encode(), b"w")
    except (OSError, ValueError, AttributeError):
        return None, None
    return (stream, null) if null else (None, None)
