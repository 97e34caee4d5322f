"""The clock of a long stream, in a short version of the benchmark: 48 kHz stereo with outages and level jumps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "long_stream.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    pytest.importorskip("resource", reason="the peak memory is read with the module resource")
    spec = importlib.util.spec_from_file_location("long_stream", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_clock_of_a_stream_with_outages_is_exact_to_the_sample(benchmark: Any) -> None:
    found = benchmark.run(hours=0.15, seed=1, segment_s=(20, 120))
    assert found["gaps"] == found["outages"] > 0
    assert found["skipped"] == found["events_across_a_gap"] == 0
    assert found["clicks"] > 300
    assert (found["worst_click_samples"], found["end_samples_off"]) == (0, 0)
    assert found["worst_time_of_day_s"] < 0.001


def test_the_benchmark_sees_a_clock_that_is_one_sample_off(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = benchmark.StreamingTagger.reset
    monkeypatch.setattr(benchmark.StreamingTagger, "reset", lambda stream, at=0: real(stream, at + (at > 0)))
    found = benchmark.run(hours=0.15, seed=1, segment_s=(20, 120))
    assert found["worst_click_samples"] > 0
    assert found["end_samples_off"] == 1
