"""Many files through one model: folders walked, files side by side, and a bad one is no reason to stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ced_edge.audio.base import AUDIO_SUFFIXES, AudioError
from ced_edge.audio.clips import audio_files
from ced_edge.audio.read import duration_s, stream
from ced_edge.errors import CedEdgeError
from ced_edge.runtime.tagger import StreamingTagger, Tagger, Tags, tag_stream

_POLL_S = 0.2


@dataclass(frozen=True)
class Tagged:
    """What became of a file: its tags, or the reason why there are none."""

    path: Path
    tags: tuple[Tags, ...] = ()
    error: CedEdgeError | None = None


def walk(paths: Sequence[Path], failed: Callable[[OSError], None]) -> list[Path]:
    """Files as they are, folders as the audio files in them. A folder without any stays, to be told of.

    `failed` is called for each folder that cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        errors: list[OSError] = []
        inside = audio_files(path, errors.append) if os.path.isdir(path) else []
        for error in errors:
            failed(error)
        found += inside or ([] if errors else [path])
    return found


def tag_files(
    tagger: Tagger,
    paths: Sequence[Path],
    window_s: float | None = None,
    hop_s: float | None = None,
    jobs: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[Tagged]:
    """Tag `paths`, `jobs` at a time, and yield what became of each, in their order.

    `progress` is called now and then with the share that is done, from 0 to 1. Raises InputError on a wrong window.
    """
    StreamingTagger(tagger, window_s, hop_s)
    # A tagger serves one thread at a time: whoever finds none free loads another one of the same file.
    free: queue.SimpleQueue[Tagger] = queue.SimpleQueue()
    free.put(tagger)
    done, stopped = [0.0] * len(paths), threading.Event()

    def work(i: int) -> Tagged:
        try:
            mine = free.get_nowait()
        except queue.Empty:
            mine = tagger.copy()
        try:
            return Tagged(paths[i], tuple(_tag(mine, i)))
        except CedEdgeError as e:
            return Tagged(paths[i], error=e if isinstance(e, AudioError) else CedEdgeError(f"{paths[i]}: {e}"))
        finally:
            done[i] = 1.0
            free.put(mine)

    def _tag(mine: Tagger, i: int) -> Iterator[Tags]:
        path = paths[i]
        if os.path.isdir(path):
            raise AudioError(str(path), f"no audio in this folder ({', '.join(sorted(AUDIO_SUFFIXES))})")
        length_s = duration_s(path)
        for tags in tag_stream(StreamingTagger(mine, window_s, hop_s), stream(path)):
            done[i] = min(1.0, tags.end_s / length_s)
            yield tags
            if stopped.is_set():
                return
        if not done[i]:  # no window came
            raise AudioError(str(path), "too short: not one sample")

    with concurrent.futures.ThreadPoolExecutor(max(1, min(jobs, len(paths)))) as pool:
        with contextlib.ExitStack() as at_exit:
            at_exit.callback(pool.shutdown, wait=False, cancel_futures=True)
            at_exit.callback(stopped.set)
            futures = [pool.submit(work, i) for i in range(len(paths))]
            for future in futures:
                while not concurrent.futures.wait([future], timeout=_POLL_S).done:
                    progress(sum(done) / len(done))
                yield future.result()
        progress(1.0)
