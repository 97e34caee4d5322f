"""The table that ends the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_LAST = {"ensemble": 1, "student": 2}
"""Rows of the table below the teachers'."""


def show(summary: dict[str, Any], run: Path) -> None:
    """Print the summary of a run on stdout."""
    out = Console(highlight=False, markup=False, width=100)
    if summary["note"]:
        out.print(summary["note"])
    if summary["models"]:
        table = Table("model", "mAP", "top-1 by group", "clips")
        for name, m in sorted(summary["models"].items(), key=lambda item: _LAST.get(item[0], 0)):
            table.add_row(name, _figure(m["mean_ap"]), _figure(m["top1_by_group"]), str(m["clips"]))
        out.print(table)
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


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
