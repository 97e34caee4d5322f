"""The main job: pack -> teach -> train -> evaluate in one folder, each stage going on where it stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.checkpoint import load_model
from ced_edge.errors import InputError
from ced_edge.files import folder_lock, read_json, sha256_json, write_json
from ced_edge.labels import labels
from ced_edge.manifest import Clip
from ced_edge.spec import size
from distill.config import TrainConfig
from distill.dataset import Stream
from distill.ensemble import Ensemble
from distill.evaluate import evaluate, evaluate_tagger
from distill.pack import PackConfig, pack
from distill.plots import plot_loss, plot_per_class_ap
from distill.progress import TrainingBar, stage
from distill.shards import Pack
from distill.store import Store
from distill.teach import Job, teach
from distill.teachers import TeacherSpec, load_teachers
from distill.train import train
from distill.trainlog import read_log
from distill.views import ViewRecipe

SUMMARY_NAME = "summary.json"


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
    """Run every stage that is not done yet and return the summary, which is also written to `summary.json`."""
    with folder_lock(plan.run):
        shards = run_pack(plan.clips, plan.run / "pack", plan.pack)
        store = run_teach(shards, plan.run / "store", plan.teachers, plan.views, plan.k, plan.device)
        weights = run_train(plan.run, shards, store, plan.train, plan.init, plan.device)
        summary = {
            "note": plan.note,
            "size": plan.train.size,
            "hours": shards.seconds / 3600.0,
            "clips": shards.clips,
            "rejected": shards.rejected,
            "views": shards.clips * len(store.epochs),
            "bytes_per_view": store.bytes() / (shards.clips * len(store.epochs)),
            "store": store.to_dict(),
            "models": run_evaluate(plan, weights, store) if plan.eval_clips else {},
            "stage_seconds": read_json(plan.run / "times.json"),
        }
        write_json(plan.run / SUMMARY_NAME, summary)
        plot_loss(plan.run / "loss.png", [(int(row["step"]), row["loss"]) for row in read_log(plan.run)])
    return summary


def run_pack(clips: Sequence[Clip], out: Path, config: PackConfig) -> Pack:
    """Stage 1: audio files -> shards."""
    with _timed(out.parent, "pack"), stage("pack", len(clips)) as progress:
        return pack(clips, out, config, progress)


def run_teach(
    shards: Pack, out: Path, teachers: Sequence[TeacherSpec], views: ViewRecipe, k: int, device: str,
    workers: int | None = None, clean: bool = False,
) -> Store:
    """Stage 2: shards -> the ensemble's answers to every view."""
    described = Ensemble(load_teachers(teachers), shards.rate_hz).describe()
    store = Store(out, views, described, k, shards.hash, clean)
    with _timed(out.parent, "teach"), stage("teach", shards.clips * len(store.epochs)) as progress:
        teach(Job(shards, store, tuple(teachers), device), workers or os.cpu_count() or 1, progress)
    return store


def run_train(
    run: Path, shards: Pack, store: Store, config: TrainConfig, init: str | None = None, device: str = "cpu",
    views: ViewRecipe | None = None,
) -> Path:
    """Stage 3: shards and answers -> a student's weights."""
    student = load_model(init) if init else None
    if student is not None and student.spec != size(config.size):
        raise InputError(f"--init {init} is a {student.spec.name}, --size is {config.size}: make them the same")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    stream = Stream(
        shards,
        store,
        views or store.recipe,
        batch=max(1, config.batch // world),
        rate_hz=size(config.size).frontend.rate_hz,
        repeats=config.repeats,
        fill=config.fill,
        rank=int(os.environ.get("RANK", "0")),
        world=world,
    )
    with _timed(run, "train"), TrainingBar() as bar:
        return train(run, stream, config, init=student, device=device, reporter=bar)


def run_evaluate(plan: Plan, weights: Path, store: Store) -> dict[str, Any]:
    """Stage 4: each teacher, the ensemble and the student on the same clips; reference, per-class AP and plot."""
    with _timed(plan.run, "evaluate"):
        models = _evaluate_teachers(plan, store)
        with stage("evaluate student", len(plan.eval_clips)) as progress:
            student = evaluate(load_model(weights), plan.eval_clips, plan.device, progress=progress)
    student.reference(weights).write(plan.run)
    models["student"] = student.to_dict()
    write_json(plan.run / "evaluation.json", models)
    plot_per_class_ap(plan.run / "per_class_ap.png", _ap(models["student"]), _ap(models["ensemble"]))
    return {name: {k: m[k] for k in ("mean_ap", "top1_by_group", "clips")} for name, m in models.items()}


def _evaluate_teachers(plan: Plan, store: Store) -> dict[str, Any]:
    """Every teacher and the ensemble; kept in a file, as they do not change when a student is trained anew."""
    file = plan.run / "evaluation-teachers.json"
    clips = [[c.id, c.labels, c.group, str(c.path)] for c in plan.eval_clips]
    identity = sha256_json([clips, store.teachers, plan.pack.rate_hz])
    if file.exists() and (kept := read_json(file)).get("identity") == identity:
        models: dict[str, Any] = kept["models"]
        return models
    teachers = load_teachers(plan.teachers, plan.device)
    ensembles = {t.name: Ensemble([t], plan.pack.rate_hz) for t in teachers}
    ensembles["ensemble"] = Ensemble(teachers, plan.pack.rate_hz)
    models = {}
    for name, ensemble in ensembles.items():
        with stage(f"evaluate {name}", len(plan.eval_clips)) as progress:
            found = evaluate_tagger(ensemble, plan.eval_clips, plan.pack.rate_hz, plan.device, progress=progress)
        models[name] = found.to_dict()
    write_json(file, {"identity": identity, "models": models})
    return models


def _ap(model: dict[str, Any]) -> NDArray[np.float64]:
    ap: dict[str, float] = model["per_class_ap"]
    return np.array([ap.get(label.name, np.nan) for label in labels()], np.float64)


@contextlib.contextmanager
def _timed(run: Path, name: str) -> Iterator[None]:
    """Add up the wall seconds of a stage over all runs, in `times.json`."""
    start = time.monotonic()
    try:
        yield
    finally:
        file = run / "times.json"
        times = read_json(file) if file.exists() else {}
        write_json(file, {**times, name: round(times.get(name, 0.0) + time.monotonic() - start, 1)})
