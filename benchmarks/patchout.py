"""Patchout: how much cheaper a training step becomes. CED tiny, 32 views per step, one thread.

    python benchmarks/patchout.py

The kinds take turns, and a ratio is taken within a turn. Times are CPU times of this process, so that other work on the
machine changes them little.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from ced_edge.network.ced import CED
from ced_edge.spec import N_CLASSES, size
from distill.devices import has_fast_bf16
from distill.training.config import TrainConfig
from distill.training.losses import bce, top_k_kl
from distill.training.optimizers import make_optimizers
from distill.training.patchout import kept_patches

BATCH, TURNS = 32, 5
KINDS = {"none": (0.0, "unstructured"), "0.25": (0.25, "unstructured"), "0.5": (0.5, "unstructured")}
KINDS["0.5, structured"] = (0.5, "structured")


def main() -> None:
    torch.set_num_threads(1)
    spec = size("tiny")
    model = CED(spec).train()
    optimizers = make_optimizers(model, TrainConfig())
    target = 0.1 * torch.rand(BATCH, N_CLASSES)
    stored = torch.arange(N_CLASSES).expand(BATCH, -1) < 20

    def step(wave: Tensor, kept: Tensor | None) -> float:
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16("cpu")):
            logits = model(wave, 0, kept).float()
        (bce(logits, target) + 0.2 * top_k_kl(logits, target, stored)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return time.process_time() - start

    print("seconds of a view: views per CPU second, and how many times as fast as without patchout")
    for seconds in (2, 5, 10):
        wave = 0.1 * torch.randn(BATCH, 16_000 * seconds)
        kept = {
            name: kept_patches(spec, wave.shape[1], BATCH, share, kind, 0, 0) if share else None
            for name, (share, kind) in KINDS.items()
        }
        for indices in kept.values():
            step(wave, indices)
        turns = [{name: step(wave, indices) for name, indices in kept.items()} for _ in range(TURNS)]
        for name in KINDS:
            rate = BATCH / statistics.median(turn[name] for turn in turns)
            ratio = statistics.median(turn["none"] / turn[name] for turn in turns)
            print(f"{seconds:2} s, {name:16} {rate:5.1f} {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
