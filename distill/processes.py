"""Work in several processes, in order, with flat memory."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import folder_lock

Pool = concurrent.futures.Executor | None
"""None does the work in this process."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def pool_of(workers: int, start: Callable[..., None] | None = None, *args: Any) -> Iterator[Pool]:
    """A pool of that many processes, and none for one. What is queued is dropped when the block is left by an error.

    Each process calls `start(*args)` once. It must not raise: its error would be lost.
    """
    if workers == 1:
        yield None
        return
    # Spawned, not forked: a fork of a process with threads (torch, a progress bar) may hang.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (start, *args))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(start: Callable[..., None] | None, *args: Any) -> None:
    """Ctrl-C is the parent's to handle; and when the parent was killed, do not wait for it forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Decoders in C remark on every odd header on stderr, across the progress bar. Errors come back as exceptions.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    if start is not None:
        start(*args)


def exit_with_parent() -> None:
    """Wait for the end of the parent process, then end this one. To be run in a thread of a child process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def in_order(pool: Pool, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """`map` over a pool, in order, with at most `ahead` items in flight so that memory stays flat.

    What `function` logs in another process is logged here, before its result.
    """
    if pool is None:
        yield from map(function, items)
        return
    # Threads log by themselves.
    call = _with_notices if isinstance(pool, concurrent.futures.ProcessPoolExecutor) else _without_notices
    waiting: collections.deque[concurrent.futures.Future[tuple[Result, list[_Notice]]]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(call, function, item))
            if len(waiting) >= ahead:
                yield _logged(*waiting.popleft().result())
        while waiting:
            yield _logged(*waiting.popleft().result())
    except BrokenProcessPool as e:
        raise CedEdgeError("a worker process died, perhaps out of memory: run again with --workers 1 to go on") from e


_Notice = tuple[str, int, str]
"""Name of a logger, level and message."""


class _Collector(logging.Handler):
    """Keeps notices, because a worker has no way to show them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.notices: list[_Notice] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notices.append((record.name, record.levelno, record.getMessage()))


def _with_notices(function: Callable[[Item], Result], item: Item) -> tuple[Result, list[_Notice]]:
    """In a worker: the result, and what was logged on the way to it."""
    root, collector = logging.getLogger(), _Collector()
    root.setLevel(logging.INFO)  # this process does nothing but such calls
    root.addHandler(collector)
    try:
        return function(item), collector.notices
    finally:
        root.removeHandler(collector)


def _without_notices(function: Callable[[Item], Result], item: Item) -> tuple[Result, list[_Notice]]:
    return function(item), []


def _logged(result: Result, notices: list[_Notice]) -> Result:
    for name, level, message in notices:
        logging.getLogger(name).log(level, "%s", message)
    return result


def rank_and_world() -> tuple[int, int]:
    """This process's rank among all, and their number: (0, 1) unless torchrun started it."""
    return _environment("RANK", 0), _environment("WORLD_SIZE", 1)


def batch_share(batch: int, world: int) -> int:
    """How much of a batch each of `world` processes takes. Raises InputError when they cannot share it evenly."""
    if batch % world:
        raise InputError(f"--batch {batch} cannot be shared by {world} processes: choose a multiple of {world}")
    return batch // world


def local_rank() -> int | None:
    """This process's rank among those on this machine; None unless torchrun started it."""
    return _environment("LOCAL_RANK", 0) if "LOCAL_RANK" in os.environ else None


def local_world() -> int:
    """The number of processes on this machine: 1 unless torchrun started it."""
    return _environment("LOCAL_WORLD_SIZE", 1)


def _environment(name: str, default: int) -> int:
    """A number that torchrun passes in the environment. Raises InputError when it is not a number."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"the environment variable {name} is {text!r}, but must be a whole number: unset it")
    return int(text)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a second run out of `folder`; under torchrun the first process does it for all."""
    with folder_lock(folder) if rank_and_world()[0] == 0 else contextlib.nullcontext():
        yield
