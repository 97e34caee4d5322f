"""The main job: pack -> teach -> train -> evaluate in one folder, each stage going on where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
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
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model
from ced_edge.proof.reference import JSON_NAME
from ced_edge.spec import size
from distill.devices import find_device, local_device
from distill.evaluation.comparison import check_names, evaluate_student, evaluate_teachers
from distill.evaluation.plots import plot_loss, plot_per_class_ap
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack
from distill.processes import rank_and_world
from distill.progress import TrainingBar, stage
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import TeacherSpec
from distill.teaching.store import Store
from distill.teaching.teach import Job, teach, units
from distill.teaching.views import ViewRecipe
from distill.training.batches import TrainingData, batches_per_pass
from distill.training.config import TrainConfig
from distill.training.log import read_log
from distill.training.train import check_windows, train

SUMMARY_NAME = "summary.json"
TIMES_NAME = "times.json"


@dataclass(frozen=True)
class Plan:
    """All that the main job is made of."""

    run: Path
    clips: Sequence[Clip]
    """What is learnt from; labels are not looked at."""
    eval_clips: Sequence[Clip]
    """What is evaluated on; without any the last stage is left out."""
    teachers: tuple[TeacherSpec, ...]
    views: ViewRecipe
    train: TrainConfig
    pack: PackConfig = field(default_factory=PackConfig)
    k: int = 20
    init: str | None = None
    device: str = "cpu"
    note: str = ""
    """Said in the summary, for instance that this is a demonstration."""


def run_all(plan: Plan) -> dict[str, Any]:
    """Run every stage that is not done yet and return the summary, which is also written to `summary.json`.

    What can be refused is refused before anything is done.
    """
    ensemble = check(plan)
    with folder_lock(plan.run):
        with _timed(plan.run, "pack"), stage("pack", len(plan.clips)) as progress:
            shards = pack(plan.clips, plan.run / "pack", plan.pack, progress)
        batches_per_pass(shards, plan.train.batch, max(1, plan.train.workers))  # refuses before hours of teaching
        with _timed(plan.run, "teach"):
            store = run_teach(
                shards, plan.run / "store", plan.teachers, plan.views, plan.k, plan.device, ensemble=ensemble
            )
        del ensemble  # training needs the memory
        with _timed(plan.run, "train"):
            weights = run_train(plan.run, shards, store, plan.train, plan.init, plan.device)
        models: dict[str, Any] = {}
        if plan.eval_clips:
            with _timed(plan.run, "evaluate"):
                models = run_evaluate(plan, weights, store)
        summary = {
            "note": plan.note,
            "size": plan.train.size,
            "hours": shards.seconds / 3600.0,
            "clips": shards.clips,
            "rejected": shards.rejected,
            "views": shards.clips * len(store.epochs),
            "bytes_per_view": store.bytes() / (shards.clips * len(store.epochs)),
            "store": store.to_dict(),
            "models": models,
            "stage_seconds": read_json(plan.run / TIMES_NAME),
        }
        write_json(plan.run / SUMMARY_NAME, summary)
        plot_loss(plan.run / "loss.png", [(int(row["step"]), row["loss"]) for row in read_log(plan.run)])
    return summary


def check(plan: Plan) -> Ensemble:
    """The plan's teachers, loaded. Raises InputError on what the stages would refuse only hours later."""
    if rank_and_world()[1] > 1:
        raise InputError("distill is for one process: under torchrun use `ced-edge teach` and `ced-edge train`")
    find_device(plan.device)
    check_windows(size(plan.train.size), plan.views)
    load_student(plan.init, plan.train)
    check_names(plan.teachers)
    if plan.eval_clips and not any(clip.labels for clip in plan.eval_clips):
        raise InputError("no clip to evaluate on has labels: give manifests with a `labels` column as --eval-data")
    return Ensemble(load_teachers(plan.teachers, plan.device), plan.pack.rate_hz)


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
) -> Store:
    """Stage 2: shards -> the ensemble's answers to every view. Under torchrun processes share the shards."""
    # Loaded once, for the store's header and for the work in this process; pass them as `ensemble` if they are already.
    ensemble = ensemble or Ensemble(load_teachers(teachers, local_device(device)), shards.rate_hz)
    job = Job(shards, Store(out, views, ensemble.describe(), k, shards.hash, clean), tuple(teachers), device)
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with stage("teach", sum(shard.clips for shard, _ in units(job))) as progress:
        teach(job, workers or max(1, cores), progress, ensemble)
    return job.store


