"""Peak memory of a command and all its child processes, sampled from /proc (Linux only)."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ced_edge.errors import CedEdgeError

RESIDENT_EVERY_S = 0.02
PROPORTIONAL_EVERY_S = 0.25
"""The kernel walks over all pages to compute the proportional size. To read it more often would slow the command."""


def peak_of(command: Sequence[str]) -> dict[str, float]:
    """Run a command and return its highest `resident_mb` and `proportional_mb` in megabytes (10^6 bytes).

    Resident counts pages that processes share (libraries, pages of a fork) once per process, so it is never too low.
    Proportional counts them once. Raises CedEdgeError with the end of the command's output if it fails.
    """
    resident = proportional = 0
    read_at = 0.0
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stdout=words, stderr=words)
        try:
            while process.poll() is None:
                pids = family(process.pid)
                resident = max(resident, sum(map(resident_bytes, pids)))
                if time.monotonic() - read_at > PROPORTIONAL_EVERY_S:
                    proportional = max(proportional, sum(map(proportional_bytes, pids)))
                    read_at = time.monotonic()
                time.sleep(RESIDENT_EVERY_S)
        finally:
            process.kill()
        if process.returncode:
            words.seek(0)
            tail = words.read().decode(errors="replace").strip().splitlines()[-3:]
            raise CedEdgeError(f"{' '.join(command)} failed: {' / '.join(tail)}")
    return {"resident_mb": resident / 1e6, "proportional_mb": proportional / 1e6}


def family(pid: int) -> list[int]:
    """The process ids of a process and of all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        children.setdefault(_parent(folder), []).append(int(folder.name))
    members = [pid]
    for member in members:  # the list grows during this loop
        members += children.get(member, [])
    return members


def _parent(folder: Path) -> int:
    try:
        # The second field is the name of the program in brackets. The name may contain blanks and brackets, so split
        # after the last bracket.
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # the process has ended
        return -1


def resident_bytes(pid: int) -> int:
    """Resident memory in bytes; 0 if the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def proportional_bytes(pid: int) -> int:
    """Proportional set size in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
