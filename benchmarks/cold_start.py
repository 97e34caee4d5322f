"""Which recipe leaves the plateau of the cold start fastest at equal cost: one student per recipe.

    python benchmarks/cold_start.py --pack pack --store store --out runs/cold --minutes 15 --jobs 2
    python benchmarks/cold_start.py --pack pack --store store --out runs/cold --steps 500 --only muon --only bce

On the plateau a student predicts the same for every clip. All recipes share one pack and one store. Each student trains
on one core (one process, one thread), alone or beside others (--jobs). The store holds views of 2 s and, for one
recipe, of 5 s (`ced-edge teach --windows 8x2,2x5`), or predictions for clean clips.

With --minutes, each recipe gets as many steps as fit into that time; its rate is measured first. With --steps, all get
the same number of steps, except that steps with longer windows and warm-up steps cost more, so those recipes get fewer.
Finished recipes are not run again.

Figures are means over the last 50 steps of the log. KL and BCE are the training losses against the recipe's own
targets. `muon-smallest` has other targets, so only its spread can be compared. Spread is the standard deviation of the
student's predictions over clips, divided by the teachers'. It is near 0 on the plateau.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from distill_speed import machine
from start import run

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import read_json, write_json
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model
from ced_edge.spec import size
from distill.packing.shards import Pack
from distill.teaching.store import Store
from distill.teaching.views import ViewRecipe
from distill.training.batches import TrainingData
from distill.training.config import PretrainConfig, TrainConfig
from distill.training.log import read_log
from distill.training.pretrain import pretrain
from distill.training.train import start_at_prior, train

SECONDS = 2.0
"""Default length of a recipe's windows."""
LAST = 50
"""The figures are means over this many steps at the end."""
TRIAL = 10
"""Steps for measuring a recipe's rate."""


@dataclass(frozen=True)
class Recipe:
    """One way to start."""

    what: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that differ from the defaults."""
    seconds: float = SECONDS
    warm_up: float = 0.0
    """Share of the time for the masked-autoencoder warm-up."""
    zero_branches: bool = True
    """Whether every residual branch starts at 0."""


ADAMW = {"optimizer": "adamw", "lr": 7e-4}
RECIPES = {
    "bce": Recipe("BCE only, AdamW 7e-4", {**ADAMW, "kl": 0.0, "prior_bias": False}),
    "bce-prior": Recipe("BCE only, AdamW 7e-4, head starts at the classes' mean", {**ADAMW, "kl": 0.0}),
    "kl-0.2": Recipe("KL 0.2, AdamW 7e-4", ADAMW),
    "kl-1": Recipe("KL 1, AdamW 7e-4", {**ADAMW, "kl": 1.0}),
    "muon": Recipe("KL 0.2, Muon 2e-3 (the default)"),
    "muon-no-prior": Recipe("Muon, head starts at 0", {"prior_bias": False}),
    "muon-smallest": Recipe("Muon, published rule for the classes outside the top K", {"fill": "smallest"}),
    "muon-branches": Recipe("Muon, residual branches do not start at 0", zero_branches=False),
    "muon-5s": Recipe("Muon, windows of 5 s", seconds=5.0),
    "pretrained": Recipe("Muon after a masked-autoencoder warm-up", warm_up=0.3),
}


@dataclass(frozen=True)
class Settings:
    """Settings for all recipes."""

    pack: str
    store: Path
    out: Path
    minutes: float | None = None
    """Per recipe. Give this or `steps`."""
    steps: int | None = None
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError("give --minutes or --steps")


class Lines:
    """Reports progress as a line every 50 steps."""

    def __init__(self, name: str) -> None:
        self.name = name

    def update(self, step: int, steps: int, text: str) -> None:
        if step % 50 == 0 or step == steps:
            click.echo(f"{self.name}: step {step} of {steps}, {text}", err=True)


@dataclass(frozen=True)
class Epochs(TrainingData):
    """Training data from some of a store's epochs only."""

    chosen: tuple[int, ...] = ()

    def epoch(self, turn: int) -> int:
        return self.chosen[turn % len(self.chosen)]


