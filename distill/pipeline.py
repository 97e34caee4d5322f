"""The main job: pack -> teach -> train -> evaluate in one folder. Each stage continues where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ced_edge.arrays import Float64
from ced_edge.audio.clips import Clip
from ced_edge.errors import InputError
from ced_edge.files import folder_lock, read_json, sha256_file, sha256_json, write_json
from ced_edge.labels import labels
from ced_edge.machine import cores
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model
from ced_edge.proof.reference import JSON_NAME
from ced_edge.spec import size
from distill.devices import find_device, local_device
from distill.evaluation.comparison import check_names, evaluate_ensemble, evaluate_student
from distill.evaluation.plots import plot_loss, plot_per_class_ap
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack
from distill.processes import batch_share, local_world, rank_and_world
from distill.progress import ProgressBar, stage
from distill.ranks import watched
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import TeacherSpec
from distill.teaching.store import Store
from distill.teaching.teach import Job, teach, units
from distill.teaching.views import ViewRecipe
from distill.training.balance import clip_weights
from distill.training.batches import TrainingData, batches_per_pass
from distill.training.config import PretrainConfig, TrainConfig
from distill.training.disturb import Chances
from distill.training.log import read_log
from distill.training.pretrain import pretrain
from distill.training.train import check_windows, train

SUMMARY_NAME = "summary.json"
TIMES_NAME = "times.json"


@dataclass(frozen=True)
class Plan:
    """Everything that the main job needs to know."""

    run: Path
    clips: Sequence[Clip]
    """The clips to learn from; their labels are not read."""
    eval_clips: Sequence[Clip]
    """The clips to evaluate on; without any, nothing is evaluated."""
    teachers: tuple[TeacherSpec, ...]
    views: ViewRecipe
    train: TrainConfig
    pack: PackConfig = field(default_factory=PackConfig)
    k: int = 20
    init: str | None = None
    """The weights to start from: a file, a run, a folder, or a hub name."""
    device: str = "cpu"
    note: str = ""
    """Printed with the summary, for instance that this is a demonstration."""


def run_all(plan: Plan) -> dict[str, Any]:
    """Run every stage that is not done yet and return the summary, which is also written to `summary.json`.

    Raises InputError before the first stage if anything in the plan cannot be used.
    """
    ensemble, student = check(plan)
    models: dict[str, Any] = {}
    with folder_lock(plan.run):
        with _timed(plan.run, "pack"), stage("pack", len(plan.clips)) as progress:
            shards = pack(plan.clips, plan.run / "pack", plan.pack, progress)
        batches_per_pass(shards, plan.train.batch, max(1, plan.train.workers))  # raises before hours of teaching
        with _timed(plan.run, "teach"):
            out = plan.run / "store"
            store = run_teach(shards, out, plan.teachers, plan.views, plan.k, plan.device, ensemble=ensemble)
        # The teachers are evaluated before the student is trained: they are loaded only once, and training, which
        # does not need them, has their memory.
        if plan.eval_clips:
            with _timed(plan.run, "evaluate"):
                models |= run_evaluate_teachers(plan, ensemble)
        del ensemble
        with _timed(plan.run, "train"):
            weights = run_train(plan.run, shards, store, plan.train, student, plan.device)
        if plan.eval_clips:
            with _timed(plan.run, "evaluate"):
                models |= run_evaluate_student(plan, weights)
            write_json(plan.run / "evaluation.json", models)
            plot_per_class_ap(plan.run / "per_class_ap.png", _ap(models["student"]), _ap(models["ensemble"]))
        summary = {
            "note": plan.note,
            "size": plan.train.size,
            "hours": shards.seconds / 3600.0,
            "clips": shards.clips,
            "rejected": shards.rejected,
            "views": shards.clips * len(store.epochs),
            "bytes_per_view": store.bytes() / (shards.clips * len(store.epochs)),
            "store": store.to_dict(),
            "models": {n: {k: m[k] for k in ("mean_ap", "top1_by_group", "clips")} for n, m in models.items()},
            "stage_seconds": read_json(plan.run / TIMES_NAME),
        }
        write_json(plan.run / SUMMARY_NAME, summary)
        plot_loss(plan.run / "loss.png", [(int(row["step"]), row["loss"]) for row in read_log(plan.run)])
    return summary


def check(plan: Plan) -> tuple[Ensemble, CED | None]:
    """Load the teachers and the student to start from. Raises InputError for what a stage would refuse hours later."""
    if rank_and_world()[1] > 1:
        raise InputError("distill is for one process: under torchrun use `ced-edge teach` and `ced-edge train`")
    find_device(plan.device)
    check_windows(size(plan.train.size), plan.views)
    if plan.eval_clips and not any(clip.labels for clip in plan.eval_clips):
        raise InputError("no clip to evaluate on has labels: give manifests with a `labels` column as --eval-data")
    check_names(plan.teachers)
    student = load_student(plan.init, plan.train)
    return Ensemble(load_teachers(plan.teachers, local_device(plan.device)), plan.pack.rate_hz), student


def run_teach(
    shards: Pack,
    out: Path,
    teachers: Sequence[TeacherSpec],
    views: ViewRecipe,
    k: int,
    device: str,
    workers: int | None = None,
    clean: bool = False,
    ensemble: Ensemble | None = None,
    dtype: str = "fp32",
) -> Store:
    """Stage 2: shards -> the ensemble's predictions of every view. Under torchrun, processes share the shards.

    `ensemble` holds the teachers where they are loaded already.
    """
    ensemble = ensemble or Ensemble(load_teachers(teachers, local_device(device)), shards.rate_hz, dtype)
    store = Store(out, views, ensemble.describe(), k, shards.hash, clean)
    job = Job(shards, store, tuple(teachers), device, ensemble.dtype)
    # A GPU's own process is busy with the teachers: one core is left to it.
    share = cores() // local_world() - (device != "cpu")
    with watched(), stage("teach", sum(shard.clips for shard, _ in units(job))) as progress:
        teach(job, workers or max(1, share), progress, ensemble)
    return job.store


def run_train(
    run: Path,
    shards: Pack,
    store: Store,
    config: TrainConfig,
    student: CED | None = None,
    device: str = "cpu",
    views: ViewRecipe | None = None,
) -> Path:
    """Stage 3: shards and stored predictions -> a student's weights. Under torchrun, processes share each batch.

    `student` holds the weights to start from, see `load_student`. `views` are for stores of clean clips only.
    """
    rank, world = rank_and_world()
    stream = TrainingData(
        shards,
        store,
        views or store.recipe,
        batch=batch_share(config.batch, world),
        rate_hz=size(config.size).frontend.rate_hz,
        repeats=config.repeats,
        fill=config.fill,
        rank=rank,
        world=world,
        chances=Chances(config.gain, config.noise, config.band, config.reverb),
        weights=tuple(clip_weights(shards, store, config.balance)) if config.balance else (),
    )
    with watched(), _bar("train") as bar:
        return train(run, stream, config, init=student, device=device, reporter=bar)


def run_pretrain(run: Path, shards: Pack, config: PretrainConfig, device: str = "cpu") -> Path:
    """Before stage 3, and not part of the main job: shards -> a student's weights to start from."""
    batch_share(config.batch, rank_and_world()[1])  # refused before the processes wait for each other
    with watched(), _bar("pretrain") as bar:
        return pretrain(run, shards, config, device, bar)


