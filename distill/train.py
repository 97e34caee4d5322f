"""Train: the student learns from the store alone, hearing the very same views."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ced_edge.checkpoint import save_model
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import atomic_path
from ced_edge.model import CED
from ced_edge.spec import ModelSpec, size
from distill.config import TrainConfig
from distill.dataset import Batch, Stream, loader
from distill.evaluate import find_device
from distill.losses import bce, prior_logits, spread, top_k_kl
from distill.store import CLEAN_EPOCH, Store
from distill.trainlog import Reporter, TrainLog
from distill.views import ViewRecipe

MODEL_NAME = "model.safetensors"
STATE_NAME = "state.pt"


class Interrupted(CedEdgeError):
    """Stopped by the user; what was learnt is saved. Exit code 130, as a shell gives for Ctrl-C."""

    exit_code = 130


def train(
    run: Path,
    stream: Stream,
    config: TrainConfig,
    *,
    init: CED | None = None,
    device: str = "cpu",
    reporter: Reporter | None = None,
) -> Path:
    """Train a student into the folder `run` and return the path of its weights, `model.safetensors`.

    Goes on from `run/state.pt` where there is one, exactly as if it had never stopped. Raises InputError when that
    state is of another recipe, the store of another pack, or a window does not fit the model; CedEdgeError on NaN, a
    full disk, or too little memory: the last checkpoint stays.
    """
    check_store(stream)
    fabric = make_fabric(device, config.precision)
    torch.manual_seed(config.seed)
    model = init or new_student(stream.store, stream, config)
    check_windows(model.spec, stream.recipe)
    learner = Learner.of(model.to(fabric.device), config)
    steps = config.steps or total_steps(stream, config)
    recipe = make_recipe(stream, config, steps)
    step = learner.resume(run, recipe)
    if step >= steps and (run / MODEL_NAME).exists():
        return run / MODEL_NAME
    student, *optimizers = fabric.setup(torch.compile(model) if config.compile else model, *learner.optimizers)
    log = TrainLog(run, step, steps, reporter if fabric.is_global_zero else None)
    saved = time.monotonic()
    student.train()
    rendered = contextlib.closing(loader(stream, first=step, workers=config.workers))
    with stop_politely() as stop, memory_errors(config.batch), rendered as batches, log:
        while step < steps:
            batch = Batch(*(t.to(fabric.device, non_blocking=True) for t in next(batches)))
            lr = config.lr * schedule(step, steps, config.warmup)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = lr * group["lr_scale"]
            logits = student(batch.wave, time_offset(model, batch, step, config)).float()
            losses = {"bce": bce(logits, batch.target), "kl": top_k_kl(logits, batch.target, batch.kept)}
            loss = config.bce * losses["bce"] + config.kl * losses["kl"]
            fabric.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise CedEdgeError(
                    f"the gradient is not finite at step {step} (loss {loss.item():.4g}): try a lower --lr; the last "
                    f"checkpoint in {run}, if there is one, is kept"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            learner.averaged.update_parameters(model)
            step += 1
            if step % config.log_every == 0 or step == steps:
                spreads = {"spread": spread(logits.sigmoid()), "teacher_spread": spread(batch.target)}
                log.write(step, {"loss": loss, **losses, **spreads, "grad": norm}, lr, config.batch)
            stopped = step < steps and any_rank(fabric, bool(stop))
            if stopped or time.monotonic() - saved > 60.0 * config.checkpoint_minutes:
                learner.save(fabric, run, step, recipe)
                saved = time.monotonic()
            if stopped:
                fabric.barrier()  # nobody may leave, and so end the others, before the first process has saved
                raise Interrupted(f"stopped at step {step} of {steps}: saved in {run}; run the same again to go on")
        learner.save(fabric, run, step, recipe)
    fabric.barrier()
    return run / MODEL_NAME


def make_recipe(stream: Stream, config: TrainConfig, steps: int) -> dict[str, Any]:
    """All that decides what is learnt, for the checkpoint."""
    views, store = stream.recipe.to_dict(), stream.store.to_dict()
    return {"train": config.to_dict(), "views": views, "store": store, "steps": steps, "processes": stream.world}


@dataclass
class Learner:
    """All that changes while a student learns, and so all that a run needs to go on."""

    model: CED
    averaged: AveragedModel
    """Its weights, averaged over the steps: what is saved as the student."""
    optimizers: list[torch.optim.Optimizer]

    @classmethod
    def of(cls, model: CED, config: TrainConfig) -> Learner:
        """A learner at its first step, on the model's device."""
        averaged = AveragedModel(model, multi_avg_fn=warm_ema(config.ema), use_buffers=True)
        return cls(model, averaged, make_optimizers(model, config))

    def save(self, fabric: Fabric, run: Path, step: int, recipe: dict[str, Any]) -> None:
        """Write the student and the state into the folder `run`, from the first process alone."""
        if fabric.is_global_zero:
            # The state last: a run that is killed in between goes on from the state before, and writes both again.
            save_model(run / MODEL_NAME, cast(CED, self.averaged.module), {"recipe": recipe, "step": step})
            state = {"step": step, "model": self.model.state_dict(), "averaged": self.averaged.state_dict()}
            optimizers = [o.state_dict() for o in self.optimizers]
            save_state(run / STATE_NAME, {**state, "recipe": recipe, "optimizers": optimizers})

    def resume(self, run: Path, recipe: dict[str, Any]) -> int:
        """Take on the state in the folder `run`; its step, 0 when there is none. Raises InputError on another's."""
        path = run / STATE_NAME
        if not path.exists():
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            different = differences(recipe, {"processes": 1, **state["recipe"]})
        except Exception as e:  # a broken file can raise almost anything
            reason = str(e).partition("\n")[0]
            raise InputError(f"{path} is no training state ({reason}): delete it to start over") from e
        if different:
            names = ", ".join(dict.fromkeys(different))
            raise InputError(f"{run} was begun with other values of {names}: choose another folder, or delete it")
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of the values that differ, but for those that change nothing in what is learnt."""
    names = []
    for key, value in wanted.items():
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            names += differences(value, other)
        elif value != other and key not in ("checkpoint_minutes", "log_every"):
            names.append(key)
    return names


def make_fabric(device: str, precision: str) -> Fabric:
    """Device, precision and processes; under torchrun one of many. Raises InputError on a device that is not there."""
    where = find_device(device)
    kind = where.type
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(kind))
    many = torch.distributed.is_torchelastic_launched()
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if many else 1
    if kind == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"{here} processes for {torch.cuda.device_count()} GPUs: start one --nproc-per-node for each")
    fabric = Fabric(
        accelerator=kind,
        devices=[where.index] if where.index and not many else here,
        num_nodes=int(os.environ["WORLD_SIZE"]) // here if many else 1,
        strategy="ddp" if many else "auto",
        precision="bf16-mixed" if bf16 else "32-true",
    )
    if many:
        fabric.launch()
    return fabric


def any_rank(fabric: Fabric, value: bool) -> bool:
    """Whether `value` is true in any process: all of them must leave the loop at the same step."""
    if fabric.world_size == 1:
        return value
    return bool(fabric.all_reduce(torch.tensor(float(value), device=fabric.device), reduce_op="sum") > 0)


def has_fast_bf16(kind: str) -> bool:
    """Whether the hardware multiplies in bfloat16: Ampere and later, AVX-512 BF16, AMX."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return kind == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def check_store(stream: Stream) -> None:
    """Raise InputError when the answers are about other clips or views than those that will be heard."""
    store = stream.store
    if store.pack != stream.pack.hash:
        raise InputError(
            f"{store.path} is a store of another pack than {stream.pack.location}: give the two that belong"
        )
    if not store.clean and store.recipe != stream.recipe:
        raise InputError(f"{store.path} holds answers about other views than those asked for")


