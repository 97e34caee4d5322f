"""The two teachers of the demonstration, trained in a minute or two from the labels of synthesised clips.

They differ in kind: a convolutional network (an EfficientAT MobileNet of width 0.1, 32 kHz, 128 bands) and a narrow CED
(4 blocks of 96 channels, 16 kHz, 64 bands). Both are written in the file formats of real teachers.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ced_edge.audio.clips import read_manifest
from ced_edge.audio.read import load
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import disk_errors, read_json, sha256_file, sha256_json, write_json
from ced_edge.machine import cores
from ced_edge.network.ced import CED
from ced_edge.spec import N_CLASSES, ModelSpec
from distill.devices import has_fast_bf16
from distill.processes import exit_with_parent
from distill.progress import ProgressBar
from distill.teachers.mobilenet import HalfRateFrontEnd, MobileNet
from distill.training.batches import Batch
from distill.training.config import Config
from distill.training.log import Reporter, TrainLog
from distill.training.loop import MODEL_NAME, Interrupted, Trainer, make_fabric, save_state
from distill.training.losses import prior_logits

VERSION = 2
"""Raised whenever the same clips would give other teachers."""
CNN_WIDTH = 0.1
TRANSFORMER = ModelSpec(width=96, heads=3, depth=4)
RATE_HZ = 16_000
LN_PER_DB = math.log(10.0) / 10.0
SHORT_FRAMES = 208
"""Frames (of 10 ms) of the windows that training starts with: a step on them costs half as much."""


@dataclass(frozen=True)
class Training:
    """How one teacher is trained. The defaults take about 95 s on one core for 2,000 clips of 4 s."""

    steps: int
    lr: float
    batch: int = 32
    warmup: float = 0.08
    """Share of the steps over which the learning rate rises."""
    short: float = 0.7
    """Share of the steps on short windows; the rest is on whole clips."""
    mix: float = 0.2
    """Chance that another clip is added to a clip."""
    seed: int = 0


TRAININGS = {"cnn": Training(steps=600, lr=1.5e-2), "transformer": Training(steps=700, lr=6e-3)}
"""Both teachers by name. The learning rates look high because the networks are small and the time is short."""


class Examples(NamedTuple):
    """Clips as a network's input: half-precision log-power, (N, bands, frames), and labels, (N, 527)."""

    mel: Tensor
    target: Tensor


class TeacherNet(NamedTuple):
    """A network to train and its parts. Log-power is the natural logarithm of power, from `floor` to about 10."""

    model: nn.Module
    front_end: Callable[[Tensor], Tensor]
    """Waveform (B, samples) at 16 kHz -> log-power (B, bands, frames)."""
    forward: Callable[[Tensor, int], Tensor]
    """Log-power, and a number that a network with a time embedding draws its place from -> logits (B, 527)."""
    head: nn.Linear
    floor: float
    optimizers: list[torch.optim.Optimizer]


