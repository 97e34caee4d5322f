"""A picture of a file: its spectrogram above a timeline of its top tags."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.audio.intake import Intake
from ced_edge.audio.read import stream
from ced_edge.figures import new_figure
from ced_edge.files import atomic_path
from ced_edge.frontend import frames_db, hz_to_mel
from ced_edge.labels import labels
from ced_edge.runtime.clock import clock
from ced_edge.runtime.events import borders_s
from ced_edge.runtime.tagger import Tags
from ced_edge.spec import FrontendSpec

WINDOW_S, HOP_S, ROWS = 2.0, 0.5, 10
"""Windows and rows of a picture by default. In a window of 10 s a short sound has a low probability, and one sound
often brings several related classes."""
_MAX_COLUMNS = 1_500
"""Most columns of a spectrogram. A longer file has several frames per column, and the loudest one is drawn."""
_RANGE_DB = 80.0
"""From the darkest to the brightest colour."""
_QUIET_DB = -20.0
"""The brightest colour stands for at least this level, so that the noise of a silent file does not look loud."""
_TICKS_HZ = (250, 500, 1_000, 2_000, 4_000)


def spectrogram(path: Path, spec: FrontendSpec, seconds: float) -> tuple[Float32, float]:
    """Log-mel (n_mels, columns) in dB of a file that lasts `seconds`, and the seconds of one column.

    The file is read in pieces, so that the memory does not grow with its length. Raises AudioError.
    """
    samples = round(seconds * spec.rate_hz)
    frames_per_column = max(1, -(-spec.frames(samples) // _MAX_COLUMNS))
    step = frames_per_column * spec.hop  # samples per column
    intake, columns, start = Intake(spec.rate_hz, None), [np.empty((0, spec.n_mels), np.float32)], 0

    def take() -> int:
        """Compute the columns whose samples are all there, and return the first sample of the next column."""
        # The last frame of a column reaches n_fft - hop samples into the next column.
        whole = max(0, intake.samples - start - spec.n_fft + spec.hop) // step
        if whole:
            db = frames_db(intake.view(start, start + whole * step - spec.hop + spec.n_fft), spec)
            columns.append(db.reshape(whole, frames_per_column, spec.n_mels).max(axis=1))
            intake.drop(start + whole * step)
        return start + whole * step

    for piece, rate_hz in stream(path):
        intake.accept(piece, rate_hz)
        start = take()
    # Silence completes the last column, and pushes out the samples that the resampler still holds.
    intake.accept(np.zeros(round(rate_hz * (1 + (step + spec.n_fft) / spec.rate_hz)), np.float32))
    take()
    return np.concatenate(columns)[: -(-samples // step)].T, step / spec.rate_hz


def tags_figure(path: Path, tags: Sequence[Tags], spec: FrontendSpec, top: int) -> Any:
    """A matplotlib figure of a file and its windows, which are at least one. Raises AudioError.

    The `top` tags are those with the highest probability in any window, the highest one in the first row.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    probs, seconds = np.stack([t.probs for t in tags]), tags[-1].end_s  # (windows, C)
    best = np.argsort(-probs.max(axis=0), kind="stable")[:top]
    figure = new_figure(10.0, 3.6 + 0.3 * top)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 0.4 + 0.3 * top])
    picture = _draw_spectrogram(above, path, spec, seconds)
    # File names are text: a `$` in one must not start a formula, and its bytes may not be UTF-8.
    above.set_title(path.name.encode(errors="replace").decode(), parse_math=False)
    timeline = below.pcolormesh(
        borders_s(tags), np.arange(len(best) + 1) - 0.5, probs.T[best], cmap="Blues", vmin=0.0, vmax=1.0
    )
    below.set_yticks(np.arange(len(best)), [labels()[i].name for i in best])
    below.invert_yaxis()
    below.set(xlabel="time (min:s)", xlim=(0.0, seconds))
    # Steps that read well as minutes and seconds; matplotlib's own would give 2:30.0 or 0:25.0.
    below.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 1.5, 2, 3, 5, 6, 10]))
    below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x)))
    figure.colorbar(picture, ax=above, label="dB")
    figure.colorbar(timeline, ax=below, label="probability")
    return figure


def _draw_spectrogram(axes: Any, path: Path, spec: FrontendSpec, seconds: float) -> Any:
    mel, column_s = spectrogram(path, spec, seconds)
    # The last column may reach beyond the end of the file, so the picture is drawn to its own width.
    width_s = mel.shape[1] * column_s
    loudest = max(float(mel.max()), _QUIET_DB)
    low, high = hz_to_mel(spec.f_min_hz), hz_to_mel(spec.f_max_hz)
    axes.set_yticks([float((hz_to_mel(f) - low) / (high - low)) * spec.n_mels for f in _TICKS_HZ], map(str, _TICKS_HZ))
    axes.set(ylabel="Hz (mel scale)")
    return axes.imshow(
        mel, origin="lower", aspect="auto", extent=(0.0, width_s, 0.0, spec.n_mels), interpolation="nearest",
        cmap="magma", vmin=loudest - _RANGE_DB, vmax=loudest,
    )  # fmt: skip


def plot_tags(out: Path, path: Path, tags: Sequence[Tags], spec: FrontendSpec, top: int) -> None:
    """Write `tags_figure` as a PNG file. Raises AudioError, and CedEdgeError where `out` cannot be written."""
    figure = tags_figure(path, tags, spec, top)
    with atomic_path(out) as p, warnings.catch_warnings():
        # A file name may be in a script that the font lacks: an empty box is drawn, which is no reason to warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(p, format="png", dpi=120)
