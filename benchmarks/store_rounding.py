"""How much the store's rounding costs: the student's targets against the ensemble's own probabilities.

    python benchmarks/store_rounding.py PACK --teacher mn04=mn04.pt --teacher yamnet=yamnet.tflite

Each row is a way to store a prediction. `float32` keeps the values exactly, so its rows show the cost of dropping the
classes outside the top K. `float16` is the published store. `8 bits` is our store, written and read back.

Error is |target - probability|. A student that has learned its targets perfectly still has a loss against the true
probabilities. BCE is this loss minus its least possible value (the entropy of the probabilities), mean over classes. KL
is the softmax term of training. Both are in nats. Predictions below 1e-6 count as 1e-6: otherwise the rule `zero` would
have an infinite loss.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from start import run

from ced_edge.arrays import Bools, Float32
from distill.packing.shards import Pack, ShardReader
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import parse_teachers
from distill.teaching.store import Store, TopK, dequantise, quantise
from distill.teaching.views import ViewRecipe, draw, render
from distill.training.losses import top_k_kl

FLOOR = 1e-6
FEWER_BITS = (7, 6, 5, 4)
"""Rounding that the store does not offer: what it would save, and what it would cost."""
RULES = ("tail", "smallest", "zero")


@dataclass(frozen=True)
class Row:
    """The figures of one way to store predictions."""

    values: str
    k: int
    rule: str
    """Rule for the classes outside the top K."""
    kept_mean: float
    kept_max: float
    all_mean: float
    all_max: float
    bce: float
    kl: float


def predict(pack: Pack, shard: int, recipe: ViewRecipe, ensemble: Ensemble, batch: int = 16) -> Float32:
    """The ensemble's probabilities of a shard's views in epoch 0: (clips, 527)."""
    loaded = ShardReader(pack).load(pack.shards[shard])
    n, probs = len(loaded.ids), []
    for start in range(0, n, batch):
        views = (draw(recipe, 0, i, loaded.ids) for i in range(start, min(start + batch, n)))
        waves = [render(view, loaded.waves, loaded.rms, pack.rate_hz) for view in views]
        probs.append(ensemble(torch.from_numpy(np.stack(waves))).numpy())
    return np.concatenate(probs)


def bernoulli_kl(p: Float32, q: Float32) -> float:
    """Binary cross-entropy of predictions q against p, minus its least possible value: mean over views and classes."""
    p64, q64 = p.astype(np.float64), np.clip(q.astype(np.float64), FLOOR, 1.0 - FLOOR)
    on = np.where(p64 > 0, p64 * np.log(np.maximum(p64, 1e-300) / q64), 0.0)
    off = np.where(p64 < 1, (1.0 - p64) * np.log(np.maximum(1.0 - p64, 1e-300) / (1.0 - q64)), 0.0)
    return float((on + off).mean())


def softmax_kl(p: Float32, q: Float32, kept: Bools) -> float:
    """The softmax term of training for predictions q."""
    # Training limits the teachers' probabilities to 0.999 as well (see `top_k_kl`).
    predicted = torch.logit(torch.from_numpy(q).double().clamp(FLOOR, 1.0 - 1e-3))
    return top_k_kl(predicted, torch.from_numpy(p).double(), torch.from_numpy(kept)).item()


def compare(values: str, rule: str, p: Float32, answers: TopK) -> Row:
    """Compare the targets that `rule` makes from stored predictions with the probabilities p."""
    target, kept = answers.dense(rule)
    error = np.abs(target - p)
    return Row(
        values, answers.index.shape[1], rule, float(error[kept].mean()), float(error[kept].max()),
        float(error.mean()), float(error.max()), bernoulli_kl(p, target), softmax_kl(p, target, kept),
    )  # fmt: skip


def coarse(p: Float32, bits: int) -> Float32:
    """Probabilities rounded to so many bits on the store's square-root scale."""
    levels = np.float32((1 << bits) - 1)
    return np.asarray(np.square(np.round(np.sqrt(p) * levels) / levels))


def entropy(p: Float32) -> float:
    """The least possible binary cross-entropy against p: mean over views and classes, in nats."""
    x = np.clip(p.astype(np.float64), 1e-12, 1.0 - 1e-12)
    return float(-(x * np.log(x) + (1.0 - x) * np.log1p(-x)).mean())


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("pack_path", metavar="PACK")
@click.option("--teacher", multiple=True, required=True, help="name=path; repeat.")
@click.option("--seconds", default=10.0, show_default=True, help="Length of the views.")
@click.option("-k", default=20, show_default=True, help="Classes kept.")
@click.option("--shard", default=0, show_default=True, help="Number of the shard to use.")
@click.option("--json", "as_json", is_flag=True)
def main(pack_path: str, teacher: tuple[str, ...], seconds: float, k: int, shard: int, as_json: bool) -> None:
    """Print the table."""
    pack, specs = Pack.open(pack_path), parse_teachers(teacher)
    recipe = ViewRecipe(windows=((1, seconds),))
    ensemble = Ensemble(load_teachers(specs), pack.rate_hz)
    p = predict(pack, shard, recipe, ensemble)
    exact = TopK.top_k(p, k)

    def stored_as(values: TopK) -> tuple[TopK, float]:
        """What comes back from a store of these values, and its bytes per view."""
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder), recipe, ensemble.describe(), k, pack.hash)
            store.create()
            store.write(0, pack.shards[shard].name, values)
            return store.read(0, pack.shards[shard].name, len(p)), store.bytes() / len(p)

    half = replace(exact, value=exact.value.astype(np.float16).astype(np.float32))
    stored, size = stored_as(exact)
    coarser = {bits: stored_as(replace(exact, value=coarse(exact.value, bits))) for bits in FEWER_BITS}
    whole = TopK.top_k(p, p.shape[1])
    rounded = replace(whole, value=dequantise(quantise(whole.value)))
    rows = [
        compare(values, rule, p, answers)
        for values, answers in (("float32", exact), ("float16", half), ("8 bits", stored))
        for rule in RULES
    ]
    rows.append(replace(compare("8 bits", "zero", p, rounded), rule="none"))
    rows += [compare(f"{bits} bits, {bytes_:.1f} bytes", "tail", p, back) for bits, (back, bytes_) in coarser.items()]
    facts = {
        "clips": len(p),
        "seconds": seconds,
        "teachers": [t["name"] for t in ensemble.describe()],
        "bytes_per_view": size,
        "entropy": entropy(p),
        "kept_share": float(exact.value.sum() / (exact.value.sum() + exact.tail.sum())),
        "smallest_kept": float(np.median(exact.value[:, -1])),
    }
    if as_json:
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1))
        return
    show(facts, rows)


def show(facts: dict[str, object], rows: list[Row]) -> None:
    """Print the table for docs/results.md."""
    print("{clips} views of {seconds:g} s, {bytes_per_view:.1f} bytes each with all files counted".format(**facts))
    print("least BCE {entropy:.6f}; the top K hold {kept_share:.1%} of the probability".format(**facts))
    print("smallest of the top K: {smallest_kept:.2g} (median)\n".format(**facts))
    print("| values | K | rest | kept: mean error | max | all: mean error | max | BCE beyond least | KL |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        numbers = (r.kept_mean, r.kept_max, r.all_mean, r.all_max, r.bce, r.kl)
        print(f"| {r.values} | {r.k} | {r.rule} | " + " | ".join(f"{x:.2e}" for x in numbers) + " |")


if __name__ == "__main__":
    run(main)