def run_train(
    run: Path,
    shards: Pack,
    store: Store,
    config: TrainConfig,
    init: str | None = None,
    device: str = "cpu",
    views: ViewRecipe | None = None,
) -> Path:
    """Stage 3: shards and answers -> a student's weights. Under torchrun processes share the batches."""
    student = load_student(init, config)
    rank, world = rank_and_world()
    if config.batch % world:
        raise InputError(f"--batch {config.batch} cannot be shared by {world} processes: choose a multiple of {world}")
    stream = TrainingData(
        shards,
        store,
        views or store.recipe,
        batch=config.batch // world,
        rate_hz=size(config.size).frontend.rate_hz,
        repeats=config.repeats,
        fill=config.fill,
        rank=rank,
        world=world,
    )
    with TrainingBar() if rank == 0 else contextlib.nullcontext() as bar:
        return train(run, stream, config, init=student, device=device, reporter=bar)


def load_student(init: str | None, config: TrainConfig) -> CED | None:
    """The weights to start from, if any. Raises InputError when they are of another size."""
    if init is None:
        return None
    student = load_model(init)
    if student.spec != size(config.size):
        raise InputError(f"--init {init} is a {student.spec.name}, --size is {config.size}: make them the same")
    return student


def run_evaluate(plan: Plan, weights: Path, store: Store) -> dict[str, Any]:
    """Stage 4: each teacher, the ensemble and the student on the same clips; reference, per-class AP and plot."""
    clips = [[*dataclasses.astuple(c)[2:], c.id, str(c.path), _version(c.path)] for c in plan.eval_clips]
    models = _kept(
        plan.run / "evaluation-teachers.json",
        [clips, store.teachers, plan.pack.rate_hz],
        lambda: _evaluate_teachers(plan),
    )
    student = plan.run / "evaluation-student.json"
    if not (plan.run / JSON_NAME).exists():  # which the same evaluation writes
        student.unlink(missing_ok=True)
    models |= _kept(
        student,
        [clips, sha256_file(weights)],
        lambda: {"student": _evaluate_student(plan, weights)},
    )
    write_json(plan.run / "evaluation.json", models)
    plot_per_class_ap(plan.run / "per_class_ap.png", _ap(models["student"]), _ap(models["ensemble"]))
    return {name: {k: m[k] for k in ("mean_ap", "top1_by_group", "clips")} for name, m in models.items()}


def _kept(file: Path, identity: Any, evaluate_now: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found when the same was asked before, as `file` tells, or is found now."""
    digest = sha256_json(identity)
    if file.exists() and (kept := read_json(file)).get("identity") == digest:
        return dict(kept["models"])
    models = evaluate_now()
    write_json(file, {"identity": digest, "models": models})
    return models


def _version(path: Path) -> list[int] | None:
    """What changes when a file does; None while it is missing."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None


def _evaluate_teachers(plan: Plan) -> dict[str, Any]:
    found = evaluate_teachers(plan.teachers, plan.eval_clips, plan.pack.rate_hz, plan.device)
    return {name: evaluation.to_dict() for name, evaluation in found.items()}


def _evaluate_student(plan: Plan, weights: Path) -> dict[str, Any]:
    found = evaluate_student(weights, plan.eval_clips, plan.device)
    found.reference(weights).write(plan.run)
    return found.to_dict()


def _ap(model: dict[str, Any]) -> Float64:
    ap: dict[str, float] = model["per_class_ap"]
    return np.array([ap.get(label.name, np.nan) for label in labels()], np.float64)


@contextlib.contextmanager
def _timed(run: Path, name: str) -> Iterator[None]:
    """Add up the wall seconds of a stage, over all times it was asked for."""
    start = time.monotonic()
    try:
        yield
    finally:
        file = run / TIMES_NAME
        times = read_json(file) if file.exists() else {}
        write_json(file, {**times, name: round(times.get(name, 0.0) + time.monotonic() - start, 1)})
