"""Several channels become one, and large samples are refused: alike for files, streams and training."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ced_edge.arrays import Float32
from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import Clip
from ced_edge.audio.intake import Intake
from ced_edge.audio.mix import Mixer, mean
from ced_edge.audio.read import load
from distill.packing.pieces import PackConfig, Piece, encode

RATE = 16_000


def noise(seconds: float, seed: int = 0) -> Float32:
    return (0.2 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def mixed(frames: Float32, name: str | None = None) -> Float32:
    mixer = Mixer(frames.shape[1], RATE, name)
    return np.concatenate([mixer.push(frames), mixer.finish()])


def stereo(left: Float32, right: Float32) -> Float32:
    return np.stack([left, right], 1)


@pytest.mark.parametrize("gain", [-1.0, -0.9, -0.7])
def test_channels_that_cancel_give_the_louder_one(gain: float, caplog: pytest.LogCaptureFixture) -> None:
    a = noise(3)
    other = (gain * a + 0.01 * noise(3, 1)).astype(np.float32)
    np.testing.assert_array_equal(mixed(stereo(a, other), "a.wav"), a)
    (record,) = caplog.records
    assert "a.wav: its channels cancel each other" in record.getMessage()
    assert "channel 1 alone is used" in record.getMessage()
    louder = (a / gain).astype(np.float32)
    np.testing.assert_array_equal(mixed(stereo(a, louder)), louder if gain > -0.95 else a)


@pytest.mark.parametrize(
    "other",
    [
        lambda a: a,
        lambda a: np.float32(0.3) * a,
        np.zeros_like,  # a silent channel cancels nothing: the mean is 6 dB lower
        lambda a: noise(3, 1),
        lambda a: np.roll(a, 100),
        lambda a: (-0.3 * a).astype(np.float32),
    ],
)
def test_ordinary_stereo_is_the_mean(other: Callable[[Float32], Float32], caplog: pytest.LogCaptureFixture) -> None:
    a = noise(3)
    frames = stereo(a, other(a))
    np.testing.assert_array_equal(mixed(frames, "a.wav"), frames.mean(axis=1, dtype=np.float32))
    np.testing.assert_array_equal(mixed(a[:, None]), a)
    assert not caplog.records


def test_one_channel_of_six_is_the_mean_and_a_pair_that_cancels_is_not() -> None:
    a, zero = noise(2), np.zeros(2 * RATE, np.float32)
    alone = np.stack([zero, zero, a, zero, zero, zero], 1)
    np.testing.assert_array_equal(mixed(alone), mean(alone))
    pair = np.stack([zero, a, -a, zero, zero, zero], 1)
    np.testing.assert_array_equal(mixed(pair), a)


def test_noise_of_a_converter_decides_nothing() -> None:
    frames = stereo(noise(2) * np.float32(1e-5), -noise(2) * np.float32(1e-5))
    assert np.abs(mixed(frames)).max() == 0


def test_the_rule_changes_with_the_sound_but_not_often(caplog: pytest.LogCaptureFixture) -> None:
    a, b = noise(10), noise(10, 1)
    left, right = np.concatenate([a, a, a]), np.concatenate([b, -a, a])
    found = mixed(stereo(left, right), "a.wav")
    second, third = slice(10 * RATE + 13 * RATE // 2, 20 * RATE), slice(28 * RATE, None)
    np.testing.assert_array_equal(found[second], left[second])
    np.testing.assert_array_equal(found[third], a[-2 * RATE :])
    ours = np.isclose(found, left).reshape(-1, RATE // 10).all(axis=1)[:200]
    assert np.count_nonzero(np.diff(ours.astype(int))) == 1
    assert len(caplog.records) == 1


@settings(max_examples=60)
@given(
    at=st.lists(st.integers(0, 5 * RATE), max_size=20),
    kind=st.sampled_from(["same", "opposite", "later", "unlike", "silent"]),
    rate_hz=st.sampled_from([RATE, 44_100]),
)
def test_any_pieces_give_the_samples_of_the_file(at: list[int], kind: str, rate_hz: int) -> None:
    a, b = noise(5), noise(5, 1)
    right = {"same": a, "opposite": -a, "unlike": b, "silent": 0 * a}.get(kind)
    if right is None:
        right = np.where(np.arange(len(a)) < 2 * RATE, a, -a)
    frames = stereo(a, right)
    whole, pieces = Intake(RATE), Intake(RATE)
    whole.accept(frames, rate_hz)
    for i, j in itertools.pairwise([0, *sorted(at), len(frames)]):
        pieces.accept(frames[i:j], rate_hz)
    whole.finish()
    pieces.finish()
    expected = whole.view(0, whole.samples)
    np.testing.assert_array_equal(pieces.view(0, pieces.samples), expected)
    file = io.BytesIO()
    soundfile.write(file, frames, rate_hz, subtype="FLOAT", format="WAV")
    np.testing.assert_array_equal(load(file, RATE), expected)


def test_a_long_stream_of_pieces_keeps_no_memory_of_them() -> None:
    mixer, piece = Mixer(2, RATE, None), stereo(noise(0.01), noise(0.01, 1))
    for _ in range(2_000):
        mixer.push(piece)
    assert sum(map(len, mixer._held)) < 0.1 * RATE


def pack_one(path: Path) -> tuple[Float32, str | None]:
    (one,) = encode(([Piece(Clip("a", path), "a", 0.0, None, True)], PackConfig()))
    wave = soundfile.read(io.BytesIO(one.flac), dtype="float32")[0] if one.flac else np.zeros(0, np.float32)
    return wave, one.reason


def test_pack_takes_the_channel_that_tag_takes(tmp_path: Path) -> None:
    a = noise(2)
    soundfile.write(tmp_path / "a.wav", stereo(a, -a), RATE, subtype="FLOAT")
    wave, reason = pack_one(tmp_path / "a.wav")
    assert reason is None
    np.testing.assert_allclose(wave, load(tmp_path / "a.wav", RATE), atol=1e-4)


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite"), (1e38, "1e+38"), (9.0, "9")])
def test_bad_samples_have_one_rule_for_files_and_training(tmp_path: Path, value: float, what: str) -> None:
    wave = noise(1)
    wave[4_000] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(AudioError) as caught:
        load(tmp_path / "a.wav", RATE)
    assert f"unusable samples: the sample at 0.250 s (index 4000) is {what}" in str(caught.value)
    assert pack_one(tmp_path / "a.wav")[1] == caught.value.reason
    with pytest.raises(AudioError, match=r"at 0\.250 s \(index 4000\)"):
        load(tmp_path / "a.wav", RATE, 0.2, 0.3)


def test_floats_on_the_scale_of_integers_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 32_768 * noise(1), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"divide 16-bit ones by 32768"):
        load(tmp_path / "a.wav", RATE)
    assert "divide 16-bit ones by 32768" in str(pack_one(tmp_path / "a.wav")[1])


def test_floats_up_to_18_db_above_full_scale_are_used(tmp_path: Path) -> None:
    wave = np.clip(20 * noise(1), -8, 8)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load(tmp_path / "a.wav", RATE), wave)
    assert pack_one(tmp_path / "a.wav")[1] is None
