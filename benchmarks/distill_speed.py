"""Speed and memory of distillation: how much the data path costs on top of the arithmetic, as ratios in one run.

    python benchmarks/distill_speed.py            # some 10 minutes on 2 idle cores, 2 GB of disk
    python benchmarks/distill_speed.py --quick    # a minute or two, to see that it runs

Speed: the parts of a comparison take turns. A ratio is computed within each turn, and the median over the turns is
printed, so that a machine that is slow for a while does not change the result. Memory: the subcommands run as child
processes, and the memory of all their processes together is sampled (Linux only). A process holds the samples of one
shard, so each number of clips makes several shards. Audio is synthesised into a temporary folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import feeding
import numpy as np
import torch
from memory import peak_of
from start import run
from torch import Tensor

from ced_edge.audio.clips import read_manifest
from ced_edge.network.ced import CED, Attention
from ced_edge.spec import N_CLASSES, size
from distill.demo.synth import write_dataset
from distill.devices import has_fast_bf16
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack
from distill.teachers.base import Teacher
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.mobilenet import HEAD_WIDTH, MobileNet
from distill.teachers.spec import TeacherSpec, parse_teachers
from distill.teaching.store import Store, TopK
from distill.teaching.teach import Job, batch_seconds, teach
from distill.teaching.views import ViewRecipe
from distill.training.batches import TrainingData, loader
from distill.training.config import TrainConfig
from distill.training.losses import bce
from distill.training.optimizers import make_optimizers
from distill.training.train import train

RATE_HZ = 16_000
DISTINCT = 64
"""Number of different clips. Further clips are the same files under other names."""
TEACHER_WIDTH = 0.4
"""EfficientAT mn04, the smallest published teacher: with a larger teacher the data path would matter less."""


@dataclass(frozen=True)
class Settings:
    """Sizes of a run."""

    size: str = "tiny"
    batch: int = 32
    seconds: float = 10.0
    steps: int = 4
    """Steps per turn."""
    repeats: int = 3
    """Turns."""
    threads: int = os.cpu_count() or 1
    clips: int = 256
    """Clips in the pack for the speed measurements."""
    memory_clips: int = 1_024
    """Clips for the memory measurement, which also runs with ten times as many. They make at least two shards, because
    a reader holds two for a moment when it moves from one to the next."""
    memory_seconds: float = 5.0
    """Length of the clips for the memory measurement."""
    clips_per_shard: int = 512
    """For the memory measurement. For speed a shard is one batch, so that every turn reads and decodes its share."""
    feeding_seconds: float = 3.0
    """Processor time for each figure of the parts of a view."""

    @classmethod
    def quick(cls) -> Settings:
        """Sizes for a minute or two. The figures mean nothing."""
        return cls("tiny", 8, 2.0, 2, 2, os.cpu_count() or 1, 32, 16, 2.0, 8, 0.1)


class Clock:
    """A reporter that records the time of each update."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def update(self, step: int, steps: int, text: str) -> None:
        self.times[step] = time.perf_counter()


class Bench:
    """The audio, the pack, the store and the teacher for all parts, in one folder."""

    def __init__(self, s: Settings, folder: Path, teachers: list[TeacherSpec]) -> None:
        self.s, self.folder = s, folder
        torch.set_num_threads(s.threads)
        sounds = read_manifest(self.audio(s.clips, s.seconds))
        config = PackConfig(clips_per_shard=s.batch, segment_s=s.seconds)
        self.pack: Pack = pack(sounds, folder / "pack", config)
        self.recipe = ViewRecipe(windows=((2, s.seconds),))
        self.teachers = teachers or [TeacherSpec("mn", str(random_teacher(folder / "mn.pt")))]

    def audio(self, n: int, seconds: float) -> Path:
        """A manifest of n labelled clips."""
        source = self.folder / f"source-{seconds:g}"
        write_dataset(source, DISTINCT, 0, seconds=seconds, rate_hz=RATE_HZ)
        clips = read_manifest(source / "manifest.csv")
        manifest = self.folder / f"audio-{n}x{seconds:g}" / "manifest.csv"
        manifest.parent.mkdir()
        lines = ["filename,labels"]
        for i in range(n):
            clip = clips[i % DISTINCT]
            os.link(clip.path, manifest.parent / f"{i}.flac")
            lines.append(f"{i}.flac,{';'.join(map(str, clip.labels or ()))}")
        manifest.write_text("\n".join(lines) + "\n")
        return manifest

    def store(self) -> Store:
        """Random predictions for every view of the pack: the speed of training does not depend on them."""
        store = Store(self.folder / "store", self.recipe, [{"name": "random"}], 20, self.pack.hash)
        store.create()
        rng = np.random.default_rng(0)
        for epoch in store.epochs:
            for shard in self.pack.shards:
                answers = rng.uniform(0, 1, (shard.clips, N_CLASSES)).astype(np.float32) ** 8
                store.write(epoch, shard.name, TopK.top_k(answers, store.k))
        return store


