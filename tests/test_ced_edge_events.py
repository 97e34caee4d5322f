"""Events compared with cases worked out by hand, and with a slow program that follows their definition."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import shared_bundle

from ced_edge.errors import InputError
from ced_edge.runtime.events import Event, EventRule, Events, borders_s, find_events, own_thresholds
from ced_edge.runtime.tagger import Tags


def stream_of(rows: Sequence[Sequence[float]], window_s: float = 2.0, hop_s: float = 1.0) -> list[Tags]:
    """Windows with these probabilities, one row each."""
    return [Tags(i * hop_s, i * hop_s + window_s, np.array(row, np.float32)) for i, row in enumerate(rows)]


def one(probs: Sequence[float], **rule: Any) -> list[tuple[float, float]]:
    """(start, end) of the events of a single class, over windows of 2 s every second."""
    return [(e.start_s, e.end_s) for e in find_events(stream_of([[p] for p in probs]), EventRule(**rule))]


def test_hysteresis_by_hand() -> None:
    #         centres 1    2    3    4    5    6    7    8    9
    assert one([0.1, 0.3, 0.5, 0.3, 0.3, 0.1, 0.3, 0.3, 0.1], on=0.5, off=0.3) == [(1.5, 5.5)]


def test_the_first_window_counts_from_its_start_and_the_last_to_its_end() -> None:
    assert one([0.9, 0.9, 0.0, 0.9], on=0.5, off=0.5) == [(0.0, 2.5), (3.5, 5.0)]
    assert one([0.9], on=0.5, off=0.5) == [(0.0, 2.0)]


def test_windows_without_overlap_have_borders_where_they_meet() -> None:
    tags = stream_of([[0.0], [0.9], [0.9], [0.0]], window_s=2.0, hop_s=2.0)
    (event,) = find_events(tags, EventRule(0.5, 0.5))
    assert (event.start_s, event.end_s) == (2.0, 6.0)
    assert borders_s(tags).tolist() == [0, 2, 4, 6, 8]


def test_a_short_tail() -> None:
    tags = [*stream_of([[0.0], [0.9]]), Tags(2.0, 2.5, np.array([0.9], np.float32))]
    assert borders_s(tags).tolist() == [0.0, 1.5, 2.125, 2.5]
    (event,) = find_events(tags, EventRule(0.5, 0.5))
    assert (event.start_s, event.end_s) == (1.5, 2.5)


def test_least_duration() -> None:
    probs = [0.0, 0.9, 0.0, 0.9, 0.9, 0.0]
    assert one(probs, min_duration_s=1.0) == [(1.5, 2.5), (3.5, 5.5)]
    assert one(probs, min_duration_s=1.5) == [(3.5, 5.5)]
    assert one(probs, min_duration_s=2.5) == []


def test_smoothing_takes_the_mean_and_stays_in_place() -> None:
    # Means of two: .45 .9 .9 .45 0 at the centres 1.5 2.5 3.5 4.5 5.5. The first mean is over one window.
    assert one([0.0, 0.9, 0.9, 0.9, 0.0, 0.0], smooth=2, on=0.6, off=0.6) == [(2.0, 4.0)]
    # Smoothing removes a single outlier, and closes a single gap.
    assert one([0.0, 0.0, 0.9, 0.0, 0.0], smooth=3, on=0.5, off=0.5) == []
    assert len(one([0.9, 0.9, 0.9, 0.0, 0.9, 0.9], smooth=3, on=0.5, off=0.5)) == 1


def test_thresholds_of_single_classes() -> None:
    rule = EventRule(0.5, 0.4, classes={1: (0.9, 0.1)})
    found = find_events(stream_of([[0.0, 0.0], [0.6, 0.6], [0.3, 0.95], [0.0, 0.2], [0.0, 0.0]]), rule)
    assert [(e.index, e.start_s, e.end_s) for e in found] == [(0, 1.5, 2.5), (1, 1.5, 4.5)]
    assert [e.peak for e in found] == pytest.approx([0.6, 0.95])


def test_thresholds_of_a_bundle() -> None:
    bundle = dataclasses.replace(shared_bundle(), thresholds={"Dog": 0.6, "Speech": 0.1})
    assert own_thresholds(bundle) == {74: (0.6, 0.3), 0: (0.1, 0.05)}
    assert "thresholds" in bundle.to_dict()
    assert "thresholds" not in shared_bundle().to_dict()  # bundles without any keep their bytes


def test_an_event_ends_where_audio_was_skipped() -> None:
    """Skipped windows end an event only if some audio is in no window."""
    tags = stream_of([[0.9]] * 8)
    assert len(find_events([tags[0], tags[2], tags[3]], EventRule())) == 1
    found = find_events([*tags[:2], *tags[5:]], EventRule(smooth=2))
    assert [(e.start_s, e.end_s) for e in found] == [(0.0, 3.0), (5.0, 9.0)]


def test_active_events() -> None:
    events = Events(EventRule(0.5, 0.2, min_duration_s=1.0), 3)
    seen = []
    for tags in stream_of([[0.3, 0.6, 0.0], [0.6, 0.8, 0.0], [0.3, 0.3, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.0]]):
        events.push(tags)
        seen.append(events.active)
    assert seen == [[1], [1, 0], [1, 0], [1], []]


def test_a_finished_stream_can_be_followed_by_another() -> None:
    events = Events(EventRule(), 1)
    for _ in range(2):
        found = [e for tags in stream_of([[0.9], [0.0], [0.9]]) for e in events.push(tags)] + events.finish()
        assert [(e.start_s, e.end_s) for e in found] == [(0.0, 1.5), (2.5, 4.0)]
    assert events.finish() == []
    events.push(stream_of([[0.9]])[0])
    events.reset()
    assert events.finish() == []


def slow_events(probs: Sequence[float], on: float, off: float, min_duration_s: float, smooth: int) -> list[Event]:
    """The definition: runs of at least `off` that reach `on`, with borders midway between centres."""
    means = [np.mean(np.float32(probs[max(0, i + 1 - smooth) : i + 1]), dtype=np.float64) for i in range(len(probs))]
    centres = [np.mean([j + 1.0 for j in range(max(0, i + 1 - smooth), i + 1)]) for i in range(len(probs))]
    borders = [0.0, *((a + b) / 2 for a, b in itertools.pairwise(centres)), len(probs) + 1.0]
    found, i = [], 0
    while i < len(probs):
        j = i
        while j < len(probs) and means[j] >= off:
            j += 1
        if j > i and max(means[i:j]) >= on and borders[j] - borders[i] >= min_duration_s - 1e-9:
            found.append(Event(0, borders[i], borders[j], max(means[i:j])))
        i = max(j, i + 1)
    return found


@given(
    probs=st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), min_size=1, max_size=40),
    thresholds=st.sampled_from([(0.5, 0.5), (0.5, 0.3), (0.7, 0.1), (1.0, 1.0)]),
    min_duration_s=st.sampled_from([0.0, 1.0, 2.5]),
    smooth=st.integers(1, 4),
)
def test_events_are_as_defined(
    probs: list[float], thresholds: tuple[float, float], min_duration_s: float, smooth: int
) -> None:
    on, off = thresholds
    rule = EventRule(on, off, min_duration_s, smooth)
    assert find_events(stream_of([[p] for p in probs]), rule) == slow_events(probs, on, off, min_duration_s, smooth)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"on": 0.2, "off": 0.4}, r"on 0\.2 and off 0\.4: 0 < off <= on <= 1"),
        ({"on": 1.5}, r"on 1\.5"),
        ({"off": 0.0}, "off 0: 0 < off"),
        ({"on": float("nan")}, "on nan"),
        ({"classes": {3: (0.1, 0.2)}}, r"on 0\.1 and off 0\.2"),
        ({"min_duration_s": -1.0}, "a least duration of -1 s"),
        ({"smooth": 0}, "smoothing over 0 windows"),
        ({"smooth": 0, "on": 2.0}, "on 2 and .*; smoothing over 0"),
    ],
)
def test_an_impossible_rule(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EventRule(**rule)


def test_a_rule_for_an_unknown_class() -> None:
    with pytest.raises(InputError, match="class 2 is out of range"):
        Events(EventRule(classes={2: (0.5, 0.5)}), 2)


def test_an_event_names_its_class() -> None:
    (event,) = find_events([Tags(0.0, 1.0, np.eye(1, 527, 74, np.float32)[0])])
    assert (event.index, event.label.name, event.label.mid) == (74, "Dog", "/m/0bt9lr")
