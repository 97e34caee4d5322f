"""Many files through one model, several at a time. A bad file does not stop the others."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ced_edge.audio.base import AUDIO_SUFFIXES, AudioError
from ced_edge.audio.folders import audio_files
from ced_edge.audio.level import Gain, mean_level
from ced_edge.audio.read import duration_s
from ced_edge.errors import CedEdgeError
from ced_edge.files import is_fifo
from ced_edge.runtime.tagger import StreamingTagger, Tagger, Tags, mean_probs, tag_file

_POLL_S = 0.2
"""Seconds between two reports of progress."""
_AHEAD = 16
"""Files that may wait for an earlier one, which takes longer. All others wait to be started, so that the memory does
not grow with the number of files."""
STDIN = Path("-")
"""The name of the file that comes through stdin."""


@dataclass(frozen=True)
class Tagged:
    """The result for one file: its tags, or the error that left it without any."""

    path: Path
    tags: tuple[Tags, ...] = ()
    error: CedEdgeError | None = None

    @property
    def whole(self) -> Tags:
        """Mean probabilities and level over the windows, which are at least one, weighted by their length."""
        levels = [(t.level, t.end_s - t.start_s) for t in self.tags if t.level is not None]
        return Tags(0.0, self.tags[-1].end_s, mean_probs(self.tags), mean_level(levels) if levels else None)


def is_pipe(path: Path) -> bool:
    """Whether the path is STDIN, a named pipe, or a shell's `<(command)`."""
    return path == STDIN or is_fifo(path)


def walk(paths: Sequence[Path], failed: Callable[[OSError], None]) -> list[Path]:
    """The files among `paths`, and the audio files in the folders among them.

    A folder without audio files stays in the list, so that `tag_files` reports it. `failed` is called for each folder
    that cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        errors: list[OSError] = []
        # os.path, as Path.is_dir raises on names that the system refuses.
        inside = audio_files(path, errors.append) if os.path.isdir(path) and path != STDIN else []
        for error in errors:
            failed(error)
        files += inside or ([] if errors else [path])
    return files


def tag_files(
    tagger: Tagger,
    paths: Sequence[Path],
    window_s: float | None = None,
    hop_s: float | None = None,
    jobs: int = 1,
    progress: Callable[[float], None] = lambda share: None,
    gain_db: Gain = 0.0,
) -> Iterator[Tagged]:
    """Tag `paths`, `jobs` at a time, and yield the result of each, in their order.

    `progress` is called now and then with the share of the work that is done, from 0 to 1. Raises InputError when the
    model does not accept such windows.
    """
    StreamingTagger(tagger, window_s, hop_s, gain_db)  # wrong windows are one error, not one per file
    free: queue.SimpleQueue[Tagger] = queue.SimpleQueue()
    free.put(tagger)
    shares, stopped = [0.0] * len(paths), threading.Event()

    def work(i: int) -> Tagged:
        # A tagger serves one thread at a time, so each thread that finds none free loads the file once more.
        try:
            own = free.get_nowait()
        except queue.Empty:
            own = tagger.copy()
        try:
            return Tagged(paths[i], tuple(tags_of(own, i)))
        except CedEdgeError as e:
            return Tagged(paths[i], error=e)
        finally:
            shares[i] = 1.0
            free.put(own)

    def tags_of(own: Tagger, i: int) -> Iterator[Tags]:
        if os.path.isdir(paths[i]) and paths[i] != STDIN:
            raise AudioError(str(paths[i]), f"no audio in this folder ({', '.join(sorted(AUDIO_SUFFIXES))})")
        source: Path | BinaryIO = paths[i]
        if paths[i] == STDIN:
            if sys.stdin is None:
                raise AudioError(str(STDIN), "stdin is closed: pipe a file into it")
            source = sys.stdin.buffer
        # For the progress bar. What can be read once only is not read for its length.
        length_s = math.inf if is_pipe(paths[i]) else duration_s(paths[i], exact=False)
        for tags in tag_file(StreamingTagger(own, window_s, hop_s, gain_db), source):
            shares[i] = min(1.0, tags.end_s / length_s)
            yield tags
            if stopped.is_set():  # nobody will read the result
                return

    jobs = max(1, min(jobs, len(paths)))
    # The caller may leave at any time. Then no thread begins another file, and each ends its own after one window.
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool, contextlib.ExitStack() as at_exit:
        at_exit.callback(pool.shutdown, wait=False, cancel_futures=True)
        at_exit.callback(stopped.set)
        upcoming = iter(range(len(paths)))
        running = collections.deque(pool.submit(work, i) for i in itertools.islice(upcoming, jobs + _AHEAD))
        while running:
            while not concurrent.futures.wait([running[0]], timeout=_POLL_S).done:
                progress(sum(shares) / len(shares))
            yield running.popleft().result()
            running.extend(pool.submit(work, i) for i in itertools.islice(upcoming, 1))
    progress(1.0)
