"""Views: drawn purely, and rendered as their numbers say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ced_edge.errors import InputError
from distill.packing.shards import INT16_SCALE, clip_rms
from distill.teaching.views import Source, View, ViewRecipe, draw, render, window

RATE_HZ = 16_000
IDS = tuple(f"clip-{i}.wav" for i in range(12))
MASK = (1 << 64) - 1

quick = settings(deadline=None, max_examples=60)
ids = st.lists(st.text(max_size=12), min_size=1, max_size=8, unique=True)
recipes = st.builds(
    ViewRecipe,
    seed=st.integers(0, 2**40),
    shift=st.booleans(),
    polarity=st.booleans(),
    mask_probability=st.floats(0, 1),
    mix=st.sampled_from([(1.0,), (0.4, 0.4, 0.2), (0.1, 0.1, 0.1, 0.1, 0.1, 0.5), (0.5, 0.5)]),
    windows=st.just(((50, 0.5), (50, 1.0))),
)


def philox_words(key: str, n: int) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011), written out: counters 1, 2, ... under a 128-bit hash of `key`."""
    k = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest()[i : i + 8], "little") for i in (0, 8)]
    words: list[int] = []
    for counter in range(1, n // 4 + 2):
        c, (k0, k1) = [counter, 0, 0, 0], k
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(b >> 64) ^ c[1] ^ k0, b & MASK, (a >> 64) ^ c[3] ^ k1, a & MASK]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
        words += c
    return words[:n]


def by_hand(recipe: ViewRecipe, epoch: int, clip: int, clip_ids: tuple[str, ...]) -> View:
    """What `draw` promises, from 32 words of Philox taken from the last to the first."""
    uniform = iter([(w >> 11) / 2.0**53 for w in reversed(philox_words(f"{recipe.seed}|{epoch}|{clip_ids[clip]}", 32))])

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(uniform)

    def span(longest: float) -> tuple[float, float] | None:
        chosen = next(uniform) < recipe.mask_probability
        width = between(0.0, longest)
        start = next(uniform) * (1.0 - width)
        return (start, start + width) if chosen else None

    gain_db = between(*recipe.gain_db)
    negate = next(uniform) < 0.5 and recipe.polarity
    time, mel = span(recipe.time_mask), span(recipe.freq_mask_mels)
    top = 2595.0 * math.log10(1.0 + 8_000.0 / 700.0)
    hz = tuple(700.0 * (10.0 ** (m * top / 2595.0) - 1.0) for m in mel) if mel else (0.0, 0.0)
    sources = [Source(clip, next(uniform) if recipe.shift else 0.0, 0.0)]
    u = next(uniform)
    wanted = int(np.searchsorted(np.cumsum(recipe.mix), u, side="right")) + 1
    for n in range(1, len(recipe.mix)):
        partner, start, level_db = int(next(uniform) * len(clip_ids)), next(uniform), between(*recipe.mix_db)
        if n < wanted and partner != clip:
            sources.append(Source(partner, start if recipe.shift else 0.0, level_db))
    return View(recipe.seconds(epoch), tuple(sources), gain_db, negate, time or (0.0, 0.0), (hz[0], hz[1]))


def numbers(view: View) -> Iterator[float]:
    yield from (view.seconds, view.gain_db, view.negate, *view.time_mask, *view.freq_mask_hz)
    for source in view.sources:
        yield from (source.clip, source.start, source.level_db)


def sine(hz: float, seconds: float = 1.0, rate_hz: int = RATE_HZ, amplitude: float = 0.25) -> NDArray[np.int16]:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.round(amplitude * 32768 * np.sin(2 * np.pi * hz * t)).astype(np.int16)


def plain(seconds: float = 1.0, clips: int = 1, gain_db: float = 0.0, **changes: object) -> View:
    """A view that changes nothing but what is named."""
    view = View(seconds, tuple(Source(i, 0.0, 0.0) for i in range(clips)), gain_db, False)
    return dataclasses.replace(view, **changes)  # type: ignore[arg-type]


