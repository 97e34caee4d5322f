"""A feed: items that processes make ahead of the step that uses them, always in the same order."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from functools import partial
from types import FrameType
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from ced_edge.errors import CedEdgeError

Item = TypeVar("Item")


def feed(
    source: IterableDataset[Item], workers: int, ahead: int, mend: str, pinned: bool = False, niceness: int = 0
) -> Generator[Item, None, None]:
    """The items of `source`, made by `workers` processes (0: by this one) and taken from each of them in turn.

    Each process holds at most `ahead` finished items. `pinned` puts tensors into memory that a CUDA GPU copies while it
    computes. `niceness` is that of the processes. Closing the generator ends them. Raises what `source` raises, and
    CedEdgeError with `mend`, what the user can do, when a process dies.
    """
    with warnings.catch_warnings():
        # torch counts the cores by OMP_NUM_THREADS, which torchrun sets to 1.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        loaded: DataLoader[Item | CedEdgeError] = DataLoader(
            _Reported(source),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            pin_memory=pinned and torch.cuda.is_available(),
            worker_init_fn=partial(_start_process, niceness),
        )
        return _raised(iter(loaded), mend)


class _Reported(IterableDataset["Item | CedEdgeError"]):
    """Items, and an error as the last one. If a worker raised it, torch would turn it into a page of text."""

    def __init__(self, source: IterableDataset[Item]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Item | CedEdgeError]:
        try:
            yield from self.source
        except CedEdgeError as e:
            yield e


def _raised(items: Iterator[Item | CedEdgeError], mend: str) -> Generator[Item, None, None]:
    with _Deaths(mend) as deaths:
        try:
            while not isinstance(item := deaths.next(items), CedEdgeError):
                yield item
            raise item
        except StopIteration:
            return
        finally:
            del items  # this ends the processes


class _Deaths:
    """Postpones the error about a dead worker to the next call of `next`.

    torch raises it from its SIGCHLD handler, which runs at any point of this process, also in the middle of saving.
    """

    def __init__(self, mend: str) -> None:
        self._mend = mend

    def __enter__(self) -> _Deaths:
        self._listening = False
        self._handler = signal.getsignal(signal.SIGCHLD)
        self._replaced = callable(self._handler) and threading.current_thread() is threading.main_thread()
        if self._replaced:
            signal.signal(signal.SIGCHLD, self._on_death)
        return self

    def __exit__(self, *_: object) -> None:
        if self._replaced:
            signal.signal(signal.SIGCHLD, self._handler)

    def _on_death(self, number: int, frame: FrameType | None) -> None:
        if self._listening and callable(self._handler):
            self._handler(number, frame)

    def next(self, items: Iterator[Item | CedEdgeError]) -> Item | CedEdgeError:
        """The next item. When a worker has died, this is an error. Raises StopIteration behind the last item."""
        try:
            self._listening = True
            if self._replaced:
                self._on_death(signal.SIGCHLD, None)  # for a worker that died before this call
            return next(items)
        except (RuntimeError, ConnectionError, EOFError) as e:
            # torch reports an exception inside a worker as "Caught ...": it is a fault of ours, and not a dead process.
            if str(e).startswith("Caught ") or (isinstance(e, RuntimeError) and "DataLoader worker" not in str(e)):
                raise
        finally:
            self._listening = False
        return CedEdgeError(
            f"a process that renders views died, perhaps because memory (or /dev/shm) was full: {self._mend}"
        )


def _start_process(niceness: int, _worker: int) -> None:
    torch.set_num_threads(1)
    os.nice(niceness)
    # Ctrl-C in a terminal and torchrun's SIGTERM reach the whole process group. Only the parent should react: it
    # finishes its step and saves, and needs batches until then. So a worker leaves the group.
    os.setpgid(0, 0)
