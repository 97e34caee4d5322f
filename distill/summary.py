"""The table that ends the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from distill.comparison import show_models


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
