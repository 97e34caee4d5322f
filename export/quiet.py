"""Silence around converters that talk a lot: what they said is shown only when they fail."""

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
    """Catch stdout and stderr of this process, C++ included, and its warnings; print them if an exception passes."""
    sys.stdout.flush()
    sys.stderr.flush()
    level = logging.root.manager.disable
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        saved = [os.dup(fd) for fd in (1, 2)]
        try:
            for fd in (1, 2):
                os.dup2(said.fileno(), fd)
            yield
        except Exception:
            sys.stdout.flush()
            sys.stderr.flush()
            said.seek(0)
            os.write(saved[1], said.read())
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, old in zip((1, 2), saved, strict=True):
                os.dup2(old, fd)
                os.close(old)
            logging.disable(level)
