"""The ensemble: masked averages, one resampling per rate, and what identifies it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_teach import make_teacher
from torch import Tensor

from ced_edge.errors import InputError
from ced_edge.network.frontend import LogMel
from ced_edge.spec import FrontendSpec
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.mobilenet import MobileNetFrontEnd

RATE_HZ = 16_000


class Constant:
    """Predicts the same for every clip, and records its input."""

    sha256 = "0" * 64
    min_samples = 1
    device = torch.device("cpu")

    def __init__(self, name: str, known: dict[int, float], rate_hz: int = RATE_HZ) -> None:
        self.name = name
        self.rate_hz = rate_hz
        self.known = np.isin(np.arange(527), list(known))
        self.probs = torch.zeros(527)
        for i, p in known.items():
            self.probs[i] = p
        self.inputs: list[Tensor] = []

    def __call__(self, wave: Tensor) -> Tensor:
        self.inputs.append(wave)
        return self.probs.expand(len(wave), -1)


def test_average_over_the_teachers_that_know() -> None:
    ensemble = Ensemble([Constant("a", {0: 0.2, 1: 0.9}), Constant("b", {0: 0.6, 2: 0.4})], RATE_HZ)
    probs = ensemble(torch.zeros(3, 100))
    assert probs.shape == (3, 527)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs[0, :4], torch.tensor([0.4, 0.9, 0.4, 0.0]))
    assert not probs[:, 3:].any()
    assert ensemble.known.nonzero()[0].tolist() == [0, 1, 2]
    assert ensemble.each(torch.zeros(3, 100)).shape == (2, 3, 527)


tables = st.dictionaries(st.integers(0, 20), st.floats(0, 1, width=32), max_size=15)


@given(tables=st.lists(tables, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_average_against_plain_python(tables: list[dict[int, float]]) -> None:
    ensemble = Ensemble([Constant(f"t{i}", a) for i, a in enumerate(tables)], RATE_HZ)
    probs = ensemble(torch.zeros(1, 10))[0]
    for c in range(21):
        values = [a[c] for a in tables if c in a]
        assert float(probs[c]) == pytest.approx(sum(values) / len(values) if values else 0.0, abs=1e-6)
        assert ensemble.known[c] == bool(values)


def sine(hz: float, rate_hz: int) -> Tensor:
    """One second, (1, rate_hz)."""
    t = torch.arange(rate_hz, dtype=torch.float64) / rate_hz
    return torch.sin(2 * torch.pi * hz * t).float()[None]


def test_each_gets_its_own_rate_resampled_once() -> None:
    a, b, c = Constant("a", {0: 1}, 32_000), Constant("b", {0: 1}), Constant("c", {0: 1}, 32_000)
    ensemble = Ensemble([a, b, c], RATE_HZ)
    wave = sine(1_000, RATE_HZ)
    ensemble(wave)
    assert b.inputs[0] is wave
    assert a.inputs[0] is c.inputs[0]
    assert a.inputs[0].shape == (1, 32_000)
    torch.testing.assert_close(a.inputs[0][0, 500:-500], sine(1_000, 32_000)[0, 500:-500], atol=1e-4, rtol=0)


def test_no_images_above_the_old_nyquist_frequency() -> None:
    teacher = Constant("a", {0: 1}, 32_000)
    Ensemble([teacher], RATE_HZ)(sine(7_000, RATE_HZ))
    spectrum = torch.fft.rfft(teacher.inputs[0][0] * torch.hann_window(32_000)).abs()
    assert 20 * torch.log10(spectrum[8_500:].max() / spectrum.max()) < -80  # the image is at 9,000 Hz


def test_describe_names_the_teachers_own_rate() -> None:
    described = Ensemble([Constant("a", {0: 0.5, 7: 1}, 32_000)], RATE_HZ).describe()
    assert described == [{"name": "a", "sha256": "0" * 64, "rate_hz": 32_000, "n_known": 2}]


def test_refuses() -> None:
    with pytest.raises(InputError, match="at least one teacher"):
        Ensemble([], RATE_HZ)
    with pytest.raises(InputError, match="one name"):
        Ensemble([Constant("a", {0: 1}), Constant("a", {1: 1})], RATE_HZ)
    other = Constant("b", {0: 1})
    other.device = torch.device("meta")
    with pytest.raises(InputError, match="on one device"):
        Ensemble([Constant("a", {0: 1}), other], RATE_HZ)


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 0.03), ("fp16", 0.004)])
def test_lower_precision_is_another_store_with_nearly_the_same_predictions(
    dtype: str, most: float, tmp_path: Path
) -> None:
    """bfloat16 has 8 bits and float16 has 11: errors of products are below 2^-8 and 2^-11 of the values."""
    teachers = load_teachers([make_teacher(tmp_path)])
    exact, lower = Ensemble(teachers, RATE_HZ), Ensemble(teachers, RATE_HZ, dtype)
    assert "dtype" not in exact.describe()[0]
    assert lower.describe() == [{**exact.describe()[0], "dtype": dtype}]
    wave = torch.from_numpy(np.random.default_rng(0).normal(0.0, 0.1, (4, RATE_HZ)).astype(np.float32))
    found = lower(wave)
    assert found.dtype == torch.float32
    error = float((found - exact(wave)).abs().max())
    assert 0.0 < error < most
    with pytest.raises(InputError, match="unknown dtype 'int8': choose one of fp32, bf16, fp16"):
        Ensemble(teachers, RATE_HZ, "int8")


def test_the_front_ends_stay_in_float32() -> None:
    wave = 0.1 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0))
    for front_end in (LogMel(FrontendSpec()), MobileNetFrontEnd()):
        exact = front_end(wave)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(front_end(wave), exact)
