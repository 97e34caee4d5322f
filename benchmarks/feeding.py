"""How fast views are made: each part alone per core, and a stand-in for a GPU that several processes must keep busy.

`benchmarks/distill_speed.py --only feeding` runs this.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import soxr
import torch
from torch import Tensor

from ced_edge.audio.clips import read_manifest
from ced_edge.spec import N_CLASSES
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import LoadedShard, Pack, ShardReader, read_shard
from distill.teaching.store import Store
from distill.teaching.teach import Job, TeachWorker, teach_from_feed, units
from distill.teaching.views import ViewRecipe, draw, render

SHARES = (0.5, 0.9)
"""Rates of the stand-in, as shares of what the renderers can deliver."""
SHARDS = 8
STUDENT_HZ = 16_000
PACK_HZ = 32_000
"""A pack for teachers of 32 kHz. The student's views are resampled from it."""


class StandIn:
    """In place of an ensemble on a GPU: it predicts at a fixed rate, and sleeps in the meantime."""

    device = torch.device("cpu")

    def __init__(self, views_per_s: float) -> None:
        """`views_per_s` 0 stands for a GPU that takes no time."""
        self.views_per_s = views_per_s
        self.busy_s = 0.0
        rng = np.random.default_rng(0)
        self._probs = torch.from_numpy(rng.uniform(0, 1, (4_096, N_CLASSES)).astype(np.float32) ** 8)

    def describe(self) -> list[dict[str, Any]]:
        return [{"name": "stand-in"}]

    def __call__(self, wave: Tensor) -> Tensor:
        if self.views_per_s:
            self.busy_s += len(wave) / self.views_per_s
            time.sleep(len(wave) / self.views_per_s)
        return self._probs[: len(wave)]


def fed_rate(pack: Pack, recipe: ViewRecipe, folder: Path, renderers: int, stand_in: StandIn) -> float:
    """Views per second that a stand-in got, from its first finished unit to its last one."""
    out = folder / "fed"
    store = Store(out, recipe, stand_in.describe(), 20, pack.hash)
    job = Job(pack, store, ())
    store.create()
    done: list[tuple[float, int]] = []
    worker = TeachWorker(job, stand_in)  # type: ignore[arg-type]
    teach_from_feed(worker, units(job), renderers, lambda n: done.append((time.perf_counter(), n)))
    shutil.rmtree(out)
    # From the first unit of the last process on, all of them work.
    first = min(renderers, len(done) - 2)
    return sum(n for _, n in done[first + 1 :]) / (done[-1][0] - done[first][0])


def kept_busy(pack: Pack, recipe: ViewRecipe, folder: Path, renderers: int) -> dict[str, Any]:
    """What so many renderers deliver, and the share of its rate that a stand-in reached at several rates below it."""
    most = fed_rate(pack, recipe, folder, renderers, StandIn(0.0))
    reached = {f"{share:g}": fed_rate(pack, recipe, folder, renderers, StandIn(share * most)) for share in SHARES}
    again = fed_rate(pack, recipe, folder, renderers, StandIn(0.0))
    shares = {share: rate / (float(share) * most) for share, rate in reached.items()}
    return {"renderers": renderers, "views_per_s": most, "views_per_s_again": again, "share_of_its_rate": shares}


def per_core(work: Callable[[], int], least_s: float) -> float:
    """Views per second of processor time of this process, whose arithmetic must be in one thread."""
    work()
    start, n = time.process_time(), 0
    while time.process_time() - start < least_s:
        n += work()
    return n / (time.process_time() - start)


def parts(pack: Pack, seconds: float, least_s: float) -> dict[str, float]:
    """Views per second and core of each part of making a view of so many seconds."""
    torch.set_num_threads(1)
    shard = pack.shards[0]
    loaded: LoadedShard = ShardReader(pack).load(shard)
    recipe = ViewRecipe(windows=((1_000, seconds),))
    epochs = itertools.cycle(range(1_000))
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.5, 0.5, round(seconds * PACK_HZ)).astype(np.float32)

    def rendered(chosen: ViewRecipe) -> Callable[[], int]:
        def work() -> int:
            epoch = next(epochs)
            for i in range(len(loaded.ids)):
                render(draw(chosen, epoch, i, loaded.ids), loaded.waves, loaded.rms, pack.rate_hz)
            return len(loaded.ids)

        return work

    def drawn() -> int:
        epoch = next(epochs)
        return len([draw(recipe, epoch, i, loaded.ids) for i in range(len(loaded.ids))])

    plain = ViewRecipe(windows=recipe.windows, mask_probability=0.0)
    one = ViewRecipe(windows=recipe.windows, mask_probability=0.0, mix=(1.0,))
    return {
        "read and decode the whole clip": per_core(lambda: len(read_shard(pack, shard)), least_s),
        "read, decode and RMS of the whole clip": per_core(lambda: len(ShardReader(pack).load(shard).ids), least_s),
        "draw": per_core(drawn, least_s),
        "draw and render": per_core(rendered(recipe), least_s),
        "draw and render, no masks": per_core(rendered(plain), least_s),
        "draw and render, no masks, no mixing": per_core(rendered(one), least_s),
        "resample from 32 to 16 kHz": per_core(lambda: len([soxr.resample(wave, PACK_HZ, STUDENT_HZ)]), least_s),
    }


def measure(manifest: Path, folder: Path, seconds: float, least_s: float) -> dict[str, Any]:
    """All figures of this page for clips of so many seconds. `least_s` is the processor time per figure."""
    clips = read_manifest(manifest)
    # A file of the store has as many views as a shard has clips. With few, most of the time would go into writing.
    config = PackConfig(clips_per_shard=max(1, len(clips) // SHARDS), segment_s=seconds)
    packed = pack(clips, folder / "feeding-pack", config)
    click.echo("feeding: parts of a view", err=True)
    alone = {f"{length:g}": parts(packed, length, least_s) for length in sorted({2.0, seconds})}
    busy = []
    for renderers in sorted({1, os.cpu_count() or 1}):
        click.echo(f"feeding: {renderers} renderers", err=True)
        recipe = ViewRecipe(windows=((4, seconds),))
        busy.append(kept_busy(packed, recipe, folder, renderers))
    return {"clip_seconds": seconds, "views_per_core_s": alone, "stand_in": busy}


def show(result: dict[str, Any]) -> None:
    """Print the figures."""
    click.echo(f"\nviews per second and core, from clips of {result['clip_seconds']:g} s")
    for seconds, figures in result["views_per_core_s"].items():
        for name, rate in figures.items():
            click.echo(f"  views of {seconds:>3} s: {name:44} {rate:10.0f}")
    click.echo("\na stand-in for a GPU, which sleeps at a fixed rate")
    for row in result["stand_in"]:
        shares = ", ".join(f"{v:.1%} of its rate at {float(k):.0%}" for k, v in row["share_of_its_rate"].items())
        rates = f"{row['views_per_s']:.0f} (later {row['views_per_s_again']:.0f}) views/s"
        click.echo(f"  {row['renderers']} renderers deliver {rates}; the stand-in reached {shares} of that")
