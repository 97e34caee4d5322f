"""Figures by matplotlib. The type is Any, because an install on a device has no matplotlib."""

from __future__ import annotations

import io
from typing import Any

from ced_edge.errors import InputError


def require_matplotlib(option: str) -> None:
    """Raise InputError when matplotlib is missing. `option` is the flag that needs it."""
    try:
        import matplotlib  # noqa: F401  (only to see whether it is there)
    except ImportError as e:
        raise InputError(f"{option} needs matplotlib: pip install matplotlib") from e


def new_figure(width_in: float, height_in: float) -> Any:
    """An empty figure. Width and height are in inches."""
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def svg(figure: Any, salt: str) -> str:
    """A figure as an <svg> element. Two figures on one page need different salts, so that their ids differ."""
    import matplotlib

    # Without a date and the name of the program, the same figure gives the same text.
    with matplotlib.rc_context({"svg.hashsalt": salt}), io.StringIO() as f:
        figure.savefig(f, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        return f.getvalue()[f.getvalue().index("<svg") :]
