"""Bare rates on a device, for runs/gpu.sh: teachers and the training step on random audio, without any data path.

    python runs/gpu_rates.py --device cuda --size tiny --teacher mn04=mn04.pt

Prints one JSON object: views per second of 10 s (or --seconds).
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable

import click
import torch

from ced_edge.errors import CedEdgeError
from ced_edge.network.ced import CED
from ced_edge.spec import N_CLASSES, size
from distill.devices import device_name, find_device
from distill.teachers.ensemble import DTYPES, Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import parse_teachers
from distill.teaching.teach import batch_seconds
from distill.training.config import TrainConfig
from distill.training.losses import bce
from distill.training.optimizers import make_optimizers

RATE_HZ = 16_000


def rate(work: Callable[[], object], views: int, device: torch.device, least_s: float) -> float:
    """Views per second of `work`, which does so many views per call."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):  # kernels are chosen, and compiled, in the first calls
        work()
    wait()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < least_s:
        work()
        calls += 1
        wait()
    return calls * views / (time.perf_counter() - start)


def step(name: str, batch: int, samples: int, device: torch.device, compiled: bool) -> Callable[[], object]:
    """A training step of a student in bfloat16, on random audio."""
    model = CED(size(name)).to(device).train()
    optimizers = make_optimizers(model, TrainConfig(size=name))
    forward = torch.compile(model) if compiled else model
    wave = 0.1 * torch.randn(batch, samples, device=device)
    target = torch.rand(batch, N_CLASSES, device=device) ** 8

    def work() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = forward(wave)
        bce(logits.float(), target).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return work


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", default="cuda")
@click.option("--size", "name", default="tiny")
@click.option("--batch", default=128)
@click.option("--seconds", default=10.0)
@click.option("--least", default=5.0, help="Seconds per rate.")
@click.option("--teacher", multiple=True)
def main(device: str, name: str, batch: int, seconds: float, least: float, teacher: tuple[str, ...]) -> None:
    """Print the rates."""
    where, samples = find_device(device), round(seconds * RATE_HZ)
    rates = {}
    views = max(1, int(batch_seconds(where) / seconds))
    wave = 0.1 * torch.randn(views, samples, device=where)
    for spec in parse_teachers(teacher) if teacher else []:
        for dtype, compiled in itertools.product(DTYPES, (False, True)):
            teachers = load_teachers([spec], device)
            network = getattr(teachers[0], "model", None)  # a file of .tflite or .onnx has none
            if compiled and network is None:
                continue
            if compiled:
                network.compile()
            ensemble = Ensemble(teachers, RATE_HZ, dtype)
            label = f"teacher {spec.name}, {dtype}{', compiled' * compiled}"
            rates[label] = rate(lambda e=ensemble: e(wave), views, where, least)
    for compiled in (False, True):
        work = step(name, batch, samples, where, compiled)
        rates[f"step, {name}, bf16{', compiled' * compiled}"] = rate(work, batch, where, least)
    memory = torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None
    print(json.dumps({"device": device_name(where), "views_per_s": rates, "most_memory_bytes": memory}))


if __name__ == "__main__":
    try:
        main()
    except CedEdgeError as e:
        print(f"gpu_rates: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
