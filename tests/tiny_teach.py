"""What the tests of teaching share: a pack of noise, a teacher that is cheap to run, and jobs for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ced_edge.audio.clips import Clip
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import save_model
from ced_edge.spec import ModelSpec
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import TeacherSpec
from distill.teaching.store import Store
from distill.teaching.teach import Job
from distill.teaching.views import ViewRecipe

RATE_HZ = 16_000
RECIPE = ViewRecipe(windows=((2, 0.5), (1, 1.0)))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def make_pack(folder: Path) -> Pack:
    """Four shards of six clips, 0.2 to 1.5 s of noise."""
    rng = np.random.default_rng(0)
    clips = []
    for i in range(24):
        wave = rng.normal(0.0, 0.1, int(rng.uniform(0.2, 1.5) * RATE_HZ))
        soundfile.write(folder / f"{i}.wav", wave, RATE_HZ)
        clips.append(Clip(f"{i}.wav", folder / f"{i}.wav", (i, i + 100), None))
    return pack(clips, folder / "pack", PackConfig(clips_per_shard=6, workers=1))


def make_teacher(folder: Path, seed: int = 0) -> TeacherSpec:
    """A real teacher, `narrow`, with random weights."""
    torch.manual_seed(seed)
    path = folder / "narrow.safetensors"
    save_model(path, CED(ModelSpec(width=48, heads=3, depth=1)).eval(), {})
    return TeacherSpec("narrow", str(path))


def job_for(packed: Pack, teacher: TeacherSpec, folder: Path, **changes: Any) -> Job:
    """A job that predicts all views of a pack into a store at `folder`, whose fields may be changed."""
    described = Ensemble(load_teachers([teacher]), packed.rate_hz).describe()
    store = Store(folder, RECIPE, described, 20, packed.hash)
    return Job(packed, dataclasses.replace(store, **changes), (teacher,))
