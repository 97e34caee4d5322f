"""Which samples a window covers, and what happens at the tail: integers only, the same offline and in a stream.

Windows start at 0, hop, 2 hop, ... and are `chunk` samples long. The tail rule: as long as samples are left that no
full window holds, one more window takes what there is from its start to the end. So no sample is dropped, and input
of exactly a multiple of the window makes no empty one. Averaged over windows, each counts by the samples it holds
(stop - start), not by what it is padded to.
"""

from __future__ import annotations


def n_full(samples: int, chunk: int, hop: int | None = None) -> int:
    """How many windows the first `samples` samples fill: what a stream can answer before it ends."""
    hop = chunk if hop is None else hop
    if not 0 < hop <= chunk:
        raise ValueError(f"a hop of {hop} samples over windows of {chunk} would leave samples out or never end")
    return 0 if samples < chunk else 1 + (samples - chunk) // hop


def n_windows(samples: int, chunk: int, hop: int | None = None) -> int:
    """How many windows an input of `samples` samples has, the tail included."""
    n, step = n_full(samples, chunk, hop), chunk if hop is None else hop
    covered = (n - 1) * step + chunk if n else 0
    return n + (covered < samples)


def span(i: int, samples: int, chunk: int, hop: int | None = None) -> tuple[int, int]:
    """(start, stop) of window `i` over an input of `samples` samples."""
    start = i * (chunk if hop is None else hop)
    return start, min(start + chunk, samples)


def chunks(samples: int, chunk: int, hop: int | None = None) -> list[tuple[int, int]]:
    """(start, stop) of every window over an input of `samples` samples, the tail included.

    Without `hop` the windows follow on one another: each sample is in exactly one.
    """
    return [span(i, samples, chunk, hop) for i in range(n_windows(samples, chunk, hop))]


def times_s(span: tuple[int, int], rate_hz: int) -> tuple[float, float]:
    """Start and end of a window in seconds from the input's beginning."""
    return span[0] / rate_hz, span[1] / rate_hz
