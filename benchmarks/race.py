"""Timing of several parts that take turns, so that a busy machine slows all of them equally."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np


def race(parts: dict[str, Callable[[], Any]], turns: int) -> dict[str, np.ndarray]:
    """Call each part once per turn, after two calls to warm up. Returns name -> (turns,) milliseconds."""
    for call in parts.values():
        call()
        call()
    took: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(turns):
        for name, call in parts.items():
            start = time.perf_counter()
            call()
            took[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(ms) for name, ms in took.items()}


def ratios(took: dict[str, np.ndarray], over: str) -> dict[str, dict[str, float]]:
    """Median milliseconds, and how many times as fast as `over`.

    Each ratio is taken within one turn. The result is the median and the quartiles over the turns.
    """
    result = {}
    for name, ms in took.items():
        low, mid, high = np.percentile(took[over] / ms, [25, 50, 75])
        result[name] = {
            "ms": float(np.median(ms)),
            "ratio": float(mid),
            "ratio_low": float(low),
            "ratio_high": float(high),
        }
    return result


def show(result: dict[str, dict[str, float]], over: str) -> None:
    """Print the result of `ratios` as a table."""
    width = max(map(len, result))
    click.echo(f"{'':{width}} {'ms':>8}   times as fast as {over} (quartiles)")
    for name, r in result.items():
        click.echo(f"{name:{width}} {r['ms']:8.2f}   {r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})")
