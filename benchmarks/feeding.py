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
from distill.teaching.rendering import Views
from distill.teaching.store import Store
from distill.teaching.teach import Job, Prediction, TeachWorker, teach_from_feed, units
from distill.teaching.views import ViewRecipe, draw, render

SHARES = (0.5, 0.9)
"""Rates of the stand-in, as shares of what the renderers can deliver."""
SHARDS = 8
STUDENT_HZ = 16_000
PACK_HZ = 32_000
"""A pack for teachers of 32 kHz. The student's views are resampled from it."""


class StandIn(TeachWorker):
    """Teachers on a GPU that does its batches one after another, at a fixed rate, while this process goes on."""

    def __init__(self, job: Job, views_per_s: float) -> None:
        """`views_per_s` 0 stands for a GPU that takes no time."""
        self.views_per_s = views_per_s
        self.first_s: float | None = None
        self.free_at = self.idle_s = 0.0
        self.views = 0
        super().__init__(job, NoTeachers())  # type: ignore[arg-type]  # it has only what a TeachWorker reads

    def start(self, views: Views) -> Prediction:
        now = time.perf_counter()
        if self.first_s is None:
            self.first_s = self.free_at = now  # what comes before the first batch is the start of the processes
        self.views += len(views.ids)
        self.idle_s += max(0.0, now - self.free_at)
        self.free_at = max(self.free_at, now) + (len(views.ids) / self.views_per_s if self.views_per_s else 0.0)
        return Due(views, PROBS[: len(views.ids)], self.free_at)


class Due(Prediction):
    """A prediction that is there at a certain time."""

    def __init__(self, views: Views, probs: Tensor, at: float) -> None:
        super().__init__(views, probs)
        self.at = at

    def wait(self) -> None:
        time.sleep(max(0.0, self.at - time.perf_counter()))


class NoTeachers:
    """What a `TeachWorker` wants to know of its teachers."""

    device = torch.device("cpu")

    def describe(self) -> list[dict[str, Any]]:
        return DESCRIBED


DESCRIBED: list[dict[str, Any]] = [{"name": "stand-in"}]
PROBS = torch.rand(1_024, N_CLASSES, generator=torch.Generator().manual_seed(0)) ** 8


def run_stand_in(pack: Pack, recipe: ViewRecipe, folder: Path, renderers: int, views_per_s: float) -> StandIn:
    """Fill a store by a stand-in of this rate, and return it with its figures."""
    store = Store(folder / "fed", recipe, DESCRIBED, 20, pack.hash)
    store.create()
    stand_in = StandIn(Job(pack, store, ()), views_per_s)
    teach_from_feed(stand_in, units(stand_in.job), renderers, lambda _: None)
    shutil.rmtree(store.path)
    return stand_in


def kept_busy(pack: Pack, recipe: ViewRecipe, folder: Path, renderers: int) -> dict[str, Any]:
    """What so many renderers deliver, and the share of its rate that a stand-in reached at several rates below it."""

    def most() -> float:
        endless = run_stand_in(pack, recipe, folder, renderers, 0.0)
        return endless.views / (endless.free_at - (endless.first_s or 0.0))

    before = most()
    stand_ins = {f"{share:g}": run_stand_in(pack, recipe, folder, renderers, share * before) for share in SHARES}
    shares = {share: 1.0 - s.idle_s / (s.free_at - (s.first_s or 0.0)) for share, s in stand_ins.items()}
    return {"renderers": renderers, "views_per_s": before, "views_per_s_again": most(), "share_of_its_rate": shares}


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
