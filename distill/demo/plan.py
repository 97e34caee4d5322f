"""The built-in demonstration: synthesised sounds, and two small teachers that are trained from their labels first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ced_edge.audio.clips import read_manifest
from ced_edge.files import folder_lock
from distill.demo.synth import write_dataset
from distill.demo.teachers import train_demo_teachers
from distill.packing.pack import PackConfig
from distill.pipeline import Plan
from distill.progress import stage
from distill.teachers.spec import parse_teachers
from distill.teaching.views import ViewRecipe
from distill.training.config import TrainConfig

log = logging.getLogger(__name__)

NOTE = (
    "This is a demonstration: the sounds are synthesised and the teachers were trained on them minutes ago. "
    "It shows every stage at work. Its student is not a tagger for real audio."
)
CLIPS, EVAL_CLIPS, SECONDS = 2_000, 480, 4.0
TRAINING: dict[str, Any] = {"batch": 32, "repeats": 2}
"""The demonstration's own defaults of training flags."""
WINDOWS = ((5, 2.0), (1, 4.0))
"""Short windows first: a step on them costs half as much, and most of the sounds are short."""


def plan(run: Path, config: TrainConfig, windows: tuple[tuple[int, float], ...] | None, seed: int, device: str) -> Plan:
    """Write the sounds, train the teachers, and plan the main job on them."""
    log.info(NOTE)
    with folder_lock(run):
        with stage("synthesise", CLIPS + EVAL_CLIPS) as progress:
            manifest = write_dataset(run / "data", CLIPS, EVAL_CLIPS, seconds=SECONDS, progress=progress)
        teachers = train_demo_teachers(manifest, run / "teachers")
    return Plan(
        run,
        read_manifest(manifest, split="train"),
        read_manifest(manifest, split="eval"),
        tuple(parse_teachers([f"{name}={path}" for name, path in teachers.items()])),
        ViewRecipe(seed=seed, windows=windows or WINDOWS),
        config,
        PackConfig(clips_per_shard=500),
        device=device,
        note=NOTE,
    )
