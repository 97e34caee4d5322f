"""Disturbances of the student's views: level, noise, band and room measured by scipy; the same in any process."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, stats
from tiny_run import RATE_HZ, RECIPE, config, make_pack, make_store, small_student, stop_at

from ced_edge.arrays import Float32
from ced_edge.errors import InputError
from distill.packing.shards import read_shard
from distill.pipeline import run_train
from distill.training import batches as dataset
from distill.training.batches import Batches, TrainingData, loader
from distill.training.disturb import Chances, Disturbance, disturb, draw_disturbance
from distill.training.train import train

ALL = Chances(0.5, 0.5, 0.5, 0.5)


def noise(seconds: float, rms: float = 0.01) -> Float32:
    rng = np.random.default_rng(0)
    return (rms * rng.standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def db(power: float) -> float:
    return float(10 * np.log10(power))


def power(wave: np.ndarray) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


@pytest.mark.parametrize("gain_db", [-40.0, -7.5, 6.0])
def test_the_level_changes_by_the_gain(gain_db: float) -> None:
    wave = noise(1.0)
    assert db(power(disturb(wave, Disturbance(gain_db=gain_db), RATE_HZ)) / power(wave)) == pytest.approx(gain_db)


def test_what_would_clip_is_scaled_as_a_whole() -> None:
    wave = noise(1.0, rms=0.2)
    out = disturb(wave, Disturbance(gain_db=6.0), RATE_HZ)
    assert float(np.abs(out).max()) == pytest.approx(1.0)
    np.testing.assert_allclose(out / out.max(), wave / wave.max(), atol=1e-6)


@pytest.mark.parametrize(("snr_db", "slope"), [(5.0, 0.0), (20.0, 0.5), (40.0, 1.0)])
def test_noise_has_its_level_and_its_colour(snr_db: float, slope: float) -> None:
    wave = noise(20.0)
    added = disturb(wave, Disturbance(noise=(snr_db, slope), key="a"), RATE_HZ).astype(np.float64) - wave
    assert db(power(wave) / power(added)) == pytest.approx(snr_db, abs=0.05)
    hz, density = signal.welch(added, RATE_HZ, nperseg=4096)
    inside = (hz > 40) & (hz < 6_000)
    fitted = np.polyfit(np.log10(hz[inside]), 10 * np.log10(density[inside]), 1)[0]
    assert fitted == pytest.approx(-20 * slope, abs=0.6)  # dB per decade of power
    assert abs(stats.pearsonr(added, wave).statistic) < 0.01


@pytest.mark.parametrize("band", [(50.0, 7_500.0), (400.0, 3_000.0)])
def test_the_band_is_that_of_two_butterworth_filters(band: tuple[float, float]) -> None:
    wave = noise(30.0)
    out = disturb(wave, Disturbance(band_hz=band), RATE_HZ)
    hz, before = signal.welch(wave, RATE_HZ, nperseg=4096)
    _, after = signal.welch(out, RATE_HZ, nperseg=4096)
    inside = (hz > 30) & (hz < 7_900)
    expected = np.ones_like(hz, complex)
    for edge, order, kind in ((band[0], 2, "highpass"), (band[1], 4, "lowpass")):
        b, a = signal.butter(order, 2 * np.pi * edge, kind, analog=True)
        expected *= signal.freqs(b, a, 2 * np.pi * hz)[1]
    difference = 10 * np.log10(after[inside] / before[inside]) - 20 * np.log10(np.abs(expected[inside]))
    assert np.abs(difference).max() < 1.0  # dB; the edges leak a little between the bins


@pytest.mark.parametrize(("decay_s", "direct_db"), [(0.1, 12.0), (0.3, 0.0), (0.8, -3.0)])
def test_the_room_has_its_decay_time_and_its_direct_sound(decay_s: float, direct_db: float) -> None:
    """Schroeder's backward integral of the response to an impulse, as ISO 3382 measures reverberation."""
    impulse = np.zeros(2 * RATE_HZ, np.float32)
    impulse[0] = 0.5
    tail = disturb(impulse, Disturbance(reverb=(decay_s, direct_db), key="b"), RATE_HZ).astype(np.float64)
    scale = np.abs(tail).max()  # the direct sound, in case the sum was scaled
    left = np.cumsum(np.square(tail[::-1]))[::-1]
    level = 10 * np.log10(left / left[1] + 1e-12)
    within = slice(np.argmax(level < -5), np.argmax(level < -25))  # T20
    t = np.arange(len(tail))[within] / RATE_HZ
    assert -60 / np.polyfit(t, level[within], 1)[0] == pytest.approx(decay_s, rel=0.1)
    assert scale > 0
    wave = noise(4.0)
    wet = disturb(wave, Disturbance(reverb=(decay_s, direct_db), key="b"), RATE_HZ) - wave
    assert db(power(wave) / power(wet)) == pytest.approx(direct_db, abs=0.01)


def test_reverberation_never_comes_before_its_sound() -> None:
    wave = np.zeros(RATE_HZ, np.float32)
    wave[5_000:] = noise(1.0)[5_000:]
    out = disturb(wave, Disturbance(reverb=(0.5, 0.0), key="c"), RATE_HZ)
    assert np.abs(out[:5_000]).max() < 1e-9
    assert not np.allclose(out[5_000:], wave[5_000:])


