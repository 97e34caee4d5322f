"""Windows: no sample dropped, no window empty, the same in a stream."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ced_edge.windows import chunks, n_full, times_s

sizes = st.integers(1, 50).flatmap(lambda chunk: st.tuples(st.just(chunk), st.integers(1, chunk)))


@settings(deadline=None)
@given(samples=st.integers(0, 300), size=sizes)
def test_every_sample_is_covered_and_only_the_tail_is_short(samples: int, size: tuple[int, int]) -> None:
    chunk, hop = size
    windows = chunks(samples, chunk, hop)
    assert set().union(*(range(*w) for w in windows)) == set(range(samples))
    assert [start for start, _ in windows] == [i * hop for i in range(len(windows))]
    assert all(stop - start == chunk for start, stop in windows[:-1])
    assert all(0 < stop - start <= chunk for start, stop in windows)
    # No window without new samples: the one before the last does not yet reach the end.
    assert len(windows) < 2 or windows[-2][1] < samples


@settings(deadline=None)
@given(samples=st.integers(0, 300), chunk=st.integers(1, 50))
def test_consecutive_chunks_hold_each_sample_once(samples: int, chunk: int) -> None:
    windows = chunks(samples, chunk)
    assert sum(stop - start for start, stop in windows) == samples
    assert len(windows) == -(-samples // chunk)


@settings(deadline=None)
@given(samples=st.integers(0, 300), size=sizes)
def test_a_stream_sees_the_same_windows_as_they_fill(samples: int, size: tuple[int, int]) -> None:
    chunk, hop = size
    full = [w for w in chunks(samples, chunk, hop) if w[1] - w[0] == chunk]
    assert n_full(samples, chunk, hop) == len(full)
    seen = [n_full(i, chunk, hop) for i in range(samples + 1)]
    assert [seen.index(k + 1) for k in range(len(full))] == [stop for _, stop in full]


def test_an_exact_multiple_keeps_its_last_chunk() -> None:
    assert chunks(320_000, 160_000) == [(0, 160_000), (160_000, 320_000)]
    assert chunks(320_001, 160_000)[-1] == (320_000, 320_001)
    assert chunks(160_000, 160_000) == [(0, 160_000)]
    assert chunks(0, 160_000) == []


@pytest.mark.parametrize(("chunk", "hop"), [(10, 11), (10, 0), (0, 0)])
def test_a_hop_that_would_skip_samples_is_refused(chunk: int, hop: int) -> None:
    with pytest.raises(ValueError, match="hop"):
        chunks(100, chunk, hop)


def test_times() -> None:
    assert times_s((8_000, 24_000), 16_000) == (0.5, 1.5)
