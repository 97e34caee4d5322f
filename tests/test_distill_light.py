"""`pack` and `teachers` work where torch is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchaudio", "pyarrow", "lightning_fabric", "transformers"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from ced_edge.cli import main
sys.argv = ["ced-edge", *sys.argv[1:]]
main()
"""


def call(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_pack(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for i in range(5):
        soundfile.write(tmp_path / "in" / f"{i}.wav", rng.uniform(-0.5, 0.5, 8_000), 16_000)
    for workers in (1, 2):
        done = call("pack", tmp_path / "in", "--out", tmp_path / f"out{workers}", "--workers", workers, "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["clips"], result["shards"], result["rejected"]) == (5, 1, 0)


def test_teachers() -> None:
    done = call("teachers", "--json")
    assert done.returncode == 0, done.stderr
    assert "ced-tiny" in {teacher["name"] for teacher in json.loads(done.stdout)}
    done = call("teachers", "--fetch", "mn10_as")
    assert done.returncode == 2
    assert "no hash of mn10_as is on record" in done.stderr
