"""Which samples each window covers. Only integers, so files and streams get exactly the same windows.

Windows start at 0, hop, 2 hop, ... and are `chunk` samples long. If samples are left after the last full window, one
shorter window follows, up to the end. So no sample is dropped, and no window is empty. In an average over windows,
the weight of a window is its real samples (stop - start), without padding.
"""

from __future__ import annotations


def n_full(samples: int, chunk: int, hop: int | None = None) -> int:
    """The number of full windows in the first `samples` samples: a stream can predict these before it ends."""
    hop = chunk if hop is None else hop
    if not 0 < hop <= chunk:
        raise ValueError(f"a hop of {hop} samples over windows of {chunk} would skip samples or never end")
    return 0 if samples < chunk else 1 + (samples - chunk) // hop


def n_windows(samples: int, chunk: int, hop: int | None = None) -> int:
    """The number of windows of an input of `samples` samples, with the shorter one at the end."""
    n, step = n_full(samples, chunk, hop), chunk if hop is None else hop
    # With overlapping windows the last full one may already reach the end.
    covered = (n - 1) * step + chunk if n else 0
    return n + (covered < samples)


def span(i: int, samples: int, chunk: int, hop: int | None = None) -> tuple[int, int]:
    """(start, stop) of window `i` over an input of `samples` samples."""
    start = i * (chunk if hop is None else hop)
    return start, min(start + chunk, samples)


def chunks(samples: int, chunk: int, hop: int | None = None) -> list[tuple[int, int]]:
    """(start, stop) of every window of an input of `samples` samples, with the shorter one at the end.

    Without `hop` the windows do not overlap: each sample is in exactly one window.
    """
    return [span(i, samples, chunk, hop) for i in range(n_windows(samples, chunk, hop))]


def times_s(span: tuple[int, int], rate_hz: int) -> tuple[float, float]:
    """Start and end of a window in seconds from the beginning of the input."""
    return span[0] / rate_hz, span[1] / rate_hz