def _bar(name: str) -> contextlib.AbstractContextManager[ProgressBar | None]:
    """A progress bar; None in all processes of torchrun except the first."""
    return ProgressBar(name) if rank_and_world()[0] == 0 else contextlib.nullcontext()


def load_student(init: str | None, config: TrainConfig) -> CED | None:
    """The weights to start from; None if `init` is None. Raises InputError when they are of another size."""
    if init is None:
        return None
    student = load_model(init)
    if student.spec != size(config.size):
        raise InputError(f"--init {init} is a {student.spec.name}, --size is {config.size}: make them the same")
    return student


def run_evaluate_teachers(plan: Plan, ensemble: Ensemble) -> dict[str, Any]:
    """Stage 4, first part: each teacher and the ensemble on the evaluation clips; figures by name."""

    def evaluate_now() -> dict[str, Any]:
        evaluations = evaluate_ensemble(ensemble, plan.eval_clips)
        return {name: evaluation.to_dict() for name, evaluation in evaluations.items()}

    identity = [_identity(plan.eval_clips), ensemble.describe(), plan.pack.rate_hz]
    return _kept(plan.run / "evaluation-teachers.json", identity, evaluate_now)


def run_evaluate_student(plan: Plan, weights: Path) -> dict[str, Any]:
    """Stage 4, second part: the student on the same clips; writes the reference for exported models."""

    def evaluate_now() -> dict[str, Any]:
        evaluation = evaluate_student(weights, plan.eval_clips, plan.device)
        evaluation.reference(weights).write(plan.run)
        return {"student": evaluation.to_dict()}

    file = plan.run / "evaluation-student.json"
    if not (plan.run / JSON_NAME).exists():
        file.unlink(missing_ok=True)  # only a new evaluation writes the reference again
    return _kept(file, [_identity(plan.eval_clips), sha256_file(weights)], evaluate_now)


def _kept(file: Path, identity: Any, evaluate_now: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures in `file` if they are of this identity; else new ones, which are written there."""
    digest = sha256_json(identity)
    if file.exists() and (kept := read_json(file)).get("identity") == digest:
        return dict(kept["models"])
    models = evaluate_now()
    write_json(file, {"identity": digest, "models": models})
    return models


def _identity(clips: Sequence[Clip]) -> list[Any]:
    """What decides the figures of these clips: their descriptions, and the versions of their files."""
    return [[*dataclasses.astuple(c)[2:], c.id, str(c.path), _version(c.path)] for c in clips]


def _version(path: Path) -> list[int] | None:
    """Size and time of change of a file, which hashing thousands of files would be too slow for; None if missing."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None


def _ap(model: dict[str, Any]) -> Float64:
    ap: dict[str, float] = model["per_class_ap"]
    return np.array([ap.get(label.name, np.nan) for label in labels()], np.float64)


@contextlib.contextmanager
def _timed(run: Path, name: str) -> Iterator[None]:
    """Add the wall seconds of the block to those of this stage in earlier runs and earlier blocks."""
    start = time.monotonic()
    try:
        yield
    finally:
        file = run / TIMES_NAME
        times = read_json(file) if file.exists() else {}
        write_json(file, {**times, name: round(times.get(name, 0.0) + time.monotonic() - start, 1)})
