"""Latency, load time and memory of a bundle, and the child processes that they are measured in."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import shared_bundle

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.frontend import log_mel
from ced_edge.proof import bench
from ced_edge.proof.targets import Target, install_advice, targets
from ced_edge.proof.worker import Worker
from ced_edge.runtime import backends
from ced_edge.runtime.backends import installed
from ced_edge.runtime.tagger import Tagger


@pytest.fixture(scope="module")
def target() -> Target:
    return targets(shared_bundle())[0]


# The child process.


def test_a_worker_predicts_as_the_tagger(target: Target) -> None:
    wave = bench.window(target.bundle)[:20_000]
    with Worker(target) as w:
        np.testing.assert_array_equal(w.predict(wave), Tagger(target.bundle).predict(wave))
        assert w.stream_difference(np.tile(wave, 4), [320, 1, 50_000, 7]) == 0.0
        seconds = w.seconds(wave, 4)
        assert len(seconds) == 4
        assert min(seconds) > 0
        assert w.load_s > 0
        assert not w.fixed
        assert w.runtime.startswith("onnxruntime ")
        peak = w.peak_mb()
    assert peak is None or 20 < peak < 2_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems report memory in other ways")
def test_the_peak_is_the_childs_own(target: Target) -> None:
    """Not what this process held when it started the child, as ru_maxrss would have it."""
    ballast = np.ones(300_000_000 // 8)
    with Worker(target) as w:
        assert (w.peak_mb() or 0) < 300
    assert ballast[0] == 1


def test_errors_of_a_worker_are_raised_here_and_it_goes_on(target: Target) -> None:
    with Worker(target) as w:
        with pytest.raises(InputError, match="there are no samples to predict"):
            w.predict(np.empty(0, np.float32))
        with pytest.raises(InputError, match="NaN"):
            w.predict(np.full(20_000, np.nan, np.float32))
        assert w.predict(np.zeros(20_000, np.float32)).shape == (527,)


def test_a_worker_that_died_is_named(target: Target) -> None:
    with Worker(target) as w:
        w._process.kill()
        w._process.wait()
        with pytest.raises(CedEdgeError, match=r"24x2-fp32\.onnx on onnxruntime died \(exit code -9\)"):
            w.predict(np.zeros(20_000, np.float32))


def test_a_worker_that_cannot_load_leaves_no_process(target: Target, tmp_path: Path) -> None:
    moved = dataclasses.replace(target, bundle=dataclasses.replace(target.bundle, folder=tmp_path / "none"))
    before = set(os.listdir("/proc")) if sys.platform == "linux" else set()
    with pytest.raises(InputError, match="no such bundle"):
        Worker(moved)
    with pytest.raises(InputError, match="has no x file"):
        Worker(dataclasses.replace(target, file=dataclasses.replace(target.file, name="x")))
    if before:
        children = [p for p in Path("/proc").glob("[0-9]*/stat") if p.parent.name not in before]
        assert not [p for p in children if _parent(p) == os.getpid()]


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_every_installed_runtime_is_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed("onnx") == ["onnxruntime"]
    # Modules of the standard library stand for runtimes.
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", (("json.tool", "a"), ("no_such.module", "b"), ("csv", "c")))
    assert installed("tflite") == ["a", "c"]
    bundle = shared_bundle()
    tflite = dataclasses.replace(bundle.files[0], name="24x2-fp32.tflite")
    bundle = dataclasses.replace(bundle, files=(*bundle.files, tflite))
    found = [(t.file.format, t.runtime) for t in targets(bundle)]
    assert found == [("onnx", "onnxruntime"), ("tflite", "a"), ("tflite", "c")]
    assert [t.runtime for t in targets(bundle, format="tflite")] == ["a", "c"]
    assert [t.file.format for t in targets(bundle, "c")] == ["tflite"]
    with pytest.raises(InputError, match=r"runs on 'b' here: there is a, c, onnxruntime"):
        targets(bundle, "b")
    with pytest.raises(InputError, match="has no int8 file"):
        targets(bundle, kind="int8")
    monkeypatch.setattr(backends, "ONNX_RUNTIMES", (("no_such_module", "onnxruntime"),))
    assert [t.runtime for t in targets(bundle)] == ["", "a", "c"]


@pytest.mark.parametrize(
    ("suffixes", "packages"),
    [(["onnx"], "onnxruntime"), (["tflite"], "ai-edge-litert"), (["tflite", "onnx"], "ai-edge-litert onnxruntime")],
)
def test_the_advice_names_the_runtime_of_the_files_format(target: Target, suffixes: list[str], packages: str) -> None:
    files = [dataclasses.replace(target.file, name=f"x.{suffix}") for suffix in suffixes]
    missing = [dataclasses.replace(target, file=file, runtime="") for file in files]
    assert install_advice(missing) == f"nothing here runs {', '.join(f.name for f in files)}: pip install {packages}"


def test_what_the_child_prints_does_not_break_its_answers() -> None:
    """Runtimes print from C++, right to the file descriptor of stdout."""
    code = (
        "import os, sys; from ced_edge.proof import worker\n"
        "worker._Served.peak_mb = lambda self: os.system('echo loud') or print('louder', flush=True) or 1.5\n"
        "worker.serve()"
    )
    root = Path(__file__).resolve().parents[1]
    child = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(("peak_mb", ())), cwd=root, capture_output=True, check=True
    )
    assert pickle.loads(child.stdout) == 1.5
    assert child.stderr.split() == [b"loud", b"louder"]


# Timing.


class FakeWorker:
    """Is slower in its second round."""

    def __init__(self, target: Target, order: list[str], name: str) -> None:
        self.target, self.order, self.name, self.round = target, order, name, 0

    def seconds(self, wave: Any, repeats: int) -> list[float]:
        assert wave.shape == (self.target.bundle.window_samples,)
        self.order.append(self.name)
        self.round += 1
        return [0.01 * self.round] * repeats


def test_files_take_turns(target: Target) -> None:
    order: list[str] = []
    workers: Any = [FakeWorker(target, order, name) for name in "ab"]
    seconds = bench.time_rounds(workers, rounds=3, repeats=2)
    assert order == list("ababab")
    np.testing.assert_allclose(seconds, [[[0.01] * 2, [0.02] * 2, [0.03] * 2]] * 2)
    assert bench.spread(seconds[0]) == pytest.approx(1.0)


def test_bench_reports_every_figure(target: Target) -> None:
    one, two = bench.bench([target], threads=(1, 2), rounds=2, repeats=2, cold=1)
    assert (one.threads, two.threads) == (1, 2)
    for t in (one, two):
        assert 0 < t.median_ms <= t.p95_ms
        assert t.real_time_factor == pytest.approx(t.median_ms / 2_000)
        assert t.cold_ms > t.load_ms > 0
        assert t.size_mb == target.file.bytes / 1e6
        assert t.file == str(target.bundle.path(target.file))
        assert t.spread >= 0


# The input that is timed.


def test_the_window_is_loud_enough_and_always_the_same(target: Target) -> None:
    wave = bench.window(target.bundle)
    assert wave.shape == (32_000,)
    np.testing.assert_array_equal(wave, bench.window(target.bundle))
    mel = log_mel(wave, target.bundle.spec.frontend)
    assert mel.max() - mel.min() > 10
