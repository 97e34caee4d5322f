"""The two teachers of the demonstration, trained on the spot from the labels of synthesised clips.

They differ in kind: a convolutional network (an EfficientAT MobileNet of width 0.1, 32 kHz, 128 bands) and a narrow CED
(4 blocks of 96 channels, 16 kHz, 64 bands). Both are written in the file forms that real teachers come in.
"""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ced_edge.audio.clips import read_manifest
from ced_edge.audio.read import load
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import atomic_path, read_json, sha256_file, sha256_json, write_json
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import save_model
from ced_edge.spec import N_CLASSES, ModelSpec
from distill.progress import stage
from distill.teachers.mobilenet import HalfRateFrontEnd, MobileNet
from distill.training.losses import prior_logits
from distill.training.optimizers import schedule

VERSION = 1
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
    """Share of the steps on short windows; the last ones hear whole clips."""
    mix: float = 0.2
    """Chance that another clip is added to a clip."""
    seed: int = 0


TRAININGS = {"cnn": Training(steps=600, lr=1.5e-2), "transformer": Training(steps=700, lr=6e-3)}
"""The teachers there are. The learning rates look high because the networks are small and the time is short."""


class Examples(NamedTuple):
    """Clips as a network hears them: half-precision log-power, (N, bands, frames), and labels, (N, 527)."""

    mel: Tensor
    target: Tensor


class TeacherNet(NamedTuple):
    """A network to train and what belongs to it; log-power is natural, in `floor` ... about 10."""

    model: nn.Module
    front_end: Callable[[Tensor], Tensor]
    """Waveform (B, samples) at 16 kHz -> log-power (B, bands, frames)."""
    forward: Callable[[Tensor, int], Tensor]
    """Log-power and a number that may choose a place in a time embedding -> logits (B, 527)."""
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
    cores = max(1, min(threads, os.cpu_count() or 1))
    jobs = [(name, trainings[name], manifest, paths[name], identity[name]) for name in missing]
    with contextlib.ExitStack() as stack:
        if len(jobs) == 2 and cores > 1:
            stack.enter_context(_in_another_process(*jobs.pop(0), cores // 2))
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(cores - cores // 2)
        progress = stack.enter_context(stage("train demo teachers", sum(job[1].steps for job in jobs)))
        for job in jobs:
            train_one(*job, progress)
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
    """Train a teacher beside what the block does, and wait for it at the block's end."""
    # Spawned, not forked: a fork of a process with threads may hang. A daemon: it ends with this process.
    arguments = (name, training, manifest, path, identity, threads)
    process = multiprocessing.get_context("spawn").Process(target=_train_alone, args=arguments, daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode:
        raise CedEdgeError(
            f"training the demo teacher {name} failed (exit code {process.exitcode}): run again to go on"
        )


def _train_alone(name: str, training: Training, manifest: Path, path: Path, identity: str, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        train_one(name, training, manifest, path, identity)
    except CedEdgeError as e:
        sys.exit(f"demo teacher {name}: {e}")


def train_one(
    name: str,
    training: Training,
    manifest: Path,
    path: Path,
    identity: str = "",
    progress: Callable[[int], None] = lambda n: None,
) -> None:
    """Train the teacher `name` (cnn or transformer) and write it to `path`; `progress(1)` after each step."""
    torch.manual_seed(training.seed)
    student = (new_cnn if name == "cnn" else new_transformer)(training.lr)
    fit(student, read_examples(manifest, student.front_end), training, progress)
    if isinstance(student.model, CED):
        save_model(path, student.model, {"recipe": asdict(training)})
    else:
        # Through memory: the name of the file does not get into its bytes.
        buffer = io.BytesIO()
        torch.save({k: v.contiguous() for k, v in student.model.state_dict().items()}, buffer)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    write_json(_note(path), {"identity": identity, "sha256": sha256_file(path)})


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
        free = TRANSFORMER.grid_time - mel.shape[2] // TRANSFORMER.patch
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=_has_bf16()):
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


def _has_bf16() -> bool:
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


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


def fit(student: TeacherNet, examples: Examples, training: Training, progress: Callable[[int], None]) -> None:
    """Train in place: binary cross-entropy over the classes there are, and a share of categorical cross-entropy."""
    rng = torch.Generator().manual_seed(training.seed)
    prevalence = examples.target.mean(dim=0)
    present = prevalence > 0
    with torch.no_grad():
        student.head.bias.copy_(prior_logits(prevalence))
    student.model.train()
    order: list[int] = []
    for step in range(training.steps):
        if len(order) < training.batch:
            order += torch.randperm(len(examples.mel), generator=rng).tolist()
        batch, order = order[: training.batch], order[training.batch :]
        mel, target = augment(examples.mel[batch].float(), examples.target[batch], training.mix, student.floor, rng)
        if step < training.short * training.steps:
            mel = mel[:, :, :SHORT_FRAMES]
        for optimizer in student.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = training.lr * schedule(step, training.steps, training.warmup)
        logits = student.forward(mel, int(torch.randint(1 << 30, (), generator=rng)))
        loss = 10.0 * F.binary_cross_entropy_with_logits(logits[:, present], target[:, present])
        if len(student.optimizers) > 1:  # the transformer: such a term leaves the plateau of the first steps sooner
            shares = target / target.sum(dim=1, keepdim=True).clamp(min=1.0)
            loss = loss + 0.2 * F.cross_entropy(logits, shares)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.model.parameters(), 5.0)
        for optimizer in student.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress(1)
    student.model.eval()


def augment(
    mel: Tensor, target: Tensor, mix: float, floor: float, rng: torch.Generator, gain_db: Sequence[float] = (-9.0, 5.0)
) -> tuple[Tensor, Tensor]:
    """Roll, gain, mixing of clips in power, a time and a frequency mask, as the views that teachers will hear.

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