def random_teacher(path: Path) -> Path:
    """Write a MobileNet checkpoint with random weights. One forward pass sets its BatchNorms."""
    torch.manual_seed(0)
    model = MobileNet(TEACHER_WIDTH)
    model(torch.randn(8, 1, 128, 200))
    assert model.state_dict()["classifier.5.weight"].shape[1] == round(HEAD_WIDTH * TEACHER_WIDTH)
    torch.save(model.state_dict(), path)
    return path


class BareStep:
    """Forward, loss, backward and optimiser step on random waveforms: no data, no log, no averaging."""

    def __init__(self, s: Settings) -> None:
        torch.manual_seed(0)
        self.s = s
        self.model = CED(size(s.size)).train()
        self.optimizers = make_optimizers(self.model, TrainConfig(size=s.size))
        self.wave = 0.1 * torch.randn(s.batch, round(s.seconds * RATE_HZ))
        self.target = torch.rand(s.batch, N_CLASSES) ** 8

    def rate(self, precision: str, fused_attention: bool) -> float:
        """Clips per second. `fused_attention` uses scaled_dot_product_attention, not the model's own attention."""
        torch.set_num_threads(self.s.threads)
        for module in self.model.modules():
            if isinstance(module, Attention):
                module.train(not fused_attention)  # without dropout, the mode decides nothing but the kernel
        self.step(precision)
        start = time.perf_counter()
        for _ in range(self.s.steps):
            self.step(precision)
        return self.s.steps * self.s.batch / (time.perf_counter() - start)

    def step(self, precision: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits: Tensor = self.model(self.wave)
        bce(logits.float(), self.target).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def loop_rate(bench: Bench, store: Store, precision: str) -> float:
    """Clips per second of `distill.training.train`, without start-up and checkpoints."""
    s = bench.s
    torch.set_num_threads(s.threads)
    config = TrainConfig(
        size=s.size, steps=2 * s.steps, batch=s.batch, precision=precision, log_every=s.steps, checkpoint_minutes=60.0
    )
    clock, run = Clock(), bench.folder / "run"
    train(run, TrainingData(bench.pack, store, store.recipe, s.batch, RATE_HZ), config, reporter=clock)
    shutil.rmtree(run)
    return s.steps * s.batch / (clock.times[2 * s.steps] - clock.times[s.steps])


def drawing_rate(bench: Bench, store: Store) -> float:
    """Clips per second of one process that only reads, decodes and renders batches."""
    torch.set_num_threads(1)
    stream = TrainingData(bench.pack, store, store.recipe, bench.s.batch, RATE_HZ)
    batches = iter(loader(stream, workers=0))
    start = time.perf_counter()
    n = sum(len(next(batches).wave) for _ in range(2 * bench.s.steps))
    return n / (time.perf_counter() - start)


def training_speed(bench: Bench) -> dict[str, Any]:
    """Rates and ratios of the training step and the whole loop."""
    store, bare = bench.store(), BareStep(bench.s)
    precisions = ["fp32", "bf16"] if has_fast_bf16("cpu") else ["fp32"]
    turns: list[dict[str, float]] = []
    for turn in range(bench.s.repeats):
        click.echo(f"training speed: turn {turn + 1} of {bench.s.repeats}", err=True)
        rates = {"views drawn by one process": drawing_rate(bench, store)}
        for p in precisions:
            rates[f"bare step, {p}"] = bare.rate(p, fused_attention=False)
            rates[f"whole loop, {p}"] = loop_rate(bench, store, p)
            rates[f"bare step, {p}, fused attention"] = bare.rate(p, fused_attention=True)
        turns.append(rates)
    pairs = {f"whole loop / bare step, {p}": (f"whole loop, {p}", f"bare step, {p}") for p in precisions}
    pairs |= {
        f"own / fused attention, {p}": (f"bare step, {p}", f"bare step, {p}, fused attention") for p in precisions
    }
    if "bf16" in precisions:
        pairs["bf16 / fp32, bare step"] = ("bare step, bf16", "bare step, fp32")
        pairs["bf16 / fp32, whole loop"] = ("whole loop, bf16", "whole loop, fp32")
    return summary(turns, pairs)


def bare_teaching_rate(bench: Bench, teachers: list[Teacher], threads: int) -> float:
    """Clips per second of the teachers alone on random waveforms at their own rates."""
    torch.set_num_threads(threads)
    s = bench.s
    n = batch_clips(bench)
    waves = {t.rate_hz: 0.1 * torch.randn(n, round(s.seconds * t.rate_hz)) for t in teachers}

    def call() -> None:
        with torch.inference_mode():
            for t in teachers:
                t(waves[t.rate_hz])

    call()
    start = time.perf_counter()
    calls = max(2, s.steps)
    for _ in range(calls):
        call()
    return calls * n / (time.perf_counter() - start)


def batch_clips(bench: Bench) -> int:
    """Clips per call of the ensemble in `teach`."""
    return max(1, int(batch_seconds(torch.device("cpu")) / bench.s.seconds))


def teaching_rate(bench: Bench, teachers: list[Teacher], workers: int) -> float:
    """Clips per second of `teach` over the pack, without the time to start its processes."""
    out = bench.folder / "taught"
    store = Store(out, bench.recipe, Ensemble(teachers, RATE_HZ).describe(), 20, bench.pack.hash)
    done: list[tuple[float, int]] = []
    teach(Job(bench.pack, store, tuple(bench.teachers)), workers, lambda n: done.append((time.perf_counter(), n)))
    shutil.rmtree(out)
    # Count from the moment when every process has finished its first shard: from then on all of them work.
    start = done[workers - 1][0]
    return sum(n for _, n in done[workers:]) / (done[-1][0] - start)


def teaching_speed(bench: Bench) -> dict[str, Any]:
    """Rates and ratios of teaching, with one process and with one process per core."""
    teachers = load_teachers(bench.teachers)
    turns: list[dict[str, float]] = []
    counts = sorted({1, bench.s.threads})
    for turn in range(bench.s.repeats):
        click.echo(f"teaching speed: turn {turn + 1} of {bench.s.repeats}", err=True)
        rates = {}
        for n in counts:
            rates[f"teachers alone, {n} threads"] = bare_teaching_rate(bench, teachers, n)
            rates[f"teach, {n} processes"] = teaching_rate(bench, teachers, n)
        turns.append(rates)
    return summary(
        turns,
        {f"teach / teachers alone, {n}": (f"teach, {n} processes", f"teachers alone, {n} threads") for n in counts},
    )


def summary(turns: list[dict[str, float]], pairs: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Median rates, and medians of the ratios that were taken within a turn."""
    rates = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    ratios = {name: statistics.median(turn[a] / turn[b] for turn in turns) for name, (a, b) in pairs.items()}
    return {"clips_per_s": rates, "ratios": ratios, "turns": turns}


def feeding_speed(bench: Bench) -> dict[str, Any]:
    """Views per second and core, and a stand-in for a GPU."""
    s = bench.s
    return feeding.measure(bench.audio(4 * s.clips, s.seconds), bench.folder, s.seconds, s.feeding_seconds)


def memory(bench: Bench) -> dict[str, Any]:
    """Peak memory of each subcommand with all its processes, for N clips and for 10 N clips."""
    return {str(n): dict(_stages(bench, n)) for n in (bench.s.memory_clips, 10 * bench.s.memory_clips)}


def _stages(bench: Bench, n: int) -> Iterator[tuple[str, dict[str, float]]]:
    s, home = bench.s, bench.folder / f"memory-{n}"
    program = [sys.executable, "-m", "ced_edge"]
    data, store, labels, run = (str(home / name) for name in ("pack", "store", "labels", "run"))
    teachers = [f"--teacher={t.name}={t.source}" for t in bench.teachers]
    shards = [f"--clips-per-shard={s.clips_per_shard}", f"--segment={s.memory_seconds}"]
    # A leak shows only after many clips, so `teach` gets short windows to finish sooner. This does not change its peak:
    # a call of the teachers always holds the same seconds of audio. Training ends with steps of full length, which need
    # the most memory.
    steps = n // s.batch + 3
    commands = {
        "pack": ["pack", str(bench.audio(n, s.memory_seconds)), f"--out={data}", *shards, f"--workers={s.threads}"],
        "teach": ["teach", f"--pack={data}", f"--out={store}", "--windows=1x1", f"--workers={s.threads}", *teachers],
        "labels": ["teach", f"--pack={data}", f"--out={labels}", "--labels"],
        "train": [
            "train", f"--pack={data}", f"--store={labels}", f"--out={run}", f"--windows=1x1,1x{s.seconds:g}",
            f"--batch={s.batch}", f"--steps={steps}", f"--size={s.size}",
        ],
    }  # fmt: skip
    for name, arguments in commands.items():
        click.echo(f"memory: {name}, {n} clips", err=True)
        start = time.perf_counter()
        peak = peak_of([*program, *arguments])
        yield name, {**peak, "seconds": time.perf_counter() - start}
    shutil.rmtree(home)


def show(result: dict[str, Any]) -> None:
    """Print the figures as a table."""
    for part in ("training", "teaching"):
        if part in result:
            click.echo(f"\n{part}")
            for name, value in result[part]["clips_per_s"].items():
                click.echo(f"  {name:44} {value:10.1f} clips/s")
            for name, value in result[part]["ratios"].items():
                click.echo(f"  {name:44} {value:10.3f}")
    if "feeding" in result:
        feeding.show(result["feeding"])
    if "memory" in result:
        click.echo("\npeak memory of all processes, MB (resident; proportional, which counts shared pages once)")
        counts = list(result["memory"])
        click.echo("  " + f"{'':12}" + "".join(f"{n + ' clips':>24}" for n in counts))
        for stage in result["memory"][counts[0]]:
            cells = [result["memory"][n][stage] for n in counts]
            row = "".join(f"{c['resident_mb']:12.0f} {c['proportional_mb']:11.0f}" for c in cells)
            click.echo(f"  {stage:12}{row}")


def machine() -> dict[str, Any]:
    """The machine and the versions that belong to the figures."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {"cpu": model, "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


@click.command()
@click.option("--quick", is_flag=True, help="Small sizes, to test that it runs. The figures mean nothing.")
@click.option(
    "--only", type=click.Choice(["training", "teaching", "feeding", "memory"]), multiple=True, help="Parts; repeat."
)
@click.option("--teacher", multiple=True, metavar="NAME=PATH", help="Repeat.  [default: an mn04 with random weights]")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Folder for the temporary files.")
@click.option("--json", "as_json", is_flag=True)
def main(
    quick: bool, only: tuple[str, ...], teacher: tuple[str, ...], work: Path | None, as_json: bool, **sizes: Any
) -> None:
    """Measure and print."""
    given = {k: v for k, v in sizes.items() if v is not None}
    s = dataclasses.replace(Settings.quick() if quick else Settings(), **given)
    parts = {"training": training_speed, "teaching": teaching_speed, "feeding": feeding_speed, "memory": memory}
    result: dict[str, Any] = {"machine": machine(), "settings": dataclasses.asdict(s)}
    with tempfile.TemporaryDirectory(dir=work, prefix="distill-speed-") as folder:
        bench = Bench(s, Path(folder), parse_teachers(teacher) if teacher else [])
        result |= {name: part(bench) for name, part in parts.items() if not only or name in only}
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        click.echo(json.dumps({**result["machine"], **result["settings"]}))
        show(result)


for _field in dataclasses.fields(Settings):
    click.option(f"--{_field.name.replace('_', '-')}", type=type(_field.default), help=f"[default: {_field.default}]")(
        main
    )


if __name__ == "__main__":
    run(main)
