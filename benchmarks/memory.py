"""Peak memory of a command with all its child processes, sampled from /proc (Linux only)."""

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
"""The kernel walks all pages to tell the proportional size: not to be asked often."""


def peak_of(command: Sequence[str]) -> dict[str, float]:
    """Run a command to its end: its highest `resident_mb` and `proportional_mb` in megabytes (10^6 bytes).

    Resident counts what processes share (libraries, a fork's pages) once for each of them, so it is never too low;
    proportional counts it once. Raises CedEdgeError with the command's last words when it fails.
    """
    resident = proportional = 0
    asked = 0.0
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stdout=words, stderr=words)
        try:
            while process.poll() is None:
                pids = family(process.pid)
                resident = max(resident, sum(map(resident_bytes, pids)))
                if time.monotonic() - asked > PROPORTIONAL_EVERY_S:
                    proportional = max(proportional, sum(map(proportional_bytes, pids)))
                    asked = time.monotonic()
                time.sleep(RESIDENT_EVERY_S)
        finally:
            process.kill()
        if process.returncode:
            words.seek(0)
            tail = words.read().decode(errors="replace").strip().splitlines()[-3:]
            raise CedEdgeError(f"{' '.join(command)} failed: {' / '.join(tail)}")
    return {"resident_mb": resident / 1e6, "proportional_mb": proportional / 1e6}


def family(pid: int) -> list[int]:
    """A process and all that it started, and those that these started."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        children.setdefault(_parent(folder), []).append(int(folder.name))
    found = [pid]
    for member in found:  # grows while it is walked
        found += children.get(member, [])
    return found


def _parent(folder: Path) -> int:
    try:
        # The second field is the program's name in brackets, which may itself hold blanks and brackets.
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return -1


def resident_bytes(pid: int) -> int:
    """Resident memory, 0 when the process has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def proportional_bytes(pid: int) -> int:
    """Proportional set size, 0 when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
