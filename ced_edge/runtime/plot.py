"""A picture of a file: its spectrogram above a timeline of its top tags."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.audio.intake import Intake
from ced_edge.audio.read import stream
from ced_edge.figures import new_figure
from ced_edge.files import atomic_path
from ced_edge.frontend import frames_db, hz_to_mel
from ced_edge.labels import labels
from ced_edge.runtime.events import borders_s
from ced_edge.runtime.show import clock
from ced_edge.runtime.tagger import Tags
from ced_edge.spec import FrontendSpec

_COLUMNS = 1_500
"""Most columns of a spectrogram; of more frames the loudest is drawn."""
_RANGE_DB = 80.0
_FAINT_DB = -20.0
_TICKS_HZ = (250, 500, 1_000, 2_000, 4_000)


def spectrogram(path: Path, spec: FrontendSpec, seconds: float) -> tuple[Float32, float]:
    """Log-mel (n_mels, columns) in dB of a file of that length, and the seconds of a column.

    Never more than a piece of the file is in memory.
    """
    samples = round(seconds * spec.rate_hz)
    per_column = max(1, -(-spec.frames(samples) // _COLUMNS))
    step = per_column * spec.hop  # samples
    intake, columns, start = Intake(spec.rate_hz), [np.empty((0, spec.n_mels), np.float32)], 0

    def take() -> int:
        """Add the columns that are whole; where the next one starts."""
        whole = max(0, intake.samples - start - spec.n_fft + spec.hop) // step
        if whole:
            db = frames_db(intake.view(start, start + whole * step - spec.hop + spec.n_fft), spec)
            columns.append(db.reshape(whole, per_column, spec.n_mels).max(axis=1))
            intake.drop(start + whole * step)
        return start + whole * step

    for piece, rate_hz in stream(path):
        intake.accept(piece, rate_hz)
        start = take()
    # Silence, until the last column is whole and the resampler has given all.
    intake.accept(np.zeros(round(rate_hz * (1 + (step + spec.n_fft) / spec.rate_hz)), np.float32))
    take()
    return np.concatenate(columns)[: -(-samples // step)].T, step / spec.rate_hz


def plot_tags(out: Path, path: Path, tags: Sequence[Tags], spec: FrontendSpec, top: int) -> None:
    """Draw the `top` tags of a file, by their highest probability, as a PNG. Raises CedEdgeError as `atomic_path`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    probs, seconds = np.stack([t.probs for t in tags]), tags[-1].end_s  # (windows, C)
    best = np.argsort(-probs.max(axis=0), kind="stable")[:top]
    mel, step_s = spectrogram(path, spec, seconds)
    figure = new_figure(10.0, 3.6 + 0.3 * top)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 0.4 + 0.3 * top])
    # Of a faint file no more than this is drawn as loud.
    loudest, width_s = max(float(mel.max()), _FAINT_DB), mel.shape[1] * step_s
    picture = above.imshow(
        mel, origin="lower", aspect="auto", extent=(0.0, width_s, 0.0, spec.n_mels), interpolation="nearest",
        cmap="magma", vmin=loudest - _RANGE_DB, vmax=loudest,
    )  # fmt: skip
    low, high = hz_to_mel(spec.f_min_hz), hz_to_mel(spec.f_max_hz)
    above.set_yticks([float((hz_to_mel(f) - low) / (high - low)) * spec.n_mels for f in _TICKS_HZ], map(str, _TICKS_HZ))
    above.set(ylabel="Hz (mel scale)")
    above.set_title(path.name.encode(errors="replace").decode(), parse_math=False)
    timeline = below.pcolormesh(
        borders_s(tags), np.arange(top + 1) - 0.5, probs.T[best], cmap="Blues", vmin=0.0, vmax=1.0
    )
    below.set_yticks(np.arange(top), [labels()[i].name for i in best])
    below.invert_yaxis()
    below.set(xlabel="time (min:s)", xlim=(0.0, seconds))
    below.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 1.5, 2, 3, 5, 6, 10]))
    below.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x)))
    figure.colorbar(picture, ax=above, label="dB")
    figure.colorbar(timeline, ax=below, label="probability")
    with atomic_path(out) as p, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of a name in a script the font lacks
        figure.savefig(p, format="png", dpi=120)
