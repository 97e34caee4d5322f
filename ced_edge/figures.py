"""Figures by matplotlib, which the device install lacks: they are typed Any."""

from __future__ import annotations

import io
from typing import Any

from ced_edge.errors import InputError


def require_matplotlib(option: str) -> None:
    """Raise InputError that names `option`, the flag that asked for a figure, where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise InputError(f"{option} needs matplotlib: pip install matplotlib") from e


def new_figure(width_in: float, height_in: float) -> Any:
    """An empty figure of that size in inches."""
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def svg(figure: Any, salt: str) -> str:
    """A figure as an <svg> element; two of one page take different salts, which keep their ids apart."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": salt}), io.StringIO() as f:
        figure.savefig(f, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        return f.getvalue()[f.getvalue().index("<svg") :]
