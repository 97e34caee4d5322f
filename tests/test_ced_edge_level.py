"""Level and gain: values worked out by hand, and the same bits for any chunking."""

from __future__ import annotations

import math

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st
from test_ced_edge_streaming import Echo, cut, make, run, same, wave_of
from tiny_bundle import shared_bundle

from ced_edge.audio.level import Gain, Level, mean_level, with_gain
from ced_edge.errors import InputError
from ced_edge.runtime.tagger import StreamingTagger, Tagger

RATE = 16_000


def sine(amplitude: float, hz: float = 440.0, rate_hz: int = RATE) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(rate_hz) / rate_hz)).astype(np.float32)


def level(wave: np.ndarray, gain_db: Gain = 0.0) -> Level:
    return with_gain(wave.astype(np.float32), gain_db)[1]


def test_levels_by_hand() -> None:
    square = np.where(np.arange(1_600) % 2, 0.5, -0.5)
    assert level(square) == Level(pytest.approx(-6.0206, abs=1e-4), pytest.approx(-6.0206, abs=1e-4), False)
    assert level(sine(0.1)).rms_dbfs == pytest.approx(-23.01, abs=0.005)
    assert level(sine(0.1)).peak_dbfs == pytest.approx(-20.0, abs=0.005)
    assert level(np.full(5, 2.0)).peak_dbfs == pytest.approx(6.0206, abs=1e-4)
    assert level(np.full(1, -0.5)).peak_dbfs == pytest.approx(-6.0206, abs=1e-4)


def test_digital_zeros() -> None:
    zeros = level(np.zeros(100))
    assert (zeros.rms_dbfs, zeros.peak_dbfs, zeros.zeros) == (-math.inf, -math.inf, True)
    one_bit = np.zeros(16_000)
    one_bit[7] = 1 / 32_768
    assert not level(one_bit).zeros


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_clipping_is_found_at_any_rate_of_the_source(rate_hz: int) -> None:
    """16-bit samples, as a sound card gives them."""

    def clipped(wave: np.ndarray) -> bool:
        samples = (np.clip(np.rint(wave * 32_768), -32_768, 32_767) / 32_768).astype(np.float32)
        return level(samples if rate_hz == RATE else soxr.resample(samples, rate_hz, RATE, quality="HQ")).clipped

    noise = np.random.default_rng(0).normal(0, 0.2, RATE)
    if rate_hz != RATE:  # with the frequencies that the model gets
        noise = soxr.resample(noise, RATE, rate_hz, quality="HQ")
    assert clipped(sine(2.0, rate_hz=rate_hz))
    assert clipped(noise * 3)
    assert not clipped(sine(1.0, rate_hz=rate_hz))  # at full scale, and whole
    assert not clipped(noise / np.abs(noise).max())  # normalised to full scale
    assert not clipped(noise)


def test_gain_by_hand() -> None:
    wave = sine(0.1)
    louder, found = with_gain(wave, 20.0)
    np.testing.assert_array_equal(louder, wave * np.float32(10))
    assert found.gain_db == 20
    assert found.rms_dbfs == pytest.approx(-3.01, abs=0.005)
    assert not found.clipped
    assert level(wave, 26.0).clipped
    assert with_gain(wave, 0.0)[0] is wave  # the bits of old predictions do not change


@pytest.mark.parametrize(
    ("wave", "gain_db"),
    [
        (sine(10 ** (-40 / 20)), 23.01),  # to -20 dBFS RMS
        (sine(10 ** (-80 / 20)), 40.0),  # not more
        (sine(0.5), 0.0),  # never lower
        (np.zeros(100, np.float32), 0.0),
        (np.eye(1, 16_000, 5, np.float32)[0] * np.float32(0.1), 19.0),  # the peak stays below -1 dBFS
    ],
)
def test_automatic_gain_by_hand(wave: np.ndarray, gain_db: float) -> None:
    assert level(wave, "auto").gain_db == pytest.approx(gain_db, abs=0.01)


@pytest.mark.parametrize("gain_db", [101.0, -101.0, math.nan, math.inf])
def test_a_gain_that_is_a_mistake(gain_db: float) -> None:
    with pytest.raises(InputError, match=r"a gain of .*: give dB from -100 to 100, or auto"):
        StreamingTagger(Tagger(shared_bundle()), gain_db=gain_db)


@given(
    gain_db=st.sampled_from([0.0, 13.7, -6.0, "auto"]),
    at=st.lists(st.floats(0, 1), max_size=20),
    late=st.booleans(),
    rate_hz=st.sampled_from([None, 44_100]),
)
def test_gain_and_level_do_not_depend_on_chunking(gain_db: Gain, at: list[float], late: bool, rate_hz: int) -> None:
    wave = wave_of(20_000, 2, 0) * np.linspace(0.001, 1.5, 20_000, dtype=np.float32)[:, None]
    streams = [make(Echo(), hop_s=0.07) for _ in range(2)]
    for stream in streams:
        stream.gain_db = gain_db
    whole, pieces = run(streams[0], [wave], rate_hz), run(streams[1], cut(wave, at), rate_hz, late)
    assert same(whole, pieces)
    assert [t.level for t in whole] == [t.level for t in pieces]


@pytest.mark.parametrize("gain_db", [12.0, "auto"])
@pytest.mark.parametrize("input", ["waveform", "mel"])
def test_gain_is_what_the_model_gets(gain_db: Gain, input: str) -> None:
    """A model that shares spectrogram frames between windows must not share them between gains."""
    tagger, wave = Tagger(shared_bundle(input)), wave_of(70_000, 1, 1) * np.float32(0.01)
    wave[30_000:] *= np.float32(0.1)
    for tags in tagger.tag(wave, hop_s=0.5, gain_db=gain_db):
        window = wave[round(tags.start_s * RATE) : round(tags.end_s * RATE)]
        louder, found = with_gain(window, gain_db)
        assert tags.level == found
        np.testing.assert_array_equal(tags.probs, tagger.predict_window(louder))


def test_the_level_of_several_windows() -> None:
    both = mean_level([(Level(-20.0, -10.0, False), 3.0), (Level(-math.inf, -math.inf, True, 4.0), 1.0)])
    assert both == Level(pytest.approx(-20 + 10 * math.log10(0.75)), -10.0, True, 1.0)
