"""Keep the output of the converters off the terminal, and print it only if they fail."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Catch stdout and stderr of this process, also from C++, and print them to stderr if an exception passes.

    Warnings and log records up to WARNING are dropped, in all threads.
    """
    # C++ code writes to the file descriptors 1 and 2, which redirect_stdout does not change. So the descriptors
    # themselves are pointed to a file, after Python's own buffers are empty.
    sys.stdout.flush()
    sys.stderr.flush()
    level = logging.root.manager.disable
    with tempfile.TemporaryFile() as output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        saved = [os.dup(fd) for fd in (1, 2)]
        try:
            for fd in (1, 2):
                os.dup2(output.fileno(), fd)
            yield
        except Exception:
            sys.stdout.flush()
            sys.stderr.flush()
            output.seek(0)
            os.write(saved[1], output.read())
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, old in zip((1, 2), saved, strict=True):
                os.dup2(old, fd)
                os.close(old)
            logging.disable(level)
