"""Results of `ced-edge check` and `ced-edge bench` to read: aligned tables, and one HTML file with plots."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ced_edge.figures import new_figure, require_matplotlib, svg
from ced_edge.files import atomic_path
from ced_edge.labels import labels
from ced_edge.machine import cpu_name
from ced_edge.proof.bench import Timing
from ced_edge.proof.check import Result
from ced_edge.proof.profile import Profile
from ced_edge.proof.reference import Reference

MAX_CLASSES = 25
"""Number of classes in the plot of drops: those that lost most."""

# The verdict is the first column: a wide table is cut off at the right, in a browser and in a terminal.
CHECK_HEAD = (
    "verdict", "file", "runtime", "mAP", "drop", "vs fp32", "class drop", "max error", "mean error", "noise", "top-1",
    "ms", "MB", "peak MB",
)  # fmt: skip
LEFT_ALIGNED = frozenset({"verdict", "file", "runtime", "op"})
"""Columns of words; the others are numbers and are aligned to the right."""
BENCH_HEAD = ("file", "runtime", "threads", "ms", "p95", "spread", "RTF", "load ms", "cold ms", "peak MB", "MB")
OP_HEAD = ("op", "share", "ms", "calls")

# The figures' table scrolls by itself, so that the page keeps its width in a small window.
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
td, th { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
.left, .words td, .words th { text-align: left }
.words td { white-space: normal }
.broken { color: #b00020; font-weight: 600 }
svg { max-width: 100%; height: auto }
"""


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces: LEFT_ALIGNED ones to the left, the others to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            c.ljust(w) if name in LEFT_ALIGNED else c.rjust(w) for name, c, w in zip(head, row, widths, strict=True)
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def names(files: Sequence[str]) -> list[str]:
    """Names of the files without the folder that all of them share."""
    paths = [Path(f).absolute() for f in files]
    shared = os.path.commonpath([p.parent for p in paths]) if paths else ""
    return [str(p.relative_to(shared)) for p in paths]


def check_rows(results: Sequence[Result]) -> list[list[str]]:
    """A row under CHECK_HEAD for each result."""
    return [
        [
            "BROKEN" if r.broken else "ok, in part" if r.unchecked else "ok",
            name,
            r.runtime,
            f"{r.mean_ap:.4f}",
            f"{r.reference.drop:+.4f}",
            "" if r.fp32 is None else f"{r.fp32.drop:+.4f}",
            f"{r.reference.class_drop:+.3f}",
            *_errors(r),
            f"{r.latency_ms:.1f}",
            f"{r.size_mb:.2f}",
            "" if r.memory_mb is None else f"{r.memory_mb:.0f}",
        ]
        for name, r in zip(names([r.file for r in results]), results, strict=True)
    ]


def _errors(r: Result) -> list[str]:
    """Cells for the errors of the probabilities, over all clips where an fp32 file makes that possible."""
    c = r.fp32 or r.reference
    if not c.clips:  # no clip had the same input, and there is no fp32 file
        return [""] * 4
    return [f"{c.max_error:.1e}", f"{c.mean_error:.1e}", f"{c.noise:.3f}", f"{c.top1:.3f}"]


def bench_rows(timings: Sequence[Timing]) -> list[list[str]]:
    """A row under BENCH_HEAD for each timing."""
    return [
        [
            name,
            t.runtime,
            str(t.threads),
            f"{t.median_ms:.2f}",
            f"{t.p95_ms:.2f}",
            f"{t.spread:.0%}",
            f"{t.real_time_factor:.4f}",
            f"{t.load_ms:.0f}",
            f"{t.cold_ms:.0f}",
            "" if t.peak_mb is None else f"{t.peak_mb:.0f}",
            f"{t.size_mb:.2f}",
        ]
        for name, t in zip(names([t.file for t in timings]), timings, strict=True)
    ]


def op_rows(profile: Profile) -> list[list[str]]:
    """A row under OP_HEAD for each type of operator."""
    return [[t.op, f"{t.share:.1%}", f"{t.ms:.3f}", f"{t.calls:g}"] for t in profile.ops]


def profile_notes(profile: Profile) -> list[str]:
    """Lines above the table: the sum beside the whole model, the method, and operators that were not timed."""
    lines = [f"sum of operators {profile.ops_ms:.2f} ms, whole model {profile.whole_ms:.2f} ms", profile.method]
    if profile.left_out:
        lines.append(f"not timed: {', '.join(f'{n} {op}' for op, n in profile.left_out.items())}")
    return lines


def notes(results: Sequence[Result]) -> list[str]:
    """What the table has no room for: worst classes, what was compared, streams, and bounds broken or not checked."""
    lines: list[str] = []
    for name, r in zip(names([r.file for r in results]), results, strict=True):
        worst = [f"{label} {drop:+.3f}" for label, drop in r.reference.worst(3) if drop > 0]
        lines.append(f"{name} on {r.runtime}: " + (f"lost most: {', '.join(worst)}" if worst else "no class lost"))
        if "alone" in r.compared_with:
            lines.append(f"{name} on {r.runtime}: compared with {r.compared_with}")
        if r.same_input < r.clips:
            lines.append(
                f"{name} on {r.runtime}: {r.clips - r.same_input} of {r.clips} clips were cut or padded differently "
                "than for the reference; "
                + ("they are compared with the fp32 file on the same input" if r.fp32 else "only their mAP is compared")
            )
        if r.stream_difference is not None:
            equal = "exactly equal" if r.stream_difference == 0 else f"different by {r.stream_difference:.2g}"
            lines.append(f"{name} on {r.runtime}: predictions in a stream are {equal}")
        lines += [f"{name} on {r.runtime}: NOT CHECKED: {what}" for what in r.unchecked]
        lines += [f"{name} on {r.runtime}: BROKEN: {what}" for what in r.broken]
    return lines


