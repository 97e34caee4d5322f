"""Training speed on an idle machine and beside four busy processes of the lowest priority.

    python benchmarks/busy_machine.py              # some 4 minutes, 2 of them busy

One process per variant runs the demonstration's training step with its own renderer, and the variants take turns, so a
machine that slows down for a while slows down all of them. A variant is how threads wait for each other (OpenMP's
default spins, `passive` sleeps) and the niceness of the renderers. `waits` is the share of the time in which a step has
no batch yet: if it is high, the renderers are what slows training down.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

VARIANTS = {
    "default, nice 19": ({"GOMP_SPINCOUNT": "300000"}, 19),  # what libgomp does without any setting
    "passive, nice 19": ({"OMP_WAIT_POLICY": "PASSIVE"}, 19),
    "passive, nice 10": ({"OMP_WAIT_POLICY": "PASSIVE"}, 10),
    "passive, nice 0": ({"OMP_WAIT_POLICY": "PASSIVE"}, 0),
}
BATCH, SECONDS, RATE_HZ, CLIPS = 32, 2.0, 16_000, 256
PREFETCHED = 8
"""Batches that the loader keeps ready. They are thrown away first: their rendering was not part of the time."""


def make_data(folder: Path) -> None:
    """A pack of short clips, and a store with random predictions."""
    import numpy as np

    from ced_edge.audio.clips import read_manifest
    from ced_edge.spec import N_CLASSES
    from distill.demo.synth import write_dataset
    from distill.packing.pack import PackConfig, pack
    from distill.teaching.store import Store, TopK
    from distill.teaching.views import ViewRecipe

    manifest = write_dataset(folder / "audio", CLIPS, 0)
    packed = pack(read_manifest(manifest), folder / "pack", PackConfig(clips_per_shard=CLIPS // 2))
    store = Store(folder / "store", ViewRecipe(windows=((8, SECONDS),)), [{"name": "random"}], 20, packed.hash)
    store.create()
    rng = np.random.default_rng(0)
    for epoch, shard in itertools.product(store.epochs, packed.shards):
        store.write(epoch, shard.name, TopK.top_k(rng.random((shard.clips, N_CLASSES), np.float32) ** 8, store.k))


def child(folder: Path, niceness: int) -> None:
    """For each number of seconds on stdin, train for that long and print clips per second and the share of waiting."""
    import torch

    from ced_edge.network.ced import CED
    from ced_edge.spec import size
    from distill.devices import has_fast_bf16
    from distill.packing.shards import Pack
    from distill.teaching.store import Store
    from distill.training import batches
    from distill.training.config import TrainConfig
    from distill.training.losses import bce
    from distill.training.optimizers import make_optimizers

    batches.RENDERER_NICENESS = niceness
    packed, store = Pack.open(folder / "pack"), Store.open(folder / "store")
    loader = batches.loader(batches.TrainingData(packed, store, store.recipe, BATCH, RATE_HZ))
    torch.manual_seed(0)
    model = CED(size("tiny")).train()
    optimizers = make_optimizers(model, TrainConfig())

    def step() -> float:
        """One step; the seconds that it waited for its batch."""
        start = time.perf_counter()
        batch = next(loader)
        waited = time.perf_counter() - start
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16("cpu")):
            logits = model(batch.wave)
        bce(logits.float(), batch.target).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return waited

    step()
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(PREFETCHED):
            next(loader)
        start, steps, waited = time.perf_counter(), 0, 0.0
        while not steps or time.perf_counter() - start < float(line):
            waited += step()
            steps += 1
        seconds = time.perf_counter() - start
        print(json.dumps([steps * BATCH / seconds, waited / seconds]), flush=True)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """That many processes of the lowest priority that never rest."""
    code = "import os\nos.nice(19)\nwhile True: pass"
    # In this session, so that their priority counts: Linux compares priorities only within a session (autogroup).
    running = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@click.command()
@click.option("--turns", type=int, default=3, show_default=True)
@click.option("--seconds", default=6.0, show_default=True, help="Per variant and turn.")
@click.option("--child", "niceness", type=int, hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(turns: int, seconds: float, niceness: int | None, folder: Path | None) -> None:
    """Compare the variants, idle and busy."""
    if folder is not None and niceness is not None:
        return child(folder, niceness)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        make_data(Path(temporary))
        processes = {}
        for name, (settings, nice) in VARIANTS.items():
            command = [sys.executable, __file__, "--child", str(nice), "--folder", temporary]
            environment = {k: v for k, v in os.environ.items() if "OMP_" not in k} | settings
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            processes[name] = stack.enter_context(subprocess.Popen(command, env=environment, text=True, **pipes))
            stack.callback(processes[name].kill)
        for process in processes.values():
            process.stdout.readline()
        figures: dict[tuple[str, int], list[list[float]]] = {}
        for _, load in itertools.product(range(turns), (0, 4)):
            with busy(load):
                for name, process in processes.items():
                    process.stdin.write(f"{seconds}\n")
                    process.stdin.flush()
                    figures.setdefault((name, load), []).append(json.loads(process.stdout.readline()))
    first = next(iter(VARIANTS))
    click.echo(
        "| threads wait, renderers | busy processes | clips/s | ratio to the first | waits |\n" + "|---" * 5 + "|"
    )
    for (name, load), values in figures.items():
        ratio = statistics.median(a[0] / b[0] for a, b in zip(values, figures[first, load], strict=True))
        rate, waits = (statistics.median(column) for column in zip(*values, strict=True))
        click.echo(f"| {name} | {load} | {rate:.1f} | {ratio:.2f} | {waits:.0%} |")


if __name__ == "__main__":
    main()
