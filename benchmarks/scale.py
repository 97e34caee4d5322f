"""What the bookkeeping costs at AudioSet's size: 2 M clips in 2,000 shards, whose audio is a few hard links.

    python benchmarks/scale.py                      # 1e3, 1e5 and 2e6 clips, one after another
    python benchmarks/scale.py --clips 2000000 --work /dev/shm

Each row is one new process. It opens the pack and the store, and does what a rank of 64 does before it can work: it
takes its share of teaching, where half of the store is there already, and it plans a pass and takes its batches from
the middle of an epoch on. The time is the process's, without imports and without the shards' audio, which is the same
for any size.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile
from start import run

from ced_edge.audio.clips import read_manifest
from ced_edge.files import sha256_json
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack
from distill.teaching.store import Store, TopK
from distill.teaching.teach import Job, left
from distill.teaching.views import ViewRecipe
from distill.training import batches
from distill.training.batches import TrainingData, batches_per_pass

RATE_HZ = 16_000
EPOCHS = 10
RANKS = 64
BATCH = 16


def make(folder: Path, clips: int, per_shard: int) -> None:
    """A pack of so many clips whose shards are links to one, and half of its store, as links too."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = ["filename"]
    for i in range(per_shard):
        soundfile.write(folder / f"{i}.wav", rng.normal(0.0, 0.1, 1_600), RATE_HZ)
        lines.append(f"{i}.wav")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    one = pack(read_manifest(folder / "clips.csv"), folder / "pack", PackConfig(clips_per_shard=per_shard))
    index = json.loads((folder / "pack" / "index.json").read_text())
    first, shards = index["shards"][0], clips // per_shard
    index["shards"] = [{**first, "name": f"shard-{i:06d}.tar"} for i in range(shards)]
    index |= {"clips": clips, "seconds": first["seconds"] * shards}
    (folder / "pack" / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True))
    for i in range(1, shards):
        os.link(folder / "pack" / one.shards[0].name, folder / "pack" / f"shard-{i:06d}.tar")
    many = Pack.open(folder / "pack")
    store = Store(folder / "store", ViewRecipe(windows=((EPOCHS, 10.0),)), [{"name": "random"}], 20, many.hash)
    store.create()
    predictions = TopK.top_k(np.full((per_shard, 527), 0.1, np.float32), 20)  # equal ones are packed fast
    for epoch in range(EPOCHS // 2):
        for shard in many.shards:
            store.write(epoch, shard.name, predictions)


def measure(folder: Path) -> dict[str, Any]:
    """Seconds of each step, in this process, and the memory that they took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        times[name] = time.perf_counter() - start
        start = time.perf_counter()

    packed = Pack.open(folder / "pack")
    lap("open the pack")
    store = Store.open(folder / "store")
    lap("open the store")
    job = Job(packed, store, ())
    todo, done = left(job)
    lap("what one process has left to teach")
    os.environ |= {"RANK": "7", "WORLD_SIZE": str(RANKS)}
    left(job)
    lap("what a rank of 64 has left to teach")
    alone = TrainingData(packed, store, store.recipe, BATCH, RATE_HZ)
    rank = TrainingData(packed, store, store.recipe, BATCH, RATE_HZ, rank=7, world=min(RANKS, packed.clips // BATCH))
    batches._plan(alone, 3)
    lap("plan a pass of one process")
    rows = batches._plan(rank, 3)
    lap("plan a pass of a rank of 64")
    middle = batches_per_pass(packed, BATCH, rank.world) // 2
    next(iter(batches.Batches(rank, middle)))
    lap("first batch from the middle of a pass, with its shard")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"clips": packed.clips, "shards": len(packed.shards), "left": len(todo), "done": done, "rows": len(rows)}
    return {**facts, "seconds": times, "memory_mb": (after - before) / 1e3, "index": sha256_json(packed.hash)[:8]}


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clips", type=int, multiple=True, default=(1_000, 100_000, 2_000_000), show_default=True)
@click.option("--per-shard", type=int, default=1_000, show_default=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Folder for the temporary files.")
@click.option("--measure", "there", type=click.Path(path_type=Path), hidden=True)
def main(clips: tuple[int, ...], per_shard: int, work: Path | None, there: Path | None) -> None:
    """Make each pack, and measure it in a process of its own."""
    if there is not None:
        print(json.dumps(measure(there)))
        return
    for n in clips:
        with tempfile.TemporaryDirectory(dir=work, prefix="scale-") as name:
            start = time.perf_counter()
            make(Path(name), n, per_shard)
            click.echo(f"{n} clips: made in {time.perf_counter() - start:.0f} s", err=True)
            click.echo(subprocess.check_output([sys.executable, __file__, "--measure", name], text=True).strip())


if __name__ == "__main__":
    run(main)
