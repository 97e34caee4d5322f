"""A stream predicts the same as the whole clip, bit for bit, however it is cut. It stays small, and refuses misuse."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_bundle import SPEC, shared_bundle

from ced_edge.audio.read import load
from ced_edge.errors import InputError
from ced_edge.frontend import StreamMel, log_mel
from ced_edge.runtime.events import Event, EventRule, Events
from ced_edge.runtime.tagger import StreamingTagger, Tagger, Tags
from ced_edge.windows import chunks

RATE = SPEC.frontend.rate_hz
Float32 = NDArray[np.float32]


class Echo:
    """A tagger that returns the window itself, so that every sample is compared."""

    rate_hz = RATE

    def __init__(self, window_s: float = 0.2, min_samples: int = 100) -> None:
        spec = SimpleNamespace(min_samples=min_samples, frontend=SPEC.frontend)
        self.bundle = SimpleNamespace(spec=spec, window_samples=round(window_s * RATE), folder="echo")

    def predict_window(self, wave: Float32, mels: StreamMel | None = None, start: int = 0) -> Float32:
        return wave.copy()


class Loudness(Echo):
    """A tagger of two classes: 0 where the window is loud, 1 where it is not."""

    def predict_window(self, wave: Float32, mels: StreamMel | None = None, start: int = 0) -> Float32:
        loud = np.float32(min(1.0, float(np.abs(wave).mean())))
        return np.array([loud, 1 - loud], np.float32)


def make(tagger: Any, window_s: float | None = None, hop_s: float | None = None) -> StreamingTagger:
    return StreamingTagger(tagger, window_s, hop_s)


def drain(stream: StreamingTagger) -> Iterator[Tags]:
    while stream.ready():
        yield stream.pop()


def run(stream: StreamingTagger, pieces: Any, rate_hz: int | None = None, late: bool = False) -> list[Tags]:
    """All tags of `pieces`, popped after each piece or, if `late`, at the end."""
    tags: list[Tags] = []
    for piece in pieces:
        stream.accept(piece, rate_hz)
        tags += [] if late else drain(stream)
    stream.finish()
    return [*tags, *drain(stream)]


def same(a: list[Tags], b: list[Tags]) -> bool:
    spans_a, spans_b = ([(t.start_s, t.end_s) for t in tags] for tags in (a, b))
    return spans_a == spans_b and all(np.array_equal(x.probs, y.probs) for x, y in zip(a, b, strict=True))


def wave_of(samples: int, channels: int, seed: int) -> Float32:
    x = np.random.default_rng(seed).uniform(-1, 1, (samples, channels)).astype(np.float32)
    return x[:, 0] if channels == 1 else x


def cut(wave: Float32, at: list[float]) -> list[Float32]:
    return np.split(wave, sorted(round(x * len(wave)) for x in at))


@settings(max_examples=150)
@given(
    samples=st.integers(0, 30_000),
    channels=st.integers(1, 3),
    rate_hz=st.sampled_from([None, 8_000, 11_025, 44_100, 48_000]),
    hop=st.sampled_from([None, 0.2, 0.07, 0.013]),
    at=st.lists(st.floats(0, 1), max_size=40),
    late=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_chunking_is_offline(
    samples: int, channels: int, rate_hz: int | None, hop: float | None, at: list[float], late: bool, seed: int
) -> None:
    wave = wave_of(samples, channels, seed)
    whole = run(make(Echo(), hop_s=hop), [wave], rate_hz)
    assert same(run(make(Echo(), hop_s=hop), cut(wave, at), rate_hz, late), whole)


@settings(max_examples=60)
@given(samples=st.integers(0, 20_000), hop=st.sampled_from([0.2, 0.07, 0.0125]), at=st.lists(st.floats(0, 1)))
def test_windows_hold_the_samples_of_windows_py(samples: int, hop: float, at: list[float]) -> None:
    wave = wave_of(samples, 1, 0)
    tags = run(make(Echo(), hop_s=hop), cut(wave, at))
    spans = chunks(samples, 3_200, round(hop * RATE))
    assert [(t.start_s, t.end_s) for t in tags] == [(a / RATE, b / RATE) for a, b in spans]
    assert all(np.array_equal(t.probs, wave[a:b]) for t, (a, b) in zip(tags, spans, strict=True))


@pytest.mark.parametrize("input", ["waveform", "mel"])
@pytest.mark.parametrize("piece", [1_000, 7_777, 100_000])
@pytest.mark.parametrize("hop_s", [2.0, 0.5, 0.333])
def test_any_chunking_is_offline_through_a_real_model(input: str, piece: int, hop_s: float) -> None:
    tagger, wave = Tagger(shared_bundle(input)), wave_of(90_000, 1, 1)
    whole = tagger.tag(wave, hop_s=hop_s)
    assert same(run(make(tagger, hop_s=hop_s), np.split(wave, range(piece, len(wave), piece))), whole)
    # Each window has the same prediction on its own.
    for t in whole:
        alone = tagger.predict_window(wave[round(t.start_s * RATE) : round(t.end_s * RATE)])
        np.testing.assert_array_equal(t.probs, alone)


@settings(max_examples=40)
@given(
    window=st.integers(257, 4_000),
    hops=st.lists(st.one_of(st.integers(0, 25).map(lambda i: 160 * i), st.integers(0, 4_000)), max_size=6),
    kind=st.sampled_from(["noise", "silence", "impulse"]),
)
def test_a_shared_log_mel_is_the_windows_own(window: int, hops: list[int], kind: str) -> None:
    starts = np.cumsum([0, *hops])
    wave = {
        "noise": lambda n: wave_of(n, 1, 2),
        "silence": lambda n: np.zeros(n, np.float32),
        "impulse": lambda n: np.eye(1, n, n // 2, dtype=np.float32)[0] * 1_000,  # lifts the floor of some windows
    }[kind](int(starts[-1]) + window)
    mels = StreamMel(SPEC.frontend)
    for i in starts:
        x = wave[i : i + window]
        np.testing.assert_array_equal(mels.log_mel(x, int(i)), log_mel(x, SPEC.frontend))


def test_frames_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ced_edge.frontend as frontend

    counted = 0
    real = frontend.frames_db

    def count(samples: Float32, spec: Any) -> Float32:
        nonlocal counted
        db = real(samples, spec)
        counted += len(db)
        return db

    monkeypatch.setattr(frontend, "frames_db", count)
    mels, wave = StreamMel(SPEC.frontend), wave_of(20 * RATE, 1, 3)
    for start in range(0, 18 * RATE + 1, RATE // 2):
        mels.log_mel(wave[start : start + 2 * RATE], start)
    # 2,001 frames in all, and 4 at the edges of each of the 37 windows; unshared they would be 7,437.
    assert counted <= 2_001 + 37 * 4


def hour() -> Float32:
    """An hour of noise that is loud in 200 places."""
    rng = np.random.default_rng(4)
    gain = np.full(3_600 * 4, 0.01, np.float32)
    for at in rng.integers(0, len(gain) - 40, 200):
        gain[at : at + rng.integers(2, 40)] = 1.0
    block = rng.uniform(-1, 1, RATE // 4).astype(np.float32)
    return (gain[:, None] * block).ravel()


def test_an_hour_at_once_and_in_pieces_of_20_ms_has_equal_events_and_flat_memory() -> None:
    wave, rule = hour(), EventRule(on=0.4, off=0.2, min_duration_s=0.5, smooth=2)

    def feed(stream: StreamingTagger, events: Events, pieces: Any) -> list[Event]:
        found: list[Event] = []
        for piece in pieces:
            stream.accept(piece)
            found += [e for tags in drain(stream) for e in events.push(tags)]
        return found

    def end(stream: StreamingTagger, events: Events) -> list[Event]:
        stream.finish()
        return [e for tags in drain(stream) for e in events.push(tags)] + events.finish()

    stream, events = make(Loudness(1.0), hop_s=0.5), Events(rule, 2)
    at_once = feed(stream, events, [wave]) + end(stream, events)
    assert len(at_once) > 100
    stream, events = make(Loudness(1.0), hop_s=0.5), Events(rule, 2)
    pieces = [wave[i : i + 320] for i in range(0, len(wave), 320)]
    in_pieces = feed(stream, events, pieces[: 50 * 3_000])
    tracemalloc.start()  # for the last ten minutes only, because it is slow
    late = feed(stream, events, pieces[50 * 3_000 :])
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert in_pieces + late + end(stream, events) == at_once
    # Besides the events, only the buffer of the stream may have been allocated in these minutes.
    assert stream._intake._buffer.nbytes < 300_000
    assert grown < stream._intake._buffer.nbytes + 300 * len(late) + 20_000


def test_the_memory_of_an_hour_fed_at_once_is_freed() -> None:
    stream = make(Echo(1.0))
    stream.accept(np.zeros(3_600 * RATE, np.float32))
    for _ in drain(stream):
        pass
    assert stream._intake._buffer.nbytes < 2**21


def test_48_khz_stereo_is_what_loading_the_file_gives() -> None:
    wave = wave_of(3 * 48_000, 2, 5)
    file = io.BytesIO()
    soundfile.write(file, wave, 48_000, subtype="FLOAT", format="WAV")
    file.seek(0)
    loaded = load(file, RATE)
    tags = run(make(Echo()), np.split(wave, range(960, len(wave), 960)), 48_000)
    assert sum(t.end_s - t.start_s for t in tags) == pytest.approx(3.0)
    np.testing.assert_array_equal(np.concatenate([t.probs for t in tags]), loaded)
    np.testing.assert_array_equal(loaded, soxr.resample(wave.mean(axis=1), 48_000, RATE, quality="HQ"))


@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_nan_is_refused_with_its_place_and_the_stream_goes_on(value: float, what: str) -> None:
    wave = wave_of(70_000, 2, 6)
    bad = wave[20_000:].copy()
    bad[45_000, 1] = value  # in a later block of the piece
    stream = make(Echo())
    stream.accept(wave[:20_000], 32_000)
    with pytest.raises(InputError, match=rf"at 2\.031 s \(index 65000\) is {what}"):
        stream.accept(bad)
    tags = [*run(stream, [wave[20_000:]])]
    assert same(tags, run(make(Echo()), [wave], 32_000))
    with pytest.raises(InputError, match="is infinite"):
        make(Echo()).accept(np.array([0.0, 1e300]))


@pytest.mark.parametrize(("value", "what"), [(8.5, "8.5"), (-32_768.0, "-3.277e+04"), (1e38, "1e+38")])
def test_a_sample_far_beyond_full_scale_is_refused_with_its_time(value: float, what: str) -> None:
    wave = wave_of(8_000, 2, 6)
    wave[4_000] = 8, -8
    make(Echo()).accept(wave)  # 18 dB above full scale are possible in files of floats
    wave[6_000, 1] = value
    stream = make(Echo())
    with pytest.raises(InputError) as caught:
        stream.accept(wave)
    assert f"the sample at 0.375 s (index 6000) is {what}: samples are in [-1, 1]" in str(caught.value)
    assert "--pcm-format" in str(caught.value)
    assert stream.ready() == 0


@pytest.mark.parametrize("input", ["waveform", "mel"])
def test_silence_clipping_and_gaps(input: str) -> None:
    """Predictions stay in [0, 1], samples beyond 1 are not clipped, and digital silence ends nothing."""
    tagger, wave = Tagger(shared_bundle(input)), 0.5 * wave_of(3 * RATE, 1, 7)
    wave[RATE : 2 * RATE] = 0
    for x in (np.zeros(3 * RATE, np.float32), wave, 15 * wave, np.sign(wave)):
        tags = run(make(tagger, 1.0, 0.5), np.split(x, range(500, len(x), 500)))
        assert [(t.start_s, t.end_s) for t in tags] == [(i / 2, i / 2 + 1) for i in range(5)]
        assert all(((t.probs >= 0) & (t.probs <= 1)).all() for t in tags)
    loud, clipped = tagger.predict(4 * wave), tagger.predict(np.clip(4 * wave, -1, 1))
    assert not np.array_equal(loud, clipped)


def test_errors_name_the_misuse() -> None:
    stream = make(Echo())
    with pytest.raises(InputError, match="no window is ready"):
        stream.pop()
    stream.accept(np.zeros(10, np.float32), 48_000)
    stream.accept(np.zeros(10, np.float32))  # at the same rate
    with pytest.raises(InputError, match="a stream of 48000 Hz was given samples of 16000 Hz"):
        stream.accept(np.zeros(10, np.float32), 16_000)
    stream.finish()
    stream.finish()
    with pytest.raises(InputError, match="the stream is finished"):
        stream.accept(np.zeros(10, np.float32))
    assert [t.end_s for t in drain(stream)] == [pytest.approx(20 / 48_000, abs=1e-4)]
    stream.reset()
    stream.accept(np.zeros(RATE, np.float32), RATE)
    assert stream.ready() == 5
    assert stream.pop().start_s == 0.0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(10, np.int16), r"floats in \[-1, 1\], not int16: divide"),
        (np.zeros((2, 480), np.float32), r"\(n, channels\) with at most 64 channels, not \(2, 480\)"),
        (np.zeros((2, 0), np.float32), r"not \(2, 0\)"),
        (np.zeros((2, 2, 2), np.float32), r"not \(2, 2, 2\)"),
        (np.float32(0.5), r"not \(\)"),
    ],
)
def test_other_arrays_are_refused(samples: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(Echo()).accept(samples)


@pytest.mark.parametrize("rate_hz", [-1, 999, 2_000_000])
def test_a_rate_that_no_sound_card_has_is_refused(rate_hz: int) -> None:
    with pytest.raises(InputError, match="is not between 1000 and 1000000 Hz"):
        make(Echo()).accept(np.zeros(10, np.float32), rate_hz)


@pytest.mark.parametrize("window_s", [0, -1, float("nan"), float("inf")])
def test_a_window_without_a_length_is_refused(window_s: float) -> None:
    with pytest.raises(InputError, match=r"a window of .* give seconds above 0"):
        make(Echo(), window_s)


@pytest.mark.parametrize("window_s", [0.001, 0.21, 10])
def test_a_window_that_the_model_does_not_accept_is_refused(window_s: float) -> None:
    with pytest.raises(InputError, match=r"a window of .* does not fit echo: 0\.00625 to 0\.2 s"):
        make(Echo(), window_s)


@pytest.mark.parametrize("hop_s", [0.21, 1e-6])
def test_a_hop_that_leaves_samples_out_is_refused(hop_s: float) -> None:
    with pytest.raises(InputError, match=r"a hop of .* does not fit windows of 0\.2 s"):
        make(Echo(), hop_s=hop_s)


def test_windows_after_skipped_ones_are_right() -> None:
    wave = wave_of(3_200 + 4 * 800, 1, 8)
    stream = make(Echo(), hop_s=0.05)
    stream.accept(wave)
    assert stream.ready() == 5
    stream.skip()
    stream.skip()
    assert np.array_equal(stream.pop().probs, wave[1_600:4_800])
    assert stream.ready() == 2


@pytest.mark.parametrize("skip", [1, 3])
def test_a_shared_log_mel_after_skips(skip: int) -> None:
    tagger, wave = Tagger(shared_bundle("mel")), wave_of(5 * RATE, 1, 9)
    whole = tagger.tag(wave, hop_s=0.5)
    stream = make(tagger, hop_s=0.5)
    stream.accept(wave)
    first = stream.pop()
    for _ in range(skip):
        stream.skip()
    assert same([first, stream.pop()], [whole[0], whole[1 + skip]])
