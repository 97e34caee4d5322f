"""runs/gpu.sh from its beginning to its end, on a CPU with small sizes: it must work on the day when there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import write_tones
from tiny_teach import make_teacher

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_stage_runs_on_a_cpu(tmp_path: Path) -> None:
    manifest, teacher = write_tones(tmp_path / "audio", 8, seconds=1.0), make_teacher(tmp_path)
    sizes = {"WINDOWS": "1x1", "STEPS": "2", "BATCH": "4", "RATE_S": "0.1", "RATE_BATCH": "2", "SECONDS_OF_VIEW": "1"}
    places = {"DATA": manifest, "EVAL": manifest, "TEACHERS": f"{teacher.name}={teacher.source}", "OUT": tmp_path / "o"}
    others = {"DEVICE": "cpu", "PYTHON": sys.executable, "WORKERS": "1"}
    environment = {**os.environ, **sizes, **others, **{k: str(v) for k, v in places.items()}}
    done = subprocess.run(
        [ROOT / "runs" / "gpu.sh"], env=environment, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "o" / "gpu.json").read_text())
    assert set(result["rates"]["views_per_s"]) == {
        *(f"teacher narrow, {dtype}{way}" for dtype in ("fp32", "bf16", "fp16") for way in ("", ", compiled")),
        "step, tiny, bf16",
        "step, tiny, bf16, compiled",
    }
    assert all(value > 0 for value in (*result["rates"]["views_per_s"].values(), *result["seconds"].values()))
    assert result["teach-fp32"]["views"] == 8
    assert result["reference-student"]["clips"] == 8
    assert (tmp_path / "o" / "reference" / "reference.json").exists()
