"""Many files through one model: side by side, in order, and with flat memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny_bundle import shared_bundle

from ced_edge.errors import CedEdgeError
from ced_edge.runtime import tag_files
from ced_edge.runtime.tagger import Tagger


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder of sounds: 5 s of 48 kHz stereo, and 1 s of FLAC in a folder of its own."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio" / "deep").mkdir(parents=True)
    soundfile.write(tmp_path / "audio" / "a.wav", rng.uniform(-0.5, 0.5, (240_000, 2)), 48_000)
    soundfile.write(tmp_path / "audio" / "deep" / "b.flac", rng.uniform(-0.5, 0.5, 16_000), 16_000)
    return tmp_path / "audio"


def test_files_run_side_by_side_each_in_a_tagger_of_its_own(audio: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, working, most = tag_files.tag_stream, [0], [0]
    taggers: set[int] = set()
    import threading

    both = threading.Barrier(2, timeout=60)

    def watch(stream: Any, pieces: Any) -> Any:
        working[0] += 1
        most[0] = max(most[0], working[0])
        taggers.add(id(stream.tagger))
        both.wait()
        yield from real(stream, pieces)
        working[0] -= 1

    monkeypatch.setattr(tag_files, "tag_stream", watch)
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