@settings(max_examples=40)
@given(st.integers(1, 5_000), st.floats(0.0, 1.0), st.integers(0, 99))
def test_any_view_stays_audio_of_its_length(n: int, rms: float, number: int) -> None:
    wave = np.clip(rms * np.random.default_rng(number).standard_normal(n), -1, 1).astype(np.float32)
    for silent in (wave, np.zeros_like(wave)):
        out = disturb(silent, draw_disturbance(Chances(1, 1, 1, 1), number, 0, "x"), RATE_HZ)
        assert (out.shape, out.dtype) == (silent.shape, np.float32)
        assert np.isfinite(out).all()
        assert np.abs(out).max() <= 1.0
        assert silent.any() or not out.any()


def test_draws_have_their_chances_and_ranges() -> None:
    drawn = [
        draw_disturbance(Chances(0.3, 0.6, 0.1, 1.0), 3, turn, f"clip {i}") for turn in (0, 1) for i in range(2_000)
    ]
    kinds = Counter(name for d in drawn for name in ("gain_db", "noise", "band_hz", "reverb") if getattr(d, name))
    assert [kinds[k] / len(drawn) for k in ("gain_db", "noise", "band_hz", "reverb")] == pytest.approx(
        [0.3, 0.6, 0.1, 1.0], abs=0.025
    )
    rooms = [d.reverb for d in drawn if d.reverb]
    for values, (low, high) in (
        ([d.gain_db for d in drawn if d.gain_db is not None], (-40, 6)),
        ([d.noise[0] for d in drawn if d.noise], (5, 40)),
        ([d.noise[1] for d in drawn if d.noise], (0, 1)),
        ([decay for decay, _ in rooms], (0.1, 0.8)),
        ([direct for _, direct in rooms], (-3, 12)),
    ):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_one_chance_does_not_change_the_other_kinds() -> None:
    for i in range(50):
        one = draw_disturbance(Chances(noise=0.5), 0, 0, str(i))
        both = draw_disturbance(Chances(gain=1.0, noise=0.5, reverb=1.0), 0, 0, str(i))
        assert (one.noise, one.key, one.gain_db) == (both.noise, both.key, None)
    assert draw_disturbance(Chances(), 0, 0, "a") == Disturbance(key=one.key.replace("49", "a"))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("data")
    packed = make_pack(folder)
    return TrainingData(packed, make_store(folder / "store", packed), RECIPE, 4, RATE_HZ, 2, chances=ALL)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_student_alone_gets_the_disturbance_in_any_process(stream: TrainingData, workers: int) -> None:
    """Waves are the clean ones, disturbed by hand; the targets are those of the clean view; passes differ."""
    clean = TrainingData(*(getattr(stream, n) for n in ("pack", "store", "recipe", "batch", "rate_hz", "repeats")))
    pairs = zip(loader(stream, workers=workers), loader(clean, workers=workers), strict=False)
    changed, seed = 0, RECIPE.seed
    ids = {shard.name: [c.id for c in read_shard(stream.pack, shard)] for shard in stream.pack.shards}
    for number, (disturbed, plain) in enumerate(itertools.islice(pairs, 12)):
        assert torch.equal(disturbed.target, plain.target)
        assert torch.equal(disturbed.kept, plain.kept)
        changed += int((disturbed.wave != plain.wave).any(dim=1).sum())
        if workers == 0:
            turn, i = divmod(number, 6)
            rows = dataset._plan(stream, turn)[4 * i : 4 * i + 4, :2]
            for row, (shard, clip) in enumerate(rows):
                drawn = draw_disturbance(ALL, seed, turn, ids[stream.pack.shards[shard].name][clip])
                np.testing.assert_array_equal(disturbed.wave[row], disturb(plain.wave[row].numpy(), drawn, RATE_HZ))
    assert 36 < changed < 48  # a sixteenth has no disturbance


def test_a_view_that_is_used_twice_gets_two_disturbances(stream: TrainingData) -> None:
    batches = list(itertools.islice(Batches(stream), 12))
    first, second = (torch.cat([b.wave for b in part]) for part in (batches[:6], batches[6:]))
    same = (first[:, None] == second[None]).all(dim=2).any(dim=1)
    assert int(same.sum()) < 6


def test_it_is_part_of_the_run_and_off_by_default(stream: TrainingData, tmp_path: Path) -> None:
    with small_student():
        chosen = config(steps=6, gain=0.5, reverb=0.5)
        run_train(tmp_path / "a", stream.pack, stream.store, chosen)
        with pytest.raises(InputError, match="begun with other values of gain: choose another folder"):
            run_train(tmp_path / "a", stream.pack, stream.store, config(steps=6, gain=0.25, reverb=0.5))
        with pytest.raises(InputError, match="begun with other values of gain, reverb: "):
            run_train(tmp_path / "a", stream.pack, stream.store, config(steps=6))
        for name, fields in (("plain", {}), ("off", {"gain": 0.0, "noise": 0.0, "band": 0.0, "reverb": 0.0})):
            run_train(tmp_path / name, stream.pack, stream.store, config(steps=6, **fields))
    plain, off, on = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "off", "a"))
    assert plain == off != on
    assert b"reverb" not in plain  # the recipe in the file is that of versions before this option


def test_a_stopped_run_continues_exactly(stream: TrainingData, tmp_path: Path) -> None:
    with small_student():
        chosen = config(steps=12, patchout=0.5)
        train(tmp_path / "whole", stream, chosen)
        stop_at(5, tmp_path / "parts", stream, chosen)
        train(tmp_path / "parts", stream, chosen)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
