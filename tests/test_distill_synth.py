"""Synthesised clips: pure, balanced, labelled, true to the standards; the data set on disk."""

from __future__ import annotations

import csv
import errno
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ced_edge.audio.clips import read_manifest
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.labels import labels
from distill.demo import sounds as synth_sounds
from distill.demo import synth
from distill.demo.blocks import power_noise, spans, timbre
from distill.demo.sounds import RECIPES, Recipe

RATE_HZ = 16_000
Wave = NDArray[np.float64]


def rng(seed: int) -> np.random.Generator:
    return synth.generator(seed, 0, 9)


def dbfs(wave: NDArray[np.floating]) -> float:
    return float(20 * np.log10(np.abs(wave).max()))


def recipe(name: str) -> Recipe:
    return next(r for r in RECIPES if r.name == name)


def peaks_hz(wave: Wave, count: int) -> list[float]:
    """The strongest spectral lines, ascending, at least 30 Hz apart."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 18))
    found: list[float] = []
    for _ in range(count):
        at = int(spectrum.argmax())
        found.append(at * RATE_HZ / (1 << 18))
        width = int(30 / RATE_HZ * (1 << 18))
        spectrum[max(0, at - width) : at + width] = 0
    return sorted(found)


def on_off_s(wave: Wave) -> list[tuple[bool, float]]:
    """Runs of sound and of silence: (is sound, seconds), from a 10 ms RMS envelope, the first and last run left out."""
    level = np.sqrt(np.mean(wave[: len(wave) // 160 * 160].reshape(-1, 160) ** 2, axis=1))
    loud = level > 0.3 * level.max()
    edges = np.flatnonzero(np.diff(loud)) + 1
    return [(bool(loud[a]), (b - a) * 0.01) for a, b in itertools.pairwise(edges)]


def slope_db_per_octave(wave: Wave) -> float:
    power = np.abs(np.fft.rfft(wave)) ** 2
    hz = np.fft.rfftfreq(len(wave), 1 / RATE_HZ)
    bands = [10 * np.log10(power[(hz >= f) & (hz < 2 * f)].mean()) for f in 62.5 * 2.0 ** np.arange(7)]
    return float(np.polyfit(np.arange(7), bands, 1)[0])


# ---- clips --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    index=st.integers(0, 10_000),
    seed=st.integers(0, 2**63 - 1),
    seconds=st.sampled_from([1.0, 1.73, 4.0]),
    rate_hz=st.sampled_from([8_000, 16_000, 32_000]),
)
def test_clip_is_audible_in_range_and_labelled(index: int, seed: int, seconds: float, rate_hz: int) -> None:
    wave, tags = synth.synthesise(index, seed, seconds, rate_hz)
    assert wave.shape == (round(seconds * rate_hz),)
    assert wave.dtype == np.float32
    assert np.isfinite(wave).all()
    names = {labels()[i].name for i in tags}
    assert names == {name for r in synth.recipes_of(index, seed) for name in r.labels}
    assert list(tags) == sorted(tags)
    low, high = (-70.0, -60.0) if "Silence" in names else (-24.0, -3.0)
    assert low - 0.01 <= dbfs(wave) <= high + 0.01


def test_clip_is_a_pure_function_of_seed_and_index() -> None:
    first = [synth.synthesise(i, 7, 1.0)[0] for i in range(48)]
    again = [synth.synthesise(i, 7, 1.0)[0] for i in reversed(range(48))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({w.tobytes() for w in first}) == 48
    assert not np.array_equal(first[0], synth.synthesise(0, 8, 1.0)[0])


def test_recipes_are_balanced_and_some_clips_are_mixed() -> None:
    n = len(RECIPES)
    for block in range(3):
        names = [synth.recipe_of(block * n + i, 3).name for i in range(n)]
        assert sorted(names) == sorted(r.name for r in RECIPES)
    assert [synth.recipe_of(i, 3).name for i in range(n)] != [synth.recipe_of(i, 3).name for i in range(n, 2 * n)]
    made = [synth.recipes_of(i, 3) for i in range(2_000)]
    assert 0.11 < np.mean([len(m) == 2 for m in made]) < 0.19
    assert not any(m[0] == m[1] or (m[0].noisy and m[1].noisy) for m in made if len(m) == 2)
    assert not any(r.name == "Silence" for m in made if len(m) == 2 for r in m)


def test_recipes_are_named_after_different_audioset_classes() -> None:
    names = {label.name for label in labels()}
    assert all(name in names for r in RECIPES for name in r.labels)
    assert len({r.name for r in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize("r", RECIPES, ids=lambda r: r.name)
def test_every_recipe_renders_at_any_length(r: Recipe) -> None:
    for seed in range(6):
        for samples, rate_hz in ((8_000, 8_000), (20_000, 16_000), (64_000, 16_000)):
            wave = r.render(rng(seed), samples, rate_hz)
            assert wave.shape == (samples,)
            assert np.isfinite(wave).all()
            assert r.name == "Silence" or np.abs(wave).max() > 0.05


@pytest.mark.parametrize(
    ("index", "seed", "seconds", "rate_hz", "message"),
    [
        (-1, 0, 4.0, 16_000, "index -1"),
        (0, -1, 4.0, 16_000, "seed -1"),
        (0, 2**63, 4.0, 16_000, "seed"),
        (0, 0, 0.5, 16_000, "0.5 s"),
        (0, 0, float("nan"), 16_000, "nan s"),
        (0, 0, 4.0, 0, "sample rate 0 Hz"),
    ],
)
def test_bad_arguments_are_named(index: int, seed: int, seconds: float, rate_hz: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        synth.synthesise(index, seed, seconds, rate_hz)


# ---- standards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "low_hz", "high_hz"),
    [("1", 697, 1209), ("2", 697, 1336), ("6", 770, 1477), ("9", 852, 1477), ("0", 941, 1336), ("#", 941, 1477)],
)
def test_dtmf_digits_are_q23(key: str, low_hz: float, high_hz: float) -> None:
    for seed in range(3):
        wave = synth_sounds.dtmf(rng(seed), 4 * RATE_HZ, RATE_HZ, keys=key)
        low, high = peaks_hz(wave, 2)
        # Q.23 asks for 1.8 % at the sender; the transform of a short tone is good for less than half a percent.
        assert low == pytest.approx(low_hz, rel=0.005)
        assert high == pytest.approx(high_hz, rel=0.005)


def test_dial_tones_are_continuous_and_of_a_known_country() -> None:
    seen = set()
    for seed in range(24):
        wave = synth_sounds.dial_tone(rng(seed), 4 * RATE_HZ, RATE_HZ)
        lines = peaks_hz(wave[RATE_HZ : 3 * RATE_HZ], 2)
        matches = [c for c in ((350, 440), (350, 450)) if np.allclose(lines, c, rtol=0.006)]
        if not matches:
            assert peaks_hz(wave, 1)[0] == pytest.approx(425, rel=0.006)
        seen.update(matches or [(425,)])
        assert len([1 for on, _ in on_off_s(np.convolve(np.abs(wave), np.ones(800) / 800, "same")) if not on]) == 0
    assert (425,) in seen
    assert len(seen) >= 2


def test_busy_signals_keep_their_cadence() -> None:
    for seed in range(20):
        wave = synth_sounds.busy_signal(rng(seed), 6 * RATE_HZ, RATE_HZ)
        f = peaks_hz(wave, 1)[0]
        allowed = (0.375,) if abs(f - 400) < 5 else (0.5, 0.25)
        smooth = np.convolve(np.abs(wave), np.ones(320) / 320, "same")  # over the beat of two tones
        runs = [s for _, s in on_off_s(smooth)]
        assert len(runs) >= 4
        assert any(np.allclose(runs, t, atol=0.03) for t in allowed), (f, runs)


def test_smoke_alarm_is_three_pulses_and_a_pause() -> None:
    wave = synth_sounds.smoke_alarm(rng(1), 12 * RATE_HZ, RATE_HZ)
    offs = [s for on, s in on_off_s(wave) if not on]
    assert sorted({round(s, 1) for s in offs}) == [0.5, 1.5]
    assert 2_900 <= peaks_hz(wave, 1)[0] <= 3_400


def test_mains_hum_is_50_or_60_hz_and_its_harmonics() -> None:
    seen = set()
    for seed in range(12):
        wave = synth_sounds.mains_hum(rng(seed), 4 * RATE_HZ, RATE_HZ)
        lines = np.array(peaks_hz(wave, 4))
        fits = [f for f in (50, 60) if np.allclose(lines / f, np.round(lines / f), atol=0.03)]
        assert len(fits) == 1, lines
        seen.add(fits[0])
    assert seen == {50, 60}


def test_noises_have_their_slopes() -> None:
    for seed in range(5):
        samples = 8 * RATE_HZ
        assert slope_db_per_octave(power_noise(rng(seed), samples, RATE_HZ, 0.0)) == pytest.approx(0, abs=0.2)
        assert slope_db_per_octave(power_noise(rng(seed), samples, RATE_HZ, 1.0)) == pytest.approx(-3.01, abs=0.2)
        assert slope_db_per_octave(power_noise(rng(seed), samples, RATE_HZ, 2.0)) == pytest.approx(-6.02, abs=0.2)


def test_sine_is_one_line_and_harmonic_many_at_whole_multiples() -> None:
    for seed in range(8):
        wave = synth_sounds.sine_wave(rng(seed), 4 * RATE_HZ, RATE_HZ)
        power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
        at = int(power.argmax())
        assert power[max(0, at - 40) : at + 40].sum() > 0.999 * power.sum()  # +-10 Hz
        lines = np.array(peaks_hz(synth_sounds.harmonic(rng(seed), 4 * RATE_HZ, RATE_HZ), 3))
        assert lines.min() >= 160
        ratios = lines[:, None] / (lines.min() / np.arange(1, 13))
        assert np.isclose(ratios, np.round(ratios), atol=0.02).all(axis=0).any()


# ---- building blocks ----------------------------------------------------------------------------------------------


def test_timbre_has_just_the_given_harmonics_and_none_that_alias() -> None:
    phase = np.arange(RATE_HZ) * (1_000 / RATE_HZ)
    spectrum = np.abs(np.fft.rfft(timbre(phase, np.array([1.0, 0.0, 0.5] + [1.0] * 20), 1_000, RATE_HZ)))
    lines = np.flatnonzero(spectrum > 0.01 * spectrum.max())
    assert list(lines) == [1_000, 3_000, 4_000, 5_000, 6_000, 7_000]  # up to 45 % of the rate
    assert spectrum[3_000] / spectrum[1_000] == pytest.approx(0.5, rel=1e-3)


def test_spans_are_one_inside_and_zero_outside_and_cut_at_the_edges() -> None:
    envelope = spans([(-0.5, 0.25), (0.5, 0.75), (0.9, 2.0)], 1_000, 1_000, ramp_s=0.01)
    assert envelope.shape == (1_000,)
    assert (envelope[:240] == 1).all()
    assert (envelope[250:500] == 0).all()
    assert (envelope[510:740] == 1).all()
    assert (envelope[910:] == 1).all()
    assert envelope.max() <= 1


# ---- the data set on disk -----------------------------------------------------------------------------------------


def write(folder: Path, **more: object) -> Path:
    return synth.write_dataset(folder, **{"clips": 6, "eval_clips": 3, "seed": 1, "seconds": 1.0, **more})  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_dataset_agrees_with_synthesise_and_with_the_manifest_reader(tmp_path: Path) -> None:
    calls: list[int] = []
    manifest = write(tmp_path / "d", progress=calls.append)
    assert calls == [1] * 9
    train, evaluation = read_manifest(manifest, "train"), read_manifest(manifest, "eval")
    assert (len(train), len(evaluation)) == (6, 3)
    for i, clip in enumerate(train + evaluation):
        wave, tags = synth.synthesise(i, 1, 1.0)
        stored, rate_hz = soundfile.read(clip.path, dtype="float32")
        assert rate_hz == RATE_HZ
        assert np.abs(stored - wave).max() <= 1 / 32768
        assert clip.labels == tags
        assert clip.group is None


def test_finished_dataset_is_left_alone_and_another_recipe_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path / "d")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "d" / "clips").iterdir()}
    assert write(tmp_path / "d") == manifest
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "d" / "clips").iterdir()}
    for other in ({"seed": 2}, {"clips": 7}, {"seconds": 2.0}):
        with pytest.raises(InputError, match="another recipe"):
            write(tmp_path / "d", **other)


def test_interrupted_dataset_is_written_again_whole(tmp_path: Path) -> None:
    made = 0

    def stop(n: int) -> None:
        nonlocal made
        made += n
        if made == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", progress=stop)
    assert not (tmp_path / "a" / "manifest.csv").exists()
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("filename\nx.wav\n")
    with pytest.raises(InputError, match="other files"):
        write(tmp_path)
    assert (tmp_path / "manifest.csv").read_text() == "filename\nx.wav\n"


def test_full_disk_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = Path.write_bytes, 0

    def full(self: Path, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CedEdgeError, match="disk full"):
        write(tmp_path / "d")
    assert not (tmp_path / "d" / "manifest.csv").exists()


def test_manifest_columns_and_empty_request(tmp_path: Path) -> None:
    with (write(tmp_path / "d", eval_clips=0)).open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["filename", "labels", "split"]
    assert {r["split"] for r in rows} == {"train"}
    with pytest.raises(InputError, match="at least one"):
        write(tmp_path / "e", clips=0)