class Run:
    """The run of one recipe, in a folder of its own."""

    def __init__(self, name: str, s: Settings) -> None:
        self.name, self.s, self.recipe, self.folder = name, s, RECIPES[name], s.out / name
        shared: dict[str, Any] = {"batch": s.batch, "seed": s.seed, "workers": 0, "log_every": 1}
        self.config = TrainConfig(**shared, **self.recipe.changes)
        self.warm_up = PretrainConfig(**{**shared, "batch": 2 * s.batch, "seconds": self.recipe.seconds})
        self.pack, self.store = Pack.open(s.pack), Store.open(s.store)
        self.stream = self._stream()

    def _stream(self) -> TrainingData:
        seconds, config = self.recipe.seconds, self.config
        rate_hz = size(config.size).frontend.rate_hz
        if self.store.clean:
            views = ViewRecipe(seed=config.seed, windows=((10_000, seconds),))
            return TrainingData(self.pack, self.store, views, config.batch, rate_hz, fill=config.fill)
        views = self.store.recipe
        chosen = tuple(epoch for epoch in range(views.epochs) if views.seconds(epoch) == seconds)
        if not chosen:
            raise InputError(f"{self.store.path} has no views of {seconds:g} s: leave out {self.name} by --only others")
        return Epochs(self.pack, self.store, views, config.batch, rate_hz, fill=config.fill, chosen=chosen)

    def plan(self) -> dict[str, Any]:
        """Steps of training and of warm-up. They are decided once and kept, so that a continued run does not change."""
        file = self.folder / "plan.json"
        requested = {
            "minutes": self.s.minutes,
            "steps": self.s.steps,
            "pack": self.pack.hash,
            **asdict(self.recipe),
            "what": "",
        }
        requested |= {"batch": self.s.batch, "seed": self.s.seed, "store": self.store.to_dict()}
        requested = json.loads(json.dumps(requested))
        if not file.exists():
            write_json(file, {"requested": requested, **self._decide()})
        plan: dict[str, Any] = read_json(file)
        if plan["requested"] != requested:
            raise InputError(f"{self.folder} holds a run of another comparison: choose another --out")
        return plan

    def _decide(self) -> dict[str, int]:
        if self.s.minutes is None:
            assert self.s.steps is not None
            steps = self.s.steps * SECONDS / self.recipe.seconds
        else:
            steps = 60.0 * self.s.minutes / self._trial(self.train, self.config)
        warm_up = 0.0
        if share := self.recipe.warm_up:
            ratio = self._trial(self.train, self.config) / self._trial(self.pretrain, self.warm_up)
            steps, warm_up = (1.0 - share) * steps, share * steps * ratio
        return {"steps": max(1, round(steps)), "warm_up_steps": max(1, round(warm_up)) if share else 0}

    def _trial(self, go: Callable[[Path, int], Path], config: TrainConfig | PretrainConfig) -> float:
        """Seconds per step, the median of a few steps."""
        click.echo(f"{self.name}: measuring its rate", err=True)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            go(Path(folder), TRIAL)
            return statistics.median(config.batch / row["clips_per_s"] for row in read_log(Path(folder))[2:])

    def train(self, folder: Path, steps: int, pretrained: Path | None = None) -> Path:
        config = replace(self.config, steps=steps)
        model = load_model(pretrained) if pretrained else None
        if not self.recipe.zero_branches:
            torch.manual_seed(config.seed)
            model = CED(size(config.size))
        if model is not None and config.prior_bias:
            start_at_prior(model, self.stream, config.fill)
        return train(folder, self.stream, config, init=model, reporter=Lines(self.name))

    def pretrain(self, folder: Path, steps: int) -> Path:
        return pretrain(folder, self.pack, replace(self.warm_up, steps=steps), reporter=Lines(f"{self.name}, warm-up"))

    def go(self) -> None:
        """Run the stages that are not finished."""
        plan = self.plan()
        warm = self.pretrain(self.folder / "warm-up", plan["warm_up_steps"]) if plan["warm_up_steps"] else None
        self.train(self.folder / "train", plan["steps"], warm)


def figures(name: str, s: Settings) -> dict[str, Any]:
    """The figures of a finished recipe."""
    rows, warm = read_log(s.out / name / "train"), read_log(s.out / name / "warm-up")
    last = {key: statistics.fmean(row[key] for row in rows[-LAST:]) for key in rows[-1]}
    seconds = sum(s.batch / row["clips_per_s"] for row in rows)
    return {
        **{key: last[key] for key in ("kl", "bce", "spread", "teacher_spread")},
        "spread_share": last["spread"] / last["teacher_spread"],
        "clips_per_s": len(rows) * s.batch / seconds,
        "steps": len(rows),
        "warm_up_steps": len(warm),
        "seconds": seconds + sum(2 * s.batch / row["clips_per_s"] for row in warm),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table for docs/results.md."""
    click.echo(json.dumps({**result["machine"], **result["settings"]}))
    click.echo(
        "| recipe | KL | BCE | spread, share of the teachers' | steps | clips/s | seconds |\n" + "|---" * 7 + "|"
    )
    for name, f in result["recipes"].items():
        steps = f"{f['warm_up_steps']} + {f['steps']}" if f["warm_up_steps"] else f["steps"]
        numbers = f"{f['kl']:.3f} | {f['bce']:.5f} | {f['spread_share']:.3f} | {steps}"
        click.echo(f"| {RECIPES[name].what} | {numbers} | {f['clips_per_s']:.0f} | {f['seconds']:.0f} |")


def in_child(name: str) -> int:
    """Run this program for one recipe in a child process with one thread, and return its exit code."""
    command = [sys.executable, *sys.argv, "--child", name]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode


@click.command()
@click.option("--pack", required=True)
@click.option("--store", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the runs.")
@click.option("--minutes", type=float, help="Time of each recipe.")
@click.option("--steps", type=int, help="Steps of each recipe, instead of --minutes.")
@click.option("--batch", type=int, default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--only", type=click.Choice(list(RECIPES)), multiple=True, help="Recipes; repeat.  [default: all]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Recipes at a time, one core each.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--child", hidden=True)
def main(only: tuple[str, ...], jobs: int, as_json: bool, child: str | None, **settings: Any) -> None:
    """Compare and print."""
    s = Settings(**settings)
    if child:
        torch.set_num_threads(1)
        Run(child, s).go()
        return
    names = [name for name in RECIPES if not only or name in only]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        codes = dict(zip(names, pool.map(in_child, names), strict=True))
    done = [name for name, code in codes.items() if code == 0]
    result = {
        "machine": machine(),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(s).items()},
        "recipes": {name: figures(name, s) for name in done},
    }
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        show(result)
    if len(done) < len(names):
        raise CedEdgeError(f"not finished: {', '.join(n for n in names if n not in done)}; run the same again to go on")


if __name__ == "__main__":
    run(main)