def accuracy_plot(results: Sequence[Result], reference: Reference) -> Any:
    """Draw mAP against latency: one point per result, hollow where a bound is broken, and the reference as a line."""
    figure = new_figure(8.0, 4.5)
    axes = figure.add_subplot()
    mean_ap = reference.metrics["mean_ap"]
    axes.axhline(float(mean_ap or 0.0), color="0.5", linestyle="--", linewidth=1, label=f"reference, {mean_ap:.4f}")
    for i, (name, r) in enumerate(zip(names([r.file for r in results]), results, strict=True)):
        label = f"{_plain(name)}, {r.runtime}: {r.mean_ap:.4f}, {r.latency_ms:.1f} ms"
        colour = f"C{i % 10}"
        axes.scatter(
            r.latency_ms,
            r.mean_ap,
            s=60,
            marker=_marker(r),
            color=colour,
            facecolor="none" if r.broken else colour,
            label=label,
        )
    axes.set(xlabel="latency of a full window in ms (median)", ylabel="mAP", title="Accuracy against latency")
    axes.margins(y=0.2)
    # From 0, so that distances show ratios of the times; the mAP is not from 0, where all points would lie together.
    axes.set_xlim(0.0, 1.1 * max(r.latency_ms for r in results))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0, frameon=False)
    return figure


def class_plot(results: Sequence[Result]) -> Any:
    """Draw the classes that lost most in any result, the worst on top: a row per class, a point per result."""
    drops = np.stack([r.reference.class_drops for r in results])  # (R, C)
    present = np.flatnonzero(~np.isnan(drops).any(axis=0))  # classes that some clip has
    worst = present[np.argsort(drops[:, present].max(axis=0), kind="stable")][-MAX_CLASSES:]
    figure = new_figure(8.0, 2.0 + 0.25 * len(worst) + 0.2 * len(results))
    axes = figure.add_subplot()
    y = np.arange(len(worst))
    axes.axvline(0.0, color="0.5", linewidth=1)
    axes.hlines(y, drops[:, worst].min(axis=0), drops[:, worst].max(axis=0), color="0.8", zorder=1)
    for i, (name, r) in enumerate(zip(names([r.file for r in results]), results, strict=True)):
        axes.scatter(
            drops[i, worst], y, s=25, marker=_marker(r), color=f"C{i % 10}", label=f"{_plain(name)}, {r.runtime}"
        )
    axes.set_yticks(y, [labels()[i].name for i in worst], fontsize=8)  # the last one is drawn on top
    axes.set(xlabel="average precision lost against the reference", title="Drops per class")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), borderaxespad=0, frameon=False)
    return figure


def _plain(name: str) -> str:
    """A name for matplotlib, which reads what stands between two $ as a formula."""
    return name.replace("$", r"\$")


def _marker(r: Result) -> str:
    return {"fp32": "s", "int8": "o"}.get(r.kind, "^")


def write_html(path: Path, results: Sequence[Result], reference: Reference) -> None:
    """Write one self-contained file, without scripts or links. Raises InputError without matplotlib."""
    require_matplotlib("--report")
    held = all(not r.broken for r in results)
    partly = any(r.unchecked for r in results)
    holds = "All bounds that could be checked hold; some could not be." if partly else "All bounds hold."
    verdict = holds if held else '<span class="broken">Bounds are broken.</span>'
    m = reference.metrics
    clips = f"{len(reference.ids)} clips, {reference.dtype} on {reference.device}"
    facts = [
        ("Reference", f"mAP {m['mean_ap']:.4f} over {m.get('classes_present')} classes, {clips}"),
        ("Weights (sha256)", reference.weights_hash),
        ("Data (sha256)", reference.data_hash),
        ("This machine", cpu_name()),
    ]
    body = [
        f"<h1>ced-edge check</h1><p>{verdict}</p>",
        _html_table((), facts, "words"),
        _html_table(CHECK_HEAD, check_rows(results)),
        _html_table((), [(note,) for note in notes(results)], "words"),
        # Each plot has its own salt: two SVGs on a page with the same ids would use each other's symbols.
        svg(accuracy_plot(results, reference), "accuracy"),
        svg(class_plot(results), "classes"),
    ]
    head = f'<meta charset="utf-8"><title>ced-edge check</title><style>{STYLE}</style>'
    with atomic_path(path) as p:
        text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(body)}\n</body></html>\n'
        p.write_text(text, encoding="utf-8")


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """An HTML table; `head` may be empty. Every cell is escaped, as names in it come from files of anyone's making."""

    def line(tag: str, cells: Sequence[str]) -> str:
        parts = []
        for i, cell in enumerate(cells):
            classes = ["left"] * (i < len(head) and head[i] in LEFT_ALIGNED) + ["broken"] * ("BROKEN" in cell)
            parts.append(f'<{tag} class="{" ".join(classes)}">{html.escape(cell)}</{tag}>')
        return f"<tr>{''.join(parts)}</tr>"

    lines = [line("th", head)] if head else []
    return f'<table class="{style}">' + "\n".join([*lines, *(line("td", row) for row in rows)]) + "</table>"
