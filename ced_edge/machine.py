"""Facts about the machine that runs the program."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import TextIO


def cpu_name() -> str:
    """The name of the processor, as exact as the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def redraws(stream: TextIO | None) -> bool:
    """Whether it is a terminal on which lines can be drawn again: TERM is not `dumb`, and NO_COLOR is not set."""
    # Windows sets no TERM.
    term = os.environ.get("TERM", "dumb" if os.name == "posix" else "")
    return stream is not None and stream.isatty() and term != "dumb" and not os.environ.get("NO_COLOR")
