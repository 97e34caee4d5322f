"""Teachers, their ensemble and a student on the same clips, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ced_edge.audio.clips import Clip
from ced_edge.errors import InputError
from ced_edge.network.checkpoint import load_model
from distill.evaluation.evaluate import Evaluation, evaluate, evaluate_together
from distill.progress import stage
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import TeacherSpec

_LAST = {"ensemble": 1, "student": 2}
"""These rows of the table stand below the teachers', in this order."""


def check_names(specs: Sequence[TeacherSpec]) -> None:
    """Raise InputError when a teacher has the name of one of these rows."""
    if taken := {spec.name for spec in specs} & _LAST.keys():
        raise InputError(f"a teacher cannot be named {taken.pop()}: write --teacher other-name=path")


def evaluate_teachers(
    specs: Sequence[TeacherSpec], clips: Sequence[Clip], rate_hz: int, device: str = "cpu", batch_size: int = 32
) -> dict[str, Evaluation]:
    """Load the teachers and evaluate them, see `evaluate_ensemble`. The audio is read at `rate_hz`."""
    check_names(specs)
    return evaluate_ensemble(Ensemble(load_teachers(specs, device), rate_hz), clips, batch_size)


def evaluate_ensemble(ensemble: Ensemble, clips: Sequence[Clip], batch_size: int = 32) -> dict[str, Evaluation]:
    """Each teacher alone, and the ensemble of all, by name. Each teacher predicts each clip once."""

    def predict(wave: Tensor) -> Tensor:
        each = ensemble.each(wave)
        return torch.cat([each, ensemble.average(each)[None]])  # (teachers + 1, B, 527)

    names = [*(teacher.name for teacher in ensemble.teachers), "ensemble"]
    with stage("evaluate teachers", len(clips)) as progress:
        return evaluate_together(predict, names, clips, ensemble.rate_hz, ensemble.device, batch_size, progress)


def evaluate_student(
    weights: str | Path, clips: Sequence[Clip], device: str = "cpu", dtype: str = "fp32", batch_size: int = 32
) -> Evaluation:
    """A student from its checkpoint."""
    model = load_model(weights)
    with stage("evaluate student", len(clips)) as progress:
        return evaluate(model, clips, device, dtype, batch_size, progress)


def show_models(models: dict[str, dict[str, Any]], out: Console) -> None:
    """Print a row per model; top-1 only where the clips have groups."""
    rows = sorted(models.items(), key=lambda item: _LAST.get(item[0], 0))
    groups = any(m["top1_by_group"] is not None for m in models.values())
    table = Table("model", "mAP", *(["top-1 by group"] if groups else []), "clips")
    for name, m in rows:
        table.add_row(name, *(_figure(m[k]) for k in ("mean_ap", *["top1_by_group"] * groups)), str(m["clips"]))
    out.print(table)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def show(summary: dict[str, Any], run: Path) -> None:
    """Print the summary of a run on stdout."""
    out = Console(highlight=False, markup=False, width=100)
    if summary["note"]:
        out.print(summary["note"])
    if summary["models"]:
        show_models(summary["models"], out)
        ensemble, student = (summary["models"][name]["mean_ap"] for name in ("ensemble", "student"))
        if ensemble:
            out.print(f"the student ({summary['size']}) reaches {student / ensemble:.1%} of the ensemble's mAP")
    seconds = [(stage, summary["stage_seconds"].get(stage)) for stage in ("pack", "teach", "train", "evaluate")]
    out.print(
        f"{summary['hours']:.2f} hours of audio in {summary['clips']} clips ({summary['rejected']} files rejected), "
        f"{summary['views']} views at {summary['bytes_per_view']:.1f} bytes"
    )
    out.print("wall time: " + ", ".join(f"{stage} {s:.0f} s" for stage, s in seconds if s is not None))
    out.print(f"weights, reference, evaluation and plots: {run}")