def check_windows(spec: ModelSpec, recipe: ViewRecipe) -> None:
    """Raise InputError when a student of this spec cannot hear windows of this length."""
    rate_hz, hop, patch = spec.frontend.rate_hz, spec.frontend.hop, spec.patch
    for _, seconds in recipe.windows:
        if not 1 <= spec.frontend.frames(round(seconds * rate_hz)) // patch <= spec.grid_time:
            raise InputError(
                f"views of {seconds:g} s do not fit the student, which hears {(patch - 1) * hop / rate_hz:g} to "
                f"{spec.max_frames * hop / rate_hz:g} s at once: choose other --windows"
            )


def new_student(store: Store, stream: Stream, config: TrainConfig) -> CED:
    """A student with initial weights; its head may start at the mean of the stored answers.

    Every residual branch starts at 0, which learns a little faster from a cold start.
    """
    model = CED(size(config.size))
    for name, weight in model.named_parameters():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            nn.init.zeros_(weight)
    if config.prior_bias:
        shards = stream.pack.shards[:16]
        epoch = CLEAN_EPOCH if store.clean else 0
        dense = [store.read(epoch, shard.name, shard.clips).dense(config.fill)[0].mean(axis=0) for shard in shards]
        head = cast(nn.Linear, model.outputlayer[1])
        head.bias.data.copy_(prior_logits(torch.from_numpy(np.mean(dense, axis=0))))
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
    """Write a training state, whole or not at all. Raises CedEdgeError on a full disk."""
    # In memory first: on a full disk torch's own writer fails with an error that does not say so.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


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
    """Too little memory or disk, in plain words. Raises CedEdgeError."""
    kept = "the last checkpoint is kept"
    try:
        yield
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        raise CedEdgeError(f"disk full: free some space and run again to go on; {kept}") from e
    except (MemoryError, RuntimeError) as e:
        said = str(e).lower()
        if isinstance(e, MemoryError | torch.OutOfMemoryError) or "alloc" in said or "out of memory" in said:
            raise CedEdgeError(f"out of memory: use a --batch below {batch}; {kept}") from e
        raise
