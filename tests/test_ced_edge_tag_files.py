"""Many files through one model: side by side, in order, and with flat memory."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_ced_edge_streaming import Loudness
from tiny_bundle import shared_bundle

from ced_edge.audio.base import AudioError
from ced_edge.audio.read import decode
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.runtime import tag_files
from ced_edge.runtime.tagger import StreamingTagger, Tagger


def test_files_run_side_by_side_each_in_a_tagger_of_its_own(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, working, most = tag_files.tag_file, [0], [0]
    taggers: set[int] = set()
    both = threading.Barrier(2, timeout=60)

    def watch(stream: Any, path: Path) -> Any:
        working[0] += 1
        most[0] = max(most[0], working[0])
        taggers.add(id(stream.tagger))
        both.wait()
        yield from real(stream, path)
        working[0] -= 1

    monkeypatch.setattr(tag_files, "tag_file", watch)
    paths = [audio / "a.wav", audio / "deep" / "b.flac"] * 2
    seen: list[float] = []
    done = list(tag_files.tag_files(Tagger(shared_bundle()), paths, jobs=2, progress=seen.append))
    assert [t.path for t in done] == paths
    assert (most[0], len(taggers)) == (2, 2)
    assert seen[-1] == 1.0
    assert all(0 <= x <= 1 for x in seen)
    for a, b in zip(done[:2], done[2:], strict=True):
        assert all(np.array_equal(x.probs, y.probs) for x, y in zip(a.tags, b.tags, strict=True))


def test_an_error_of_the_model_names_the_file(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tagger = Tagger(shared_bundle())

    def fail(*inputs: Any) -> Any:
        raise CedEdgeError("m.onnx failed")

    monkeypatch.setattr(tagger.backend, "run", fail)
    (done,) = tag_files.tag_files(tagger, [audio / "a.wav"])
    assert str(done.error) == f"{audio / 'a.wav'}: m.onnx failed"
    assert done.tags == ()


def test_results_are_not_kept_once_they_are_yielded(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If they were kept, the memory would grow with the number of files."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    begun = 0

    class Watched(tag_files.Tagged):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            nonlocal begun
            super().__init__(*args, **kwargs)
            alive.add(self)
            begun += 1

        __hash__ = object.__hash__

    monkeypatch.setattr(tag_files, "Tagged", Watched)
    paths = [audio / "deep" / "b.flac"] * 100
    most, fake = 1 + tag_files._AHEAD, Loudness(0.2)
    fakes: Any = fake
    for count, done in enumerate(tag_files.tag_files(fakes, paths), start=1):
        assert len(done.tags) == 5
        gc.collect()
        assert len(alive) <= 1 + most  # the one in our hand, and those that wait
        assert begun <= count + most
    assert count == begun == 100


def test_leaving_early_ends_the_work(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes: Any = Loudness(0.2)
    results = tag_files.tag_files(fakes, [audio / "a.wav"] * 100)
    next(results)
    before = threading.active_count()
    results.close()
    assert threading.active_count() < before


def test_tag_file_is_tag_of_its_samples(audio: Path) -> None:
    tagger = Tagger(shared_bundle())
    wave, rate_hz = decode(audio / "a.wav")
    for window_s, hop_s in [(None, None), (1.0, 0.5)]:
        whole = tagger.tag(wave, rate_hz, window_s, hop_s)
        by_file = tagger.tag_file(str(audio / "a.wav"), window_s, hop_s)
        assert [(t.start_s, t.end_s) for t in by_file] == [(t.start_s, t.end_s) for t in whole]
        assert all(np.array_equal(a.probs, b.probs) for a, b in zip(by_file, whole, strict=True))


def test_tag_file_reads_a_long_file_in_pieces(tmp_path: Path) -> None:
    path, seconds = tmp_path / "long.wav", 900
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as f:
        for i in range(seconds):
            f.write(np.full(16_000, 0.5 * (i % 2)))
    fakes: Any = Loudness(1.0)
    tracemalloc.start()
    try:
        tags = list(tag_files.tag_file(StreamingTagger(fakes), path))
        assert tracemalloc.get_traced_memory()[1] < 16_000 * 4 * seconds / 5
    finally:
        tracemalloc.stop()
    assert [t.probs[0] for t in tags] == [0.0, 0.5] * (seconds // 2)


def test_tag_file_names_the_file_in_every_error(tmp_path: Path) -> None:
    tagger, path = Tagger(shared_bundle()), tmp_path / "x.wav"
    for samples, message in [
        (np.full(9_000, np.nan), r"x\.wav: the sample at 0\.000 s \(index 0\) is NaN"),
        (np.zeros(1), r"x\.wav: too short: no sample is left at 16000 Hz"),
    ]:
        soundfile.write(path, samples, 48_000, subtype="FLOAT")
        with pytest.raises(AudioError, match=message):
            tagger.tag_file(path)
    with pytest.raises(AudioError, match=r"nothing\.wav: no such file"):
        tagger.tag_file(tmp_path / "nothing.wav")
    with pytest.raises(InputError, match="a window of 0 s"):
        tagger.tag_file(path, window_s=0)
