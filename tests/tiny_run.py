"""What the training tests share: tones as clips, a pack, answers about it, and a student that learns in seconds.

As a program it is `ced-edge` whose size `tiny` is that student: `python tests/tiny_run.py train ...`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ced_edge.audio.clips import Clip, read_manifest
from ced_edge.cli import main
from ced_edge.spec import SIZES, ModelSpec
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack, read_shard
from distill.teaching.store import CLEAN_EPOCH, Store, TopK
from distill.teaching.views import ViewRecipe
from distill.training.batches import TrainingData
from distill.training.config import TrainConfig
from distill.training.log import LOG_NAME, read_log
from distill.training.loop import STATE_NAME, Interrupted
from distill.training.train import train

SMALL = ModelSpec(width=48, heads=3, depth=1)
RATE_HZ = 16_000
HERTZ = (300.0, 900.0, 2_000.0, 5_000.0)
"""The pitches of the classes 0 to 3."""
RECIPE = ViewRecipe(windows=((2, 0.4), (1, 0.6)))
QUICK = {"batch": 4, "workers": 0, "log_every": 1, "precision": "fp32", "lr": 3e-3, "ema": 0.9}
"""Training flags for tests."""


def write_tones(folder: Path, n: int, seconds: float = 0.8) -> Path:
    """Write n tones in noise and a manifest with their class, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["filename,labels,group"]
    for i in range(n):
        rng = np.random.default_rng(i)
        t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        tone = np.sin(2.0 * np.pi * HERTZ[i % 4] * rng.uniform(0.95, 1.05) * t)
        soundfile.write(folder / f"{i:03d}.wav", 0.3 * tone + 0.02 * rng.standard_normal(len(t)), RATE_HZ)
        lines.append(f"{i:03d}.wav,{i % 4},g{i % 4}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder / "clips.csv"


def make_pack(folder: Path, n: int = 24, clips_per_shard: int = 6) -> Pack:
    """A pack of n tones."""
    clips: list[Clip] = read_manifest(write_tones(folder / "audio", n))
    return pack(clips, folder / "pack", PackConfig(workers=1, clips_per_shard=clips_per_shard))


def make_store(folder: Path, packed: Pack, recipe: ViewRecipe = RECIPE, k: int = 5, clean: bool = False) -> Store:
    """The answers of a teacher that knows the tones: the class of the clip, and a little of another one."""
    store = Store(
        folder, recipe, [{"name": "ear", "sha256": "0", "rate_hz": RATE_HZ, "n_known": 4}], k, packed.hash, clean
    )
    store.create()
    for epoch in store.epochs:
        for shard in packed.shards:
            probabilities = np.full((shard.clips, 527), 1e-4, np.float32)
            for row, clip in zip(probabilities, read_shard(packed, shard), strict=True):
                assert clip.labels is not None
                row[clip.labels[0]] = 0.9
                row[(clip.labels[0] + 1 + max(epoch, 0)) % 4] = 0.2
            store.write(CLEAN_EPOCH if clean else epoch, shard.name, TopK.top_k(probabilities, k))
    return store


def make_stream(folder: Path) -> TrainingData:
    """Batches of four from 24 tones in four shards, and their answers."""
    packed = make_pack(folder)
    store = make_store(folder / "store", packed)
    return TrainingData(packed, store, store.recipe, 4, RATE_HZ)


@contextlib.contextmanager
def small_student() -> Iterator[None]:
    """Within, `tiny` is the small student, and torch has one thread as in `environment`."""
    tiny, threads = SIZES["tiny"], torch.get_num_threads()
    SIZES["tiny"] = SMALL
    torch.set_num_threads(1)
    try:
        yield
    finally:
        SIZES["tiny"] = tiny
        torch.set_num_threads(threads)


def config(**fields: Any) -> TrainConfig:
    """A quick training."""
    return TrainConfig(**{**QUICK, **fields})


class Notes:
    """A reporter that remembers; `then` is called after each step."""

    def __init__(self, then: Callable[[int], None] = lambda step: None) -> None:
        self.steps: list[int] = []
        self.texts: list[str] = []
        self.then = then

    def update(self, step: int, steps: int, text: str) -> None:
        self.steps.append(step)
        self.texts.append(text)
        self.then(step)


def learnt(run: Path) -> list[dict[str, float]]:
    """The log of a run but for what the clock decides."""
    return [{k: v for k, v in row.items() if k != "clips_per_s"} for row in read_log(run)]


def stop_at(step: int, run: Path, stream: TrainingData, chosen: TrainConfig, number: int = signal.SIGINT) -> None:
    """Train, and press Ctrl-C after a step."""

    def press(now: int) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    with contextlib.suppress(Interrupted):
        train(run, stream, chosen, reporter=Notes(press))
    assert torch.load(run / STATE_NAME, weights_only=True)["step"] == step


def command(*args: object, torchrun: int = 0) -> list[str]:
    """`ced-edge ARGS` with the small student, in `torchrun` processes if any."""
    start = [sys.executable, "-W", "error::DeprecationWarning:distill"]
    if torchrun:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(torchrun)]
    return [*start, str(Path(__file__).resolve()), *map(str, args)]


def environment() -> dict[str, str]:
    """One thread, so that sums are added up in the same order everywhere; no network."""
    root = str(Path(__file__).resolve().parents[1])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def run_command(*args: object, torchrun: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `ced-edge ARGS` to its end."""
    return subprocess.run(
        command(*args, torchrun=torchrun), env=environment(), capture_output=True, text=True, timeout=500, **options
    )


def start_command(*args: object, torchrun: int = 0) -> subprocess.Popen[str]:
    """Start `ced-edge ARGS` in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        command(*args, torchrun=torchrun),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(run: Path, n: int, process: subprocess.Popen[str]) -> None:
    """Until a training that was started has done n steps."""
    end = time.monotonic() + 300.0
    while not (run / LOG_NAME).exists() or (run / LOG_NAME).read_text().count("\n") <= n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


if __name__ == "__main__":
    SIZES["tiny"] = SMALL
    main()
