"""Train: the student learns from the store alone, hearing the very same views."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ced_edge.checkpoint import save_model
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import atomic_path
from ced_edge.model import CED
from ced_edge.spec import size
from distill.config import TrainConfig
from distill.dataset import Batch, Stream, loader
from distill.evaluate import find_device
from distill.losses import bce, prior_logits, spread, top_k_kl
from distill.store import CLEAN_EPOCH, Store
from distill.trainlog import Reporter, TrainLog

MODEL_NAME = "model.safetensors"
STATE_NAME = "state.pt"


class Interrupted(CedEdgeError):
    """Stopped by the user; what was learnt is saved. Exit code 130, as a shell gives for Ctrl-C."""

    exit_code = 130


def train(
    run: Path, stream: Stream, config: TrainConfig, *, init: CED | None = None, device: str = "cpu",
    reporter: Reporter | None = None,
) -> Path:
    """Train a student into the folder `run` and return the path of its weights, `model.safetensors`.

    Goes on from `run/state.pt` where there is one, exactly as if it had never stopped. Raises InputError when that
    state is of another recipe, and CedEdgeError on NaN, a full disk, or too little memory; the last checkpoint stays.
    """
    fabric = make_fabric(device, config.precision)
    torch.manual_seed(config.seed)
    model = init or new_student(stream.store, stream, config)
    optimizers = make_optimizers(model, config)
    averaged = AveragedModel(model, multi_avg_fn=warm_ema(config.ema), use_buffers=True)
    steps = config.steps or total_steps(stream, config)
    recipe = {"train": config.to_dict(), "views": stream.recipe.to_dict(), "store": stream.store.to_dict(), "steps": steps}
    step = _resume(run / STATE_NAME, model, averaged, optimizers, recipe)
    averaged.to(fabric.device)
    student, *optimizers = fabric.setup(torch.compile(model) if config.compile else model, *optimizers)
    log = TrainLog(run, step, steps, reporter if fabric.is_global_zero else None)

    def save(step: int) -> None:
        if fabric.is_global_zero:
            state = {"step": step, "model": model.state_dict(), "averaged": averaged.state_dict(), "recipe": recipe}
            save_state(run / STATE_NAME, {**state, "optimizers": [o.state_dict() for o in optimizers]})
            save_model(run / MODEL_NAME, averaged.module if config.ema else model, {"recipe": recipe, "step": step})

    batches = iter(loader(stream, first=step, workers=config.workers) if step < steps else ())
    saved = time.monotonic()
    student.train()
    with stop_politely() as stop, memory_errors(config.batch), log:
        while step < steps:
            batch = Batch(*(t.to(fabric.device, non_blocking=True) for t in next(batches)))
            lr = config.lr * schedule(step, steps, config.warmup)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["lr_scale"]
            logits = student(batch.wave, time_offset(model, batch, step, config)).float()
            losses = {"bce": bce(logits, batch.target), "kl": top_k_kl(logits, batch.target, batch.kept)}
            loss = config.bce * losses["bce"] + config.kl * losses["kl"]
            fabric.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise CedEdgeError(
                    f"the gradient is not finite at step {step} (loss {loss.item():.4g}): the last checkpoint, "
                    f"{run / MODEL_NAME}, is kept; try a lower --lr"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            averaged.update_parameters(model)
            step += 1
            if step % config.log_every == 0 or step == steps:
                spreads = {"spread": spread(logits.sigmoid()), "teacher_spread": spread(batch.target)}
                log.write(step, {"loss": loss, **losses, **spreads, "grad": norm}, lr, config.batch)
            if stop or step == steps or time.monotonic() - saved > 60.0 * config.checkpoint_minutes:
                save(step)
                saved = time.monotonic()
            if stop:
                raise Interrupted(f"stopped at step {step} of {steps}: saved in {run}; run the same again to go on")
    return run / MODEL_NAME


def make_fabric(device: str, precision: str) -> Fabric:
    """Device, precision and processes; under torchrun one of many. Raises InputError on a device that is not there."""
    where = find_device(device)
    kind = where.type
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(kind))
    many = torch.distributed.is_torchelastic_launched()
    fabric = Fabric(
        accelerator=kind,
        devices="auto" if many and kind == "cuda" else ([where.index] if where.index else 1),
        num_nodes=1,
        strategy="ddp" if many else "auto",
        precision="bf16-mixed" if bf16 else "32-true",
    )
    if many:
        fabric.launch()
    return fabric


def has_fast_bf16(kind: str) -> bool:
    """Whether the hardware multiplies in bfloat16: Ampere and later, AVX-512 BF16, AMX."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def new_student(store: Store, stream: Stream, config: TrainConfig) -> CED:
    """A student with initial weights; its head may start at the mean of the stored answers.

    Every residual branch starts at 0, which learns a little faster from a cold start.
    """
    model = CED(size(config.size))
    for name, weight in model.named_parameters():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            torch.nn.init.zeros_(weight)
    if config.prior_bias:
        shards = stream.pack.shards[:16]
        epoch = CLEAN_EPOCH if store.clean else 0
        dense = [store.read(epoch, shard.name, shard.clips).dense(config.fill)[0].mean(axis=0) for shard in shards]
        head = model.outputlayer[1]
        with torch.no_grad():
            head.bias.copy_(prior_logits(torch.from_numpy(np.mean(dense, axis=0))))
    return model


