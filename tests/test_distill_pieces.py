"""Cutting long clips and storing samples, for any length and any level."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ced_edge.audio.clips import Clip
from ced_edge.errors import InputError
from distill.packing.pieces import PackConfig, cut, to_int16


@settings(deadline=None)
@given(
    frames=st.integers(1, 5_000_000), rate_hz=st.sampled_from([8_000, 22_050, 44_100]), segment_s=st.floats(0.5, 30.0)
)
def test_the_segments_of_any_length_follow_one_another(frames: int, rate_hz: int, segment_s: float) -> None:
    pieces = cut(Clip("a", Path("a.wav")), frames / rate_hz, PackConfig(segment_s=segment_s))
    assert (pieces[0].start_s, pieces[-1].stop_s) == (0.0, None)
    assert [p.stop_s for p in pieces[:-1]] == [p.start_s for p in pieces[1:]]
    assert len({p.id for p in pieces}) == len(pieces)
    lengths = np.diff([*(p.start_s for p in pieces), frames / rate_hz])
    assert (lengths <= segment_s + 0.1 + 1e-9).all()
    assert len(pieces) == 1 or (lengths >= 0.1 - 1e-9).all()


@given(hnp.arrays(np.int16, st.integers(1, 50)))
def test_16_bit_audio_is_stored_exactly(pcm: NDArray[np.int16]) -> None:
    np.testing.assert_array_equal(to_int16((pcm / 32_768).astype(np.float32)), pcm)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-8, 8, width=32)))
def test_loud_audio_is_scaled_down_and_not_clipped(wave: NDArray[np.float32]) -> None:
    pcm = to_int16(wave).astype(np.float64)
    scale = min(1.0, 32_767 / 32_768 / max(wave.max(), 1e-9), 1.0 / max(-wave.min(), 1e-9))
    np.testing.assert_allclose(pcm, wave * (scale * 32_768), atol=0.51)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to cores")
def test_as_many_workers_as_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6})
    assert PackConfig().workers == 3


def test_a_wrong_config_names_all_that_is_wrong() -> None:
    with pytest.raises(InputError) as caught:
        PackConfig(rate_hz=0, clips_per_shard=0, min_s=2.0, segment_s=1.0, silence_dbfs=float("nan"), workers=0)
    assert all(word in str(caught.value) for word in ("rate_hz", "clips_per_shard", "min_s", "silence_dbfs", "workers"))
