"""The training loop: the same for every network that is trained here, whatever its loss and its batches.

A run has a folder. It saves itself there every few minutes and when it is stopped. When it is started again, it
continues exactly as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import errno
import io
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
from ced_edge.network.weights import load_torch
from distill.devices import find_device, has_fast_bf16
from distill.processes import local_world, rank_and_world
from distill.teaching.store import NotTaught
from distill.training.batches import Batch
from distill.training.config import Config
from distill.training.log import TrainLog
from distill.training.optimizers import schedule

MODEL_NAME = "model.safetensors"
STATE_NAME = "state.pt"

Losses = Callable[[Batch, int], dict[str, Tensor]]
"""(batch, number of the step) -> scalars: `loss`, whose gradient is taken, and the other columns of the log."""


class Interrupted(CedEdgeError):
    """The user stopped the run, and it is saved. Exit code 130, which is what shells use for Ctrl-C."""

    exit_code = 130


@dataclass
class Trainer:
    """A network in training. Its fields are what changes during training, and what a run needs to continue."""

    run: Path
    """The folder of the run."""
    config: Config
    recipe: dict[str, Any]
    """Everything that decides the result. A run continues only with an equal recipe."""
    steps: int
    fabric: Fabric
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    student: nn.Module
    """What is saved for use: the model, a part of it, or its average."""
    averaged: AveragedModel | None = None
    """The running average of the model's weights, if there is one."""

    def fit(
        self,
        step: int,
        losses: Losses,
        optimizers: Sequence[torch.optim.Optimizer],
        batches: Generator[Batch, None, None],
        log: TrainLog | None,
    ) -> Path:
        """Do all steps from number `step` on, save, and return the path of the student's weights.

        `optimizers` are those of this trainer as Fabric wraps them. `batches` must start at batch number `step`.
        `log` is None in all processes except the first. Raises Interrupted when the user stopped the run, NotTaught
        when the store does not hold the next predictions yet (in both cases the run is saved), and CedEdgeError when
        the gradient is not finite or memory or disk is too small; the last checkpoint is kept.
        """
        config, saved_s, first = self.config, time.monotonic(), step
        with (
            stop_politely() as stop,
            memory_errors(config.batch),
            contextlib.closing(batches),
            log or contextlib.nullcontext(),
        ):
            while step < self.steps:
                # Worker processes have the next batch ready, so this seldom waits.
                try:
                    batch = Batch(*(t.to(self.fabric.device, non_blocking=True) for t in next(batches)))
                except NotTaught:
                    # Under torchrun the processes may be at different steps when this happens.
                    if self.fabric.world_size == 1 and step > first:
                        self.save(step)
                    raise

                lr = config.lr * schedule(step, self.steps, config.warmup)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = lr

                if step == first and self.fabric.world_size > 1:
                    self._order_gradients(losses, batch, step)

                # Forward and backward. With several processes, the backward pass averages the gradients over them.
                values = losses(batch, step)
                self.fabric.backward(values["loss"])

                # One bad batch must not throw the weights far off, so the gradient's norm has a limit. A norm that is
                # not finite would destroy them: stop before the step, while the last checkpoint is still good.
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

                if log is not None:
                    if step % config.log_every == 0 or step == self.steps:
                        log.write(step, values, lr, config.batch)
                    log.report(step)

                # Save every few minutes, and when the user stops the run. A stop is decided by all processes together:
                # one that left alone would let the others wait forever in the next backward pass.
                stopped = step < self.steps and any_rank(self.fabric, bool(stop))
                if stopped or time.monotonic() - saved_s > 60.0 * config.checkpoint_minutes:
                    self.save(step)
                    saved_s = time.monotonic()
                if stopped:
                    # torchrun ends all processes when one of them ends: wait until the first one has saved.
                    self.fabric.barrier()
                    raise Interrupted(
                        f"stopped at step {step} of {self.steps}: saved in {self.run}; run the same again to continue"
                    )
            self.save(step)
        self.fabric.barrier()
        return self.weights

    def _order_gradients(self, losses: Losses, batch: Batch, step: int) -> None:
        """A backward pass that changes nothing, before the first step of several processes.

        After its first pass, DDP groups the gradients anew, and three or more processes then add them in another order.
        Without this, a run that continues would differ from one that never stopped in the last bits.
        """
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        self.fabric.backward(losses(batch, step)["loss"])
        self.model.zero_grad()
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    @property
    def weights(self) -> Path:
        """Where the student's weights are saved."""
        return self.run / MODEL_NAME

    def save(self, step: int) -> None:
        """Write the student and the state. Under torchrun only the first process does."""
        if self.fabric.is_global_zero:
            # The state last: a run that is killed in between continues from the state before, and writes both again.
            self.save_student(step)
            state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
            state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
            save_state(self.run / STATE_NAME, {**state, "step": step, "recipe": self.recipe})

    def save_student(self, step: int) -> None:
        """Write the student's weights in the form that is used later."""
        assert isinstance(self.student, CED)
        save_model(self.weights, self.student, {"recipe": self.recipe, "step": step})

    def resume(self) -> int:
        """Load the saved state and return its step; 0 when there is none. Raises InputError on another run's state."""
        path = self.run / STATE_NAME
        if not path.exists():
            return 0
        try:
            state = load_torch(path)
            # States of old versions, which knew no torchrun, have no number of processes.
            different = differences({"processes": 1, **self.recipe}, {"processes": 1, **state["recipe"]})
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
        return step >= self.steps and self.weights.exists()

    def _parts(self) -> dict[str, nn.Module]:
        return {"model": self.model, **({} if self.averaged is None else {"averaged": self.averaged})}


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names of the values that differ, except those that do not change the result of training."""
    names = []
    for key in dict.fromkeys([*wanted, *found]):  # a field at its default may be in one of them alone
        value, other = wanted.get(key), found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            names += differences(value, other)
        elif value != other and key not in ("checkpoint_minutes", "log_every"):
            names.append(key)
    return names


def make_fabric(device: str, precision: str) -> Fabric:
    """Device, precision and processes of a run, as torchrun started it. Raises InputError on an unavailable device."""
    where = find_device(device)
    kind = where.type
    bf16 = precision == "bf16" or (precision == "auto" and has_fast_bf16(kind))
    many = torch.distributed.is_torchelastic_launched()
    here, world = (local_world(), rank_and_world()[1]) if many else (1, 1)
    if kind == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"{here} processes for {torch.cuda.device_count()} GPUs: start one --nproc-per-node for each")
    fabric = Fabric(
        accelerator=kind,
        devices=[where.index] if where.index and not many else here,
        num_nodes=world // here,
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
    """Write tensors by name, whole or not at all. Raises CedEdgeError on a full disk."""
    # Into memory first: on a full disk, torch's own writer fails with an error that does not name the cause.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


@contextlib.contextmanager
def stop_politely() -> Iterator[list[int]]:
    """Turn the first Ctrl-C or termination signal into an entry of the list, so that the step can be finished.

    The second one raises KeyboardInterrupt at once.
    """
    received: list[int] = []

    def handler(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set handlers; a caller in another thread has its own way to stop
        yield received
        return
    try:
        yield received
    finally:
        for s, previous in old.items():
            signal.signal(s, previous)


CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
CUDA_OUT_OF_MEMORY = "CUDA error: out of memory"


@contextlib.contextmanager
def memory_errors(batch: int) -> Iterator[None]:
    """Report too little memory or disk in one line. Raises CedEdgeError."""
    kept = "the last checkpoint is kept"
    try:
        yield
    except OSError as e:
        if e.errno != errno.ENOSPC:
            raise
        raise CedEdgeError(f"disk full: free some space and run again to continue; {kept}") from e
    except (MemoryError, RuntimeError) as e:
        # torch's CPU allocator and the CUDA driver raise a plain RuntimeError, which only its text tells from others.
        text = str(e)
        by_class = isinstance(e, MemoryError | torch.OutOfMemoryError)
        if by_class or CPU_OUT_OF_MEMORY in text or text.startswith(CUDA_OUT_OF_MEMORY):
            raise CedEdgeError(f"out of memory: use a --batch below {batch}; {kept}") from e
        raise