def train_demo_teachers(manifest: Path, out: Path, trainings: dict[str, Training] | None = None) -> dict[str, Path]:
    """Train both teachers on the train split of `manifest`, side by side; return their files by name.

    The files (`cnn.pt`, `transformer.safetensors`) are what `load_teacher` reads. A teacher of the same clips and
    settings that is already in `out` is kept. Raises InputError on clips without labels or of unequal length.
    """
    trainings = trainings or TRAININGS
    paths = {"cnn": out / "cnn.pt", "transformer": out / "transformer.safetensors"}
    digest = sha256_file(manifest) if manifest.is_file() else ""
    identity = {name: sha256_json([VERSION, digest, asdict(t)]) for name, t in trainings.items()}
    missing = [name for name in paths if not _is_done(paths[name], identity[name])]
    if not missing:
        return paths
    threads = torch.get_num_threads()
    usable = min(threads, cores())
    jobs = [(name, trainings[name], manifest, paths[name], identity[name]) for name in missing]
    with contextlib.ExitStack() as stack:
        if len(jobs) == 2 and usable > 1:
            stack.enter_context(_in_another_process(*jobs.pop(0), usable // 2))
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(usable - usable // 2)
        for job in jobs:
            with ProgressBar(f"train demo teacher {job[0]}") as bar:
                train_one(*job, reporter=bar)
    return paths


def _is_done(path: Path, identity: str) -> bool:
    note = _note(path)
    return path.exists() and note.exists() and read_json(note) == {"identity": identity, "sha256": sha256_file(path)}


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _in_another_process(
    name: str, training: Training, manifest: Path, path: Path, identity: str, threads: int
) -> Iterator[None]:
    """Train a teacher while the block runs, and wait for it at the block's end."""
    # Spawned, not forked: a fork of a process with threads may hang.
    arguments = (name, training, manifest, path, identity, threads)
    process = multiprocessing.get_context("spawn").Process(target=_train_alone, args=arguments, daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()  # it saves itself first
        process.join()
    if process.exitcode:
        raise CedEdgeError(
            f"training the demo teacher {name} failed (exit code {process.exitcode}): run again to continue"
        )


def _train_alone(name: str, training: Training, manifest: Path, path: Path, identity: str, threads: int) -> None:
    # Ctrl-C in a terminal goes to the whole process group. It is for the parent, which then terminates this process.
    os.setpgid(0, 0)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        train_one(name, training, manifest, path, identity)
    except Interrupted as e:
        sys.exit(e.exit_code)
    except CedEdgeError as e:
        sys.exit(f"demo teacher {name}: {e}")


class TeacherTrainer(Trainer):
    """A trainer whose weights may be those of a MobileNet, which are written as EfficientAT's are: a state dict."""

    @property
    def weights(self) -> Path:
        return self.run / (MODEL_NAME if isinstance(self.student, CED) else "model.pt")

    def save_student(self, step: int) -> None:
        if isinstance(self.student, CED):
            super().save_student(step)
        else:
            save_state(self.weights, {k: v.contiguous() for k, v in self.student.state_dict().items()})


class TeacherLog(TrainLog):
    """The log of a teacher's training."""

    fields = ("step", "loss", "grad", "lr", "clips_per_s")

    def describe(self, row: dict[str, float]) -> str:
        return f"loss {row['loss']:.3f}"

    def problem(self, row: dict[str, float]) -> str:
        return ""


def train_one(
    name: str, training: Training, manifest: Path, path: Path, identity: str = "", reporter: Reporter | None = None
) -> None:
    """Train the teacher `name` (cnn or transformer) and write it to `path`. A run that was stopped is continued."""
    config = Config(
        batch=training.batch, lr=training.lr, warmup=training.warmup, clip=5.0, seed=training.seed, precision="fp32"
    )
    fabric = make_fabric("cpu", config.precision)
    torch.manual_seed(training.seed)
    net = (new_cnn if name == "cnn" else new_transformer)(training.lr)
    examples = read_examples(manifest, net.front_end)
    prevalence = examples.target.mean(dim=0)
    with torch.no_grad():
        net.head.bias.copy_(prior_logits(prevalence))
    # The folder's name holds the identity, so the state of other clips or settings is never continued.
    run = path.with_name(f"{name}-{identity[:12]}")
    recipe = {"identity": identity, "training": asdict(training)}
    trainer = TeacherTrainer(run, config, recipe, training.steps, fabric, net.model, net.optimizers, net.model)
    step = trainer.resume()
    net.model.train()
    losses, batches = make_losses(net, training, prevalence > 0), make_batches(examples, net, training, step)
    log = TeacherLog(run, step, training.steps, reporter)
    weights = trainer.fit(step, losses, net.optimizers, batches, log)
    with disk_errors(path):
        weights.replace(path)
    # The note last: a teacher without it is not taken for a finished one.
    write_json(_note(path), {"identity": identity, "sha256": sha256_file(path)})
    shutil.rmtree(run)


def new_cnn(lr: float) -> TeacherNet:
    """A MobileNet with initial weights. Its features are (ln power + 4.5) / 5, power floored at 1e-5."""
    model = MobileNet(CNN_WIDTH).to(memory_format=torch.channels_last)
    half_rate = HalfRateFrontEnd()

    def forward(mel: Tensor, place: int) -> Tensor:
        x = ((mel + 4.5) / 5.0).unsqueeze(1).contiguous(memory_format=torch.channels_last)
        return model(x)  # type: ignore[no-any-return]

    head = model.classifier[5]
    assert isinstance(head, nn.Linear)
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.02)
    return TeacherNet(model, lambda wave: half_rate(wave) * 5.0 - 4.5, forward, head, math.log(1e-5), [optimizer])


def new_transformer(lr: float) -> TeacherNet:
    """A narrow CED with initial weights. Its features are in dB; the power's floor is the front end's."""
    model = CED(TRANSFORMER)

    def forward(mel: Tensor, place: int) -> Tensor:
        # Windows anywhere in the time embedding, so that short ones train all of it.
        free = TRANSFORMER.grid_time - mel.shape[2] // TRANSFORMER.patch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_fast_bf16("cpu")):
            return model.forward_mel(mel / LN_PER_DB, place % (free + 1)).float()

    head = model.outputlayer[1]
    assert isinstance(head, nn.Linear)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.02),
        # Without it the same steps reach a mean AP of 0.67 instead of 0.83 on harder sounds of this kind.
        torch.optim.Muon(matrices, lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    ]
    front_end = model.front_end
    floor = math.log(TRANSFORMER.frontend.min_power)
    return TeacherNet(model, lambda wave: front_end(wave) * LN_PER_DB, forward, head, floor, optimizers)


@torch.no_grad()
def read_examples(manifest: Path, front_end: Callable[[Tensor], Tensor], split: str = "train") -> Examples:
    """The log-power of every clip of a split, and its labels. Raises InputError."""
    clips = read_manifest(manifest, split)
    target = torch.zeros(len(clips), N_CLASSES)
    mels, lengths = [], set()
    for first in range(0, len(clips), 32):
        some = clips[first : first + 32]
        waves = [torch.from_numpy(load(clip.path, RATE_HZ, clip.start_s, clip.stop_s)) for clip in some]
        lengths |= {len(wave) for wave in waves}
        if len(lengths) > 1:
            raise InputError(f"{manifest}: the demo teachers need clips of one length, these have {sorted(lengths)}")
        mels.append(front_end(torch.stack(waves)).half())
    for i, clip in enumerate(clips):
        if clip.labels is None:
            raise InputError(f"{manifest}: {clip.id} has no labels to train the demo teachers from")
        target[i, list(clip.labels)] = 1.0
    return Examples(torch.cat(mels), target)


def make_losses(net: TeacherNet, training: Training, present: Tensor) -> Callable[[Batch, int], dict[str, Tensor]]:
    """Binary cross-entropy over the classes that are `present` (527,), and for the transformer a share of softmax's."""

    def losses(batch: Batch, step: int) -> dict[str, Tensor]:
        logits = net.forward(batch.wave, _number(training.seed, step, PLACE))
        loss = 10.0 * F.binary_cross_entropy_with_logits(logits[:, present], batch.target[:, present])
        if len(net.optimizers) > 1:
            # From random weights, a transformer first predicts the same for every clip. Classes that compete in a
            # softmax leave that plateau sooner.
            shares = batch.target / batch.target.sum(dim=1, keepdim=True).clamp(min=1.0)
            loss = loss + 0.2 * F.cross_entropy(logits, shares)
        return {"loss": loss}

    return losses


def make_batches(
    examples: Examples, net: TeacherNet, training: Training, first: int = 0
) -> Generator[Batch, None, None]:
    """Augmented batches from number `first` on, without end: `wave` is log-power (B, bands, frames) here, not audio."""
    n, B = len(examples.mel), training.batch
    for k in itertools.count(first):
        # Passes over all clips, each in an order of its own, one behind the other. Batch k is positions k * B and on.
        turns = range(k * B // n, ((k + 1) * B - 1) // n + 1)
        order = torch.cat([torch.randperm(n, generator=_generator(training.seed, turn, ORDER)) for turn in turns])
        rows = order[k * B - turns[0] * n :][:B]
        rng = _generator(training.seed, k, AUGMENT)
        mel, target = augment(examples.mel[rows].float(), examples.target[rows], training.mix, net.floor, rng)
        if k < training.short * training.steps:
            mel = mel[:, :, :SHORT_FRAMES]
        yield Batch(mel, target, target > 0)


ORDER, AUGMENT, PLACE = 0, 1, 2
"""What random numbers are for: those of different uses are independent."""


def _number(seed: int, k: int, use: int) -> int:
    """A number below 2^63, a pure function of its arguments: so a run that was stopped continues exactly."""
    return int(np.random.Philox(key=[seed, k], counter=[0, 0, 0, use]).random_raw()) >> 1


def _generator(seed: int, k: int, use: int) -> torch.Generator:
    return torch.Generator().manual_seed(_number(seed, k, use))


def augment(
    mel: Tensor, target: Tensor, mix: float, floor: float, rng: torch.Generator, gain_db: Sequence[float] = (-9.0, 5.0)
) -> tuple[Tensor, Tensor]:
    """Roll, gain, mixing of clips in power, a time and a frequency mask: like the views that teachers predict later.

    mel: (B, F, T) natural log-power; target: (B, C) -> the same shapes. The labels of a mix are those of both.
    """
    B, F_, T = mel.shape

    def draw(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(B, generator=rng)

    frames = (torch.arange(T) - torch.randint(T, (B, 1), generator=rng)) % T
    mel = mel.gather(2, frames[:, None].expand(B, F_, T)) + (draw(*gain_db) * LN_PER_DB)[:, None, None]
    partner = torch.randperm(B, generator=rng)
    level = (draw(-12.0, 2.0) * LN_PER_DB)[:, None, None]
    mixed = (draw() < mix)[:, None]
    mel = torch.where(mixed[:, None], torch.logaddexp(mel, mel[partner] + level), mel)
    target = torch.where(mixed, torch.maximum(target, target[partner]), target)
    hidden = _band(draw() * T, draw(0.0, 0.2 * T) * (draw() < 0.5), T)[:, None, :]
    hidden = hidden | _band(draw() * F_, draw(0.0, 0.25 * F_) * (draw() < 0.5), F_)[:, :, None]
    return mel.masked_fill(hidden, floor).clamp(min=floor), target


def _band(start: Tensor, width: Tensor, size: int) -> Tensor:
    """Masks (B, size) that are true from `start` on for `width` places."""
    at = torch.arange(size)
    return (at >= start[:, None]) & (at < (start + width)[:, None])


def shorter(steps: int) -> dict[str, Training]:
    """Both trainings with that many steps: for a trial."""
    return {name: replace(training, steps=steps) for name, training in TRAININGS.items()}