def total_steps(stream: Stream, config: TrainConfig) -> int:
    """Steps to hear every stored epoch `repeats` times."""
    per_turn = stream.pack.clips // (stream.batch * stream.world)
    return max(1, per_turn) * stream.recipe.epochs * config.repeats


def make_optimizers(model: CED, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW with decay on matrices only; or Muon for the blocks' matrices and AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    muon = {id(p) for p in matrices} if config.optimizer == "muon" else set()
    rest = [p for p in model.parameters() if id(p) not in muon]
    decayed = [p for p in rest if p.ndim > 1 and p is not model.time_pos_embed and p is not model.freq_pos_embed]
    ids = {id(p) for p in decayed}
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": [p for p in rest if id(p) not in ids], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)]
    if muon:
        group = {"params": matrices, "lr_scale": 1.0}
        optimizers.append(
            torch.optim.Muon([group], lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def warm_ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential average of weights whose decay rises as (1 + n) / (10 + n): early weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, n: Any) -> None:
        weight = 1.0 - min(decay, (1.0 + float(n)) / (10.0 + float(n)))
        # Called with lists of one type: weights and statistics, or BatchNorm's count of batches.
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return update


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def time_offset(model: CED, batch: Batch, step: int, config: TrainConfig) -> int:
    """Where in the time embedding this step's windows lie, in patches: drawn from (seed, step)."""
    spec = model.spec
    free = spec.grid_time - spec.frontend.frames(batch.wave.shape[1]) // spec.patch
    if not config.random_offset or free <= 0:
        return 0
    return int(np.random.Philox(key=[config.seed, step]).random_raw() % (free + 1))


def save_state(path: Path, state: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(
    path: Path, model: CED, averaged: AveragedModel, optimizers: list[torch.optim.Optimizer], recipe: dict[str, Any]
) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        different = [k for k in recipe if state["recipe"][k] != recipe[k]]
    except Exception as e:
        raise InputError(f"{path} is no training state ({e}): delete it to start over") from e
    if different:
        raise InputError(f"{path} is of another recipe ({', '.join(different)}): choose another run folder, or delete it")
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


@contextlib.contextmanager
def stop_politely() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C or a termination was asked for: the step is finished first."""
    asked: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there stops us in another way
        yield asked
        return
    try:
        yield asked
    finally:
        for s, previous in old.items():
            signal.signal(s, previous)


@contextlib.contextmanager
def memory_errors(batch: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and "alloc" not in str(e).lower() and "out of memory" not in str(e).lower():
            raise
        raise CedEdgeError(f"out of memory: use a --batch below {batch}; the last checkpoint is kept") from e
