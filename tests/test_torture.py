"""Stages that are killed, or whose disk fails, at random moments: `make torture` with small numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def torture(work: Path, *options: object) -> dict[str, dict[str, int]]:
    """The counts of each stage. The program ends with an error at the first file that differs."""
    command = [sys.executable, str(HERE / "torture.py"), "--work", str(work), *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts: dict[str, dict[str, int]] = json.loads(done.stdout)
    return counts


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler: the failing disk is a small C library")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD and /proc are Linux's")
def test_kills_and_failing_disks_change_no_byte(tmp_path: Path) -> None:
    stages = ("pack", "teach", "train")
    counts = torture(tmp_path, "--kills", 20, "--failures", 12, "--seconds", 45, "--stages", ",".join(stages))
    assert tuple(counts) == stages
    for stage, found in counts.items():
        assert found.get("kills", 0) > 0, (stage, counts)
        assert found.get("ENOSPC", 0) + found.get("EROFS", 0) > 0, (stage, counts)
        assert found["equal ends"] > 0
