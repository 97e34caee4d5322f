"""The front ends against torchaudio, the published outputs, and one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ced_edge.errors import InputError
from ced_edge.frontend import hann_window, hz_to_mel, log_mel, mel_filters, mel_to_hz
from ced_edge.network.frontend import LogMel
from ced_edge.spec import FrontendSpec

SPEC = FrontendSpec()
Float32 = NDArray[np.float32]


def make_wave(kind: str, samples: int, gain: float, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / SPEC.rate_hz
    wave = {
        "noise": lambda: rng.uniform(-1, 1, samples),
        "tone": lambda: np.sin(2 * np.pi * rng.uniform(20, 7_900) * t),
        "impulse": lambda: np.eye(1, samples, int(rng.integers(samples)))[0],
        "silence": lambda: np.zeros(samples),
    }[kind]()
    return np.asarray(gain * wave, np.float32)


def torchaudio_log_mel(wave: Float32) -> Float32:
    mel = torchaudio.transforms.MelSpectrogram(
        SPEC.rate_hz, n_fft=512, win_length=512, hop_length=160, f_min=0.0, f_max=8_000.0, n_mels=64
    )
    return torchaudio.transforms.AmplitudeToDB(stype="power", top_db=120.0)(mel(torch.from_numpy(wave))).numpy()  # type: ignore[no-any-return]


def test_filters_are_torchaudios() -> None:
    theirs = torchaudio.functional.melscale_fbanks(257, 0.0, 8_000.0, 64, 16_000, norm=None, mel_scale="htk")
    # One float32 step of a corner, divided by the narrowest triangle (32 Hz).
    np.testing.assert_allclose(mel_filters(SPEC), theirs.numpy().T, rtol=0, atol=2e-6)


def test_filters_and_window_cannot_be_changed_by_accident() -> None:
    for array in (mel_filters(SPEC), hann_window(512)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_window_is_the_periodic_hann() -> None:
    np.testing.assert_allclose(hann_window(512), torch.hann_window(512).numpy(), rtol=0, atol=3e-7)


def test_mel_scale_by_hand() -> None:
    assert hz_to_mel(700.0) == pytest.approx(2595.0 * np.log10(2.0))
    assert mel_to_hz(hz_to_mel(1234.5)) == pytest.approx(1234.5)


@pytest.mark.parametrize("kind", ["noise", "tone", "impulse", "silence"])
@pytest.mark.parametrize("samples", [SPEC.min_samples, 2_400, 16_000, 160_000])
def test_torch_front_end_is_torchaudios(kind: str, samples: int) -> None:
    wave = make_wave(kind, samples, 0.5, seed=samples)
    ours = LogMel(SPEC)(torch.from_numpy(wave)[None])[0].numpy()
    assert ours.shape == (64, SPEC.frames(samples))
    assert_same_power(ours, torchaudio_log_mel(wave))
    if kind == "noise":  # no bin is near the rounding noise, so decibels can be compared
        np.testing.assert_allclose(ours, torchaudio_log_mel(wave), rtol=0, atol=1e-3)


def assert_same_power(a: Float32, b: Float32) -> None:
    """Equal to float32 precision of the clip's loudest value: a far quieter bin is rounding noise of the FFT."""
    top = max(a.max(), b.max())
    assert np.abs(10.0 ** ((a - top) / 10) - 10.0 ** ((b - top) / 10)).max() < 2e-6


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["noise", "tone", "impulse", "silence"]),
    samples=st.integers(SPEC.min_samples, 9_000),
    gain=st.floats(1e-4, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_numpy_front_end_is_the_torch_one(kind: str, samples: int, gain: float, seed: int) -> None:
    wave = make_wave(kind, samples, gain, seed)
    by_numpy = log_mel(wave, SPEC)
    by_torch = LogMel(SPEC)(torch.from_numpy(wave)[None])[0].numpy()
    assert by_numpy.dtype == np.float32
    assert by_numpy.shape == by_torch.shape
    assert_same_power(by_numpy, by_torch)


@pytest.mark.parametrize("clip", ["a", "b"])
def test_published_mel(shared, clip: str) -> None:  # type: ignore[no-untyped-def]
    golden = np.load(shared / "golden" / "ced_official_small.npz")
    wave = golden[f"{clip}_wave"].astype(np.float32) / 32768
    # In decibels. Torchaudio itself is 1.3e-4 off on another processor, in a bin 68 dB below the loudest.
    np.testing.assert_allclose(
        LogMel(SPEC)(torch.from_numpy(wave)[None])[0].numpy(), golden[f"{clip}_mel"], rtol=0, atol=3e-4
    )
    np.testing.assert_allclose(log_mel(wave, SPEC), golden[f"{clip}_mel"], rtol=0, atol=4e-4)


def test_silence_is_the_floor() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(2_400, np.float32), SPEC), -100.0, rtol=1e-6)


def test_the_floor_is_below_the_clips_own_maximum() -> None:
    mel = log_mel(make_wave("impulse", 16_000, 1.0, seed=0) * 1_000, SPEC)
    assert mel.min() == pytest.approx(mel.max() - 120.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(SPEC.min_samples - 1,), (0,), (2, 1_000)])
def test_what_reflection_cannot_pad_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 257 samples"):
        log_mel(np.zeros(shape, np.float32), SPEC)


def test_a_loud_neighbour_changes_nothing() -> None:
    quiet, loud = make_wave("noise", 16_000, 1e-4, 0), make_wave("noise", 16_000, 1.0, 1) * 1_000
    front_end = LogMel(SPEC)
    alone = front_end(torch.from_numpy(quiet)[None])[0]
    beside = front_end(torch.from_numpy(np.stack([quiet, loud])))[0]
    torch.testing.assert_close(beside, alone, rtol=0, atol=0)
    # The trap is real: one floor over the batch, as published, would lift the quiet clip.
    assert (alone < beside.new_tensor(log_mel(loud, SPEC).max() - 120.0)).any()


def test_autocast_leaves_the_front_end_alone() -> None:
    wave = torch.from_numpy(make_wave("noise", 4_000, 0.1, 2))[None]
    front_end = LogMel(SPEC)
    with torch.autocast("cpu", torch.bfloat16):
        mel = front_end(wave)
    torch.testing.assert_close(mel, front_end(wave), rtol=0, atol=0)