def rendered(view: View, *waves: NDArray[np.int16], rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    return render(view, waves, [clip_rms(w) for w in waves], rate_hz)


# Drawing


def test_words_are_philox() -> None:
    """The written-out generator is the published one: numpy's, through its own distribution of doubles."""
    key = np.frombuffer(hashlib.blake2b(b"0|3|a.wav", digest_size=16).digest(), "<u8")
    want = np.random.Generator(np.random.Philox(key=key)).random(32)
    assert [(w >> 11) / 2.0**53 for w in philox_words("0|3|a.wav", 32)] == want.tolist()


@given(recipes, st.integers(0, 99), ids, st.data())
@quick
def test_draw_is_the_documented_function(
    recipe: ViewRecipe, epoch: int, clip_ids: list[str], data: st.DataObject
) -> None:
    clip = data.draw(st.integers(0, len(clip_ids) - 1))
    got, want = draw(recipe, epoch, clip, clip_ids), by_hand(recipe, epoch, clip, tuple(clip_ids))
    np.testing.assert_allclose(list(numbers(got)), list(numbers(want)), rtol=1e-12, atol=1e-9)


def test_draw_is_pinned() -> None:
    """A store written long ago must still fit the views that are drawn today."""
    view = draw(ViewRecipe(seed=7, mask_probability=1.0), 0, 2, IDS)
    sources = [
        (2, 0.9004520757687, 0.0),
        (8, 0.7680516492894, -6.9969092520530),
        (7, 0.8643439515051, -9.9482704390460),
    ]
    assert view.negate
    assert [s.clip for s in view.sources] == [clip for clip, _, _ in sources]
    assert [(s.start, s.level_db) for s in view.sources] == [pytest.approx(s[1:], rel=1e-11) for s in sources]
    assert view.gain_db == pytest.approx(1.6639575317590, rel=1e-11)
    assert view.time_mask == pytest.approx((0.4001451554301, 0.5745311807411), rel=1e-11)
    assert view.freq_mask_hz == pytest.approx((3201.2781084137, 6719.6081558056), rel=1e-11)


@given(recipes, st.integers(0, 99), ids)
@quick
def test_a_view_hangs_on_seed_epoch_and_id_alone(recipe: ViewRecipe, epoch: int, clip_ids: list[str]) -> None:
    forward = [draw(recipe, epoch, i, clip_ids) for i in range(len(clip_ids))]
    np.random.seed(epoch)
    np.random.random(epoch)
    backward = [draw(recipe, epoch, i, clip_ids) for i in reversed(range(len(clip_ids)))]
    assert forward == backward[::-1]
    # In other company only the partners change.
    alone = draw(recipe, epoch, 0, clip_ids[:1])
    assert dataclasses.replace(forward[0], sources=()) == dataclasses.replace(alone, sources=())
    assert forward[0].sources[0] == alone.sources[0]
    assert len(alone.sources) == 1


@given(recipes, st.integers(0, 98))
@quick
def test_other_seeds_epochs_and_clips_give_other_views(recipe: ViewRecipe, epoch: int) -> None:
    gains = {
        draw(r, e, i, IDS).gain_db
        for r in (recipe, dataclasses.replace(recipe, seed=recipe.seed + 1))
        for e in (epoch, epoch + 1)
        for i in range(len(IDS))
    }
    assert len(gains) == 4 * len(IDS)


def test_another_process_draws_the_same() -> None:
    code = (
        "import dataclasses, json, sys; from distill.teaching.views import *;"
        "r = ViewRecipe.from_dict(json.loads(sys.argv[1]));"
        "ids = json.loads(sys.argv[2]);"
        "print(json.dumps([dataclasses.asdict(draw(r, e, i, ids)) for e in (3, 1) for i in range(len(ids))]))"
    )
    recipe = ViewRecipe(seed=5, windows=((4, 1.0),))
    args = [sys.executable, "-c", code, json.dumps(recipe.to_dict()), json.dumps(IDS)]
    out = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    want = [dataclasses.asdict(draw(recipe, e, i, IDS)) for e in (3, 1) for i in range(len(IDS))]
    assert json.loads(out) == json.loads(json.dumps(want))


def test_draws_follow_the_recipe() -> None:
    recipe = ViewRecipe(windows=((400, 1.0),))
    views = [draw(recipe, e, i, IDS) for e in range(400) for i in range(len(IDS))]
    n = len(views)
    gains = np.array([v.gain_db for v in views])
    assert gains.min() >= -9.0
    assert gains.max() < 3.0
    assert abs(gains.mean() + 3.0) < 5 * 12 / math.sqrt(12 * n)
    assert abs(np.mean([v.negate for v in views]) - 0.5) < 5 * 0.5 / math.sqrt(n)
    widths = np.array([v.time_mask[1] - v.time_mask[0] for v in views])
    assert widths.max() < 0.192
    assert abs((widths > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    mixed = np.bincount([len(v.sources) for v in views], minlength=4)[1:] / n
    # A partner that is the clip itself is left out: once in len(IDS) draws.
    k = 1 / len(IDS)
    want = np.array([0.4 + 0.4 * k + 0.2 * k * k, 0.4 * (1 - k) + 0.4 * k * (1 - k), 0.2 * (1 - k) ** 2])
    np.testing.assert_allclose(mixed, want, atol=5 * 0.5 / math.sqrt(n))
    assert all(s.clip != v.sources[0].clip for v in views for s in v.sources[1:])
    assert all(0 <= s.clip < len(IDS) and 0.0 <= s.start < 1.0 for v in views for s in v.sources)
    assert all(-12.0 <= s.level_db < 0.0 for v in views for s in v.sources[1:])
    assert all(0.0 <= low <= high < 8_000.0 for low, high in (v.freq_mask_hz for v in views))
    assert all(0.0 <= start <= stop <= 1.0 for start, stop in (v.time_mask for v in views))


# The recipe


def test_recipe_problems_come_together() -> None:
    with pytest.raises(InputError) as e:
        ViewRecipe(windows=((0, 2.0),), mask_probability=2.0, time_mask=1.0, mix=(0.5, 0.1), gain_db=(3.0, -3.0))
    for name in ("--windows", "mask_probability", "time_mask", "mix must", "gain_db"):
        assert name in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": ()},
        {"windows": ((1, 0.01),)},
        {"windows": ((1, math.nan),)},
        {"mix": ()},
        {"mix": (1.5, -0.5)},
        {"mix": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)},
        {"mix_db": (0.0, math.inf)},
        {"gain_db": (math.nan, 0.0)},
        {"freq_mask_mels": -0.1},
    ],
)
def test_bad_recipes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ViewRecipe(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [{"gane_db": [0, 1]}, {"gain_db": 3}, {"windows": 5}, {"windows": [["a", "b"]]}, {"mix": [10**400]}],
)
def test_from_dict_refuses_what_it_does_not_know(fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ViewRecipe.from_dict(fields)


@given(recipes)
@quick
def test_recipe_survives_json(recipe: ViewRecipe) -> None:
    assert ViewRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_windows_follow_one_another() -> None:
    recipe = ViewRecipe(windows=((2, 2.0), (1, 10.0)))
    assert recipe.epochs == 3
    assert [recipe.seconds(e) for e in range(3)] == [2.0, 2.0, 10.0]
    with pytest.raises(ValueError, match="beyond"):
        recipe.seconds(3)


def test_digest_of_an_epoch_does_not_hang_on_later_ones() -> None:
    short, long = ViewRecipe(windows=((2, 2.0),)), ViewRecipe(windows=((2, 2.0), (9, 10.0)))
    assert [short.digest(e) for e in range(2)] == [long.digest(e) for e in range(2)]
    assert short.digest(0) != short.digest(1)
    assert short.digest(0) != ViewRecipe(windows=((2, 3.0),)).digest(0)
    assert short.digest(0) != dataclasses.replace(short, seed=1).digest(0)


# Rendering


@given(
    hnp.arrays(np.int16, st.integers(1, 80)),
    st.integers(1, 120),
    st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None, max_examples=300)
def test_window_is_a_rolled_padded_clip(wave: NDArray[np.int16], samples: int, start: float) -> None:
    padded = np.pad(wave, (0, max(0, samples - len(wave))))
    want = np.roll(padded, -int(start * len(padded)))[:samples] / 32768.0
    got = window(wave, samples, start)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_render_without_changes_is_the_clip() -> None:
    wave = sine(440.0)
    np.testing.assert_array_equal(rendered(plain(), wave), wave * INT16_SCALE)


def test_band_stop_takes_out_the_band_and_nothing_else() -> None:
    inside, outside = sine(1_000.0), sine(3_000.0)
    view = plain(freq_mask_hz=(900.0, 1_100.0))
    assert np.abs(rendered(view, inside)).max() < 1e-4
    np.testing.assert_allclose(rendered(view, outside), outside / 32768.0, atol=1e-4)
    both = (inside.astype(np.int32) + outside).astype(np.int16)
    np.testing.assert_allclose(rendered(view, both), outside / 32768.0, atol=1e-4)


@given(st.floats(0, 7_000), st.floats(1, 3_000), st.integers(1_000, 3_000))
@quick
def test_band_edges(low_hz: float, width_hz: float, samples: int) -> None:
    """Bins with low <= f < high are gone, all others are as they were, for any length of the window."""
    wave = np.random.default_rng(samples).integers(-8_000, 8_000, samples).astype(np.int16)
    out = rendered(plain(samples / RATE_HZ, freq_mask_hz=(low_hz, low_hz + width_hz)), wave)
    hz = np.fft.rfftfreq(samples, 1 / RATE_HZ)
    stopped = (hz >= low_hz) & (hz < low_hz + width_hz)
    want = np.where(stopped, 0.0, np.fft.rfft(wave / 32768.0))
    clear = np.minimum(np.abs(hz - low_hz), np.abs(hz - low_hz - width_hz)) > 1e-6  # else rounding decides
    np.testing.assert_allclose(np.fft.rfft(out)[clear], want[clear], atol=2e-3)


def test_time_mask_is_silent_and_the_rest_is_not() -> None:
    wave = sine(440.0, 2.0)
    out = rendered(plain(2.0, time_mask=(0.25, 0.5), freq_mask_hz=(2_000.0, 3_000.0)), wave)
    assert not out[8_000:16_000].any()
    np.testing.assert_allclose(out[:8_000], wave[:8_000] / 32768.0, atol=1e-4)
    np.testing.assert_allclose(out[16_000:], wave[16_000:] / 32768.0, atol=1e-4)


@pytest.mark.parametrize("gain_db", [-9.0, -6.0205999, 0.0, 3.0])
def test_gain_is_in_decibels(gain_db: float) -> None:
    wave = sine(440.0)
    ratio = np.sqrt(np.mean(np.square(rendered(plain(gain_db=gain_db), wave), dtype=np.float64))) / clip_rms(wave)
    assert 20 * math.log10(ratio) == pytest.approx(gain_db, abs=1e-4)


def test_polarity_flips_the_sign() -> None:
    wave = sine(440.0)
    np.testing.assert_array_equal(rendered(plain(negate=True), wave), -rendered(plain(), wave))


@pytest.mark.parametrize("level_db", [-12.0, -3.0, 0.0])
def test_partner_comes_at_its_level(level_db: float) -> None:
    """Loudness is by RMS over the whole clip, whatever the two clips' own levels are."""
    first, second = sine(500.0, amplitude=0.2), sine(1_500.0, amplitude=0.01)
    view = plain(sources=(Source(0, 0.0, 0.0), Source(1, 0.0, level_db)))
    spectrum = np.abs(np.fft.rfft(rendered(view, first, second)))
    assert 20 * math.log10(spectrum[1_500] / spectrum[500]) == pytest.approx(level_db, abs=0.01)
    assert spectrum[500] == pytest.approx(0.2 * RATE_HZ / 2, rel=1e-3)


def test_silent_partner_and_silent_clip() -> None:
    wave, silence = sine(500.0), np.zeros(RATE_HZ, np.int16)
    np.testing.assert_array_equal(rendered(plain(clips=2), wave, silence), rendered(plain(), wave))
    assert not rendered(plain(clips=2), silence, wave).any()


@given(st.lists(hnp.arrays(np.int16, st.integers(1, 60)), min_size=1, max_size=4), recipes, st.integers(0, 99))
@quick
def test_views_stay_within_full_scale(waves: list[NDArray[np.int16]], recipe: ViewRecipe, epoch: int) -> None:
    rate_hz = 100
    loud = dataclasses.replace(recipe, gain_db=(20.0, 40.0))
    for clip in range(len(waves)):
        view = draw(loud, epoch, clip, IDS[: len(waves)])
        out = rendered(view, *waves, rate_hz=rate_hz)
        assert out.dtype == np.float32
        assert out.shape == (round(view.seconds * rate_hz),)
        assert np.isfinite(out).all()
        assert np.abs(out).max() <= 1.0


def test_render_leaves_the_clips_alone() -> None:
    waves = [sine(500.0), sine(700.0)]
    for wave in waves:
        wave.setflags(write=False)
    view = plain(clips=2, gain_db=-6.0, time_mask=(0.1, 0.2), freq_mask_hz=(400.0, 600.0))
    np.testing.assert_array_equal(rendered(view, *waves), rendered(view, *waves))


def test_the_same_view_at_16_and_32_khz() -> None:
    """Seconds, hertz and decibels: the view at 16 kHz is every other sample of the view at 32 kHz."""
    view = plain(
        gain_db=-4.0,
        negate=True,
        time_mask=(0.3, 0.4),
        freq_mask_hz=(900.0, 1_100.0),
        sources=(Source(0, 0.25, 0.0), Source(1, 0.5, -6.0)),
    )

    def at(rate_hz: int) -> NDArray[np.float32]:
        waves = [sine(300.0, 2.0, rate_hz) + sine(1_000.0, 2.0, rate_hz), sine(2_000.0, 2.0, rate_hz)]
        return rendered(view, *waves, rate_hz=rate_hz)

    np.testing.assert_allclose(at(32_000)[::2], at(16_000), atol=2e-4)


@given(hnp.arrays(np.int16, st.integers(1, 200)))
@quick
def test_clip_rms(wave: NDArray[np.int16]) -> None:
    want = math.sqrt(math.fsum(float(x) ** 2 for x in wave) / len(wave)) / 32768.0
    assert clip_rms(wave) == pytest.approx(want, rel=1e-12)


def test_rms_of_nothing_is_zero() -> None:
    assert clip_rms(np.zeros(0, np.int16)) == 0.0
