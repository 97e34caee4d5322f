"""The picture of a file: what is drawn, in which order and place, and with which values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Call
from tiny_bundle import shared_bundle

from ced_edge.labels import labels
from ced_edge.runtime.plot import spectrogram, tags_figure
from ced_edge.runtime.tagger import Tags
from ced_edge.spec import FrontendSpec

pytest.importorskip("matplotlib", reason="matplotlib draws the picture")

PROBS = [{74: 0.2, 0: 0.9}, {74: 0.6, 0: 0.1, 500: 0.4}, {74: 0.3}]
"""Of three windows of 2 s, one every second: class -> probability."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """4 s of quiet noise with a loud tone of 1 kHz from 2 to 3 s; its name is not a formula."""
    wave = np.random.default_rng(0).normal(0, 1e-4, 4 * 44_100)
    wave[2 * 44_100 : 3 * 44_100] += 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(44_100) / 44_100)
    soundfile.write(tmp_path / "$_x$.wav", wave, 44_100, subtype="FLOAT")
    return tmp_path / "$_x$.wav"


@pytest.fixture
def figure(path: Path) -> Any:
    rows = np.zeros((3, 527), np.float32)
    for row, probs in zip(rows, PROBS, strict=True):
        row[list(probs)] = list(probs.values())
    tags = [Tags(i, i + 2.0, row) for i, row in enumerate(rows)]
    figure = tags_figure(path, tags, FrontendSpec(), top=3)
    figure.canvas.draw()
    return figure


def test_the_timeline_has_the_top_tags_in_order_with_their_values_and_times(figure: Any) -> None:
    below = figure.axes[1]
    assert [t.get_text() for t in below.get_yticklabels()] == ["Speech", "Dog", "Silence"]
    assert below.yaxis_inverted()  # row 0, the likeliest class, is at the top
    (mesh,) = below.collections
    np.testing.assert_allclose(mesh.get_array(), [[0.9, 0.1, 0.0], [0.2, 0.6, 0.3], [0.0, 0.4, 0.0]], atol=1e-7)
    # The border between two windows is midway between their centres.
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0.0, 1.5, 2.5, 4.0]
    assert mesh.get_coordinates()[:, 0, 1].tolist() == [-0.5, 0.5, 1.5, 2.5]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0.0, 1.0)
    assert below.get_xlim() == (0.0, 4.0)
    assert below.get_xlabel() == "time (min:s)"
    assert "0:01.5" in [t.get_text() for t in below.get_xticklabels()]


def test_the_spectrogram_is_drawn_above_it_on_the_same_time_axis(figure: Any, path: Path) -> None:
    above, below, *bars = figure.axes
    assert above.get_title() == "$_x$.wav"
    assert not above.title.get_parse_math()
    assert above.get_shared_x_axes().joined(above, below)
    assert [bar.get_ylabel() for bar in bars] == ["dB", "probability"]
    (image,) = above.images
    mel, column_s = spectrogram(path, FrontendSpec(), 4.0)
    np.testing.assert_array_equal(image.get_array(), mel)
    assert image.origin == "lower"
    assert image.get_extent() == [0.0, pytest.approx(mel.shape[1] * column_s), 0.0, 64]
    assert image.get_clim() == (pytest.approx(mel.max() - 80), pytest.approx(mel.max()))
    # The loudest point is at the frequency and time of the tone.
    ticks = dict(zip([t.get_text() for t in above.get_yticklabels()], above.get_yticks(), strict=True))
    assert list(ticks) == ["250", "500", "1000", "2000", "4000"]
    row, column = np.unravel_index(mel.argmax(), mel.shape)
    assert row + 0.5 == pytest.approx(ticks["1000"], abs=1.0)
    assert 2.0 <= column * column_s <= 3.0


def test_noise_of_a_silent_file_is_not_drawn_as_loud(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.random.default_rng(0).normal(0, 1e-5, 16_000), 16_000, subtype="FLOAT")
    tags = [Tags(0.0, 1.0, np.zeros(527, np.float32))]
    (image,) = tags_figure(tmp_path / "x.wav", tags, FrontendSpec(), top=5).axes[0].images
    assert image.get_array().max() < -30
    assert image.get_clim() == (-100.0, -20.0)


def test_a_short_sound_with_a_high_peak_has_a_row_and_a_high_mean_has_none(path: Path) -> None:
    rows = np.zeros((8, 527), np.float32)
    rows[:, [100, 101, 102]] = 0.5  # all the time
    rows[3, 200] = 0.9  # in one window: a mean of 0.11
    rows[5, 201] = 0.6
    tags = [Tags(i / 2, i / 2 + 0.5, row) for i, row in enumerate(rows)]
    below = tags_figure(path, tags, FrontendSpec(), top=2).axes[1]
    assert [t.get_text() for t in below.get_yticklabels()] == [labels()[i].name for i in (200, 201)]


@pytest.mark.parametrize(
    ("flags", "windows", "rows"),
    [
        ((), 5, 10),  # windows of 2 s every 0.5 s of 4 s
        (("--top", 3), 5, 3),
        (("--window", 1), 4, 10),
        (("--hop", 1, "--top", 20), 3, 20),
    ],
)
def test_the_windows_and_rows_of_a_picture(
    call: Call, path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...], windows: int, rows: int
) -> None:
    drawn: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "ced_edge.runtime.plot.plot_tags", lambda out, path, tags, spec, top: drawn.append((len(tags), top))
    )
    code, out, _ = call("tag", path, "--bundle", shared_bundle().folder, "--plot", "a.png", "--json", *flags)
    assert (code, drawn) == (0, [(windows, rows)])
    if not flags:  # what is printed does not depend on the picture
        assert out == call("tag", path, "--bundle", shared_bundle().folder, "--json")[1]


def test_tag_plot_writes_the_picture_and_nothing_else(call: Call, path: Path) -> None:
    import matplotlib.image

    out, before = path.with_name("a.png"), path.read_bytes()
    tag = ("tag", path, "--bundle", shared_bundle().folder, "--top", 2, "--plot")
    assert call(*tag, out)[0] == 0
    assert matplotlib.image.imread(out).shape[:2] == (round(120 * (3.6 + 0.6)), 1_200)
    code, _, err = call(*tag, out / "x.png")
    assert code == 1
    assert err.startswith(f"ced-edge: cannot write {out / 'x.png'}")
    # The recording by mistake, which the picture would overwrite.
    code, _, err = call(*tag, path)
    assert code == 2
    assert "ends in .png" in err
    assert path.read_bytes() == before


def test_tag_plot_without_matplotlib(call: Call, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = call("tag", path, "--bundle", shared_bundle().folder, "--plot", "a.png")
    assert (code, out, err) == (2, "", "ced-edge: --plot needs matplotlib: pip install matplotlib\n")


@pytest.mark.parametrize(
    ("samples", "rate_hz"), [(100, 16_000), (4_000, 16_000), (100_000, 44_100), (2_000_000, 16_000)]
)
def test_the_spectrogram_shows_each_sound_in_its_place(tmp_path: Path, samples: int, rate_hz: int) -> None:
    wave = np.zeros(samples, np.float32)
    at = samples // 3
    wave[at : at + rate_hz // 100 + 1] = 0.5
    soundfile.write(tmp_path / "x.wav", wave, rate_hz)
    seconds = samples / rate_hz
    picture, column_s = spectrogram(tmp_path / "x.wav", FrontendSpec(), seconds)
    assert picture.shape[0] == 64
    assert picture.shape[1] <= 1_500
    assert picture.shape[1] == pytest.approx(seconds / column_s, abs=1.0)
    assert picture.max(axis=0).argmax() * column_s == pytest.approx(at / rate_hz, abs=column_s + 0.05)
