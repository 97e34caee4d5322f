"""The steps of a training run: what is the same whatever a network learns, and all that can come between.

A run lies in a folder. It saves itself every few minutes and when it is stopped, and goes on from there exactly.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ced_edge.errors import CedEdgeError, InputError, first_line
from ced_edge.files import atomic_path
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import save_model
from distill.devices import find_device, has_fast_bf16
from distill.training.batches import Batch
from distill.training.config import Config
from distill.training.log import TrainLog
from distill.training.optimizers import schedule

MODEL_NAME = "model.safetensors"
STATE_NAME = "state.pt"

Losses = Callable[[Batch, int], dict[str, Tensor]]
"""A batch and the number of its step -> `loss`, which is descended, and whatever else the log has a column for."""


class Interrupted(CedEdgeError):
    """Stopped by the user; what was learnt is saved. Exit code 130, as a shell gives for Ctrl-C."""

    exit_code = 130


@dataclass
class Trainer:
    """A network that learns: all that changes meanwhile, and so all that a run needs to go on."""

    run: Path
    """The folder of the run."""
    config: Config
    recipe: dict[str, Any]
    """All that decides what is learnt, for the checkpoint."""
    steps: int
    fabric: Fabric
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    student: CED
    """What is saved for use: the model, a part of it, or its average."""
    averaged: AveragedModel | None = None
    """The model, averaged over the steps."""

    def learn(
        self,
        step: int,
        losses: Losses,
        optimizers: Sequence[torch.optim.Optimizer],
        batches: Generator[Batch, None, None],
        log: TrainLog,
    ) -> Path:
        """Take the steps from number `step` on and return the path of the student; `optimizers` as Fabric made them."""
        config, saved = self.config, time.monotonic()
        with stop_politely() as stop, memory_errors(config.batch), contextlib.closing(batches), log:
            while step < self.steps:
                batch = Batch(*(t.to(self.fabric.device, non_blocking=True) for t in next(batches)))
                lr = config.lr * schedule(step, self.steps, config.warmup)
                for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                    group["lr"] = lr
                values = losses(batch, step)
                self.fabric.backward(values["loss"])
                values["grad"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
                if not torch.isfinite(values["grad"]):
                    raise CedEdgeError(
                        f"the gradient is not finite at step {step} (loss {values['loss'].item():.4g}): try a lower "
                        f"--lr; the last checkpoint in {self.run}, if there is one, is kept"
                    )
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                if self.averaged is not None:
                    self.averaged.update_parameters(self.model)
                step += 1
                if step % config.log_every == 0 or step == self.steps:
                    log.write(step, values, lr, config.batch)
                stopped = step < self.steps and any_rank(self.fabric, bool(stop))
                if stopped or time.monotonic() - saved > 60.0 * config.checkpoint_minutes:
                    self.save(step)
                    saved = time.monotonic()
                if stopped:
                    self.fabric.barrier()  # nobody may leave, and so end the others, before the first one has saved
                    raise Interrupted(
                        f"stopped at step {step} of {self.steps}: saved in {self.run}; run the same again to go on"
                    )
            self.save(step)
        self.fabric.barrier()
        return self.run / MODEL_NAME

    def save(self, step: int) -> None:
        """Write the student and the state, from the first process alone."""
        if self.fabric.is_global_zero:
            # The state last: a run that is killed in between goes on from the state before, and writes both again.
            save_model(self.run / MODEL_NAME, self.student, {"recipe": self.recipe, "step": step})
            state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
            state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            save_state(self.run / STATE_NAME, {**state, "step": step, "recipe": self.recipe})

    def resume(self) -> int:
        """Take on the saved state; its step, 0 when there is none. Raises InputError on another run's."""
        path = self.run / STATE_NAME
        if not path.exists():
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            different = differences(self.recipe, {"processes": 1, **state["recipe"]})
        except Exception as e:  # a broken file can raise almost anything
            raise InputError(f"{path} is no training state ({first_line(e)}): delete it to start over") from e
        if different:
            names = ", ".join(dict.fromkeys(different))
            raise InputError(f"{self.run} was begun with other values of {names}: choose another folder, or delete it")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return int(state["step"])

    def done(self, step: int) -> bool:
        """Whether nothing is left to do at this step."""
        return step >= self.steps and (self.run / MODEL_NAME).exists()

    def _parts(self) -> dict[str, nn.Module]:
        return {"model": self.model, **({} if self.averaged is None else {"averaged": self.averaged})}


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
