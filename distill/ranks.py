"""The processes of torchrun (ranks) watch each other. When one dies, one line names it, and the others end too."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from ced_edge.errors import CedEdgeError
from distill.processes import rank_and_world

log = logging.getLogger(__name__)

BEAT_S = 0.5
"""Time between two beats: by these, the other ranks see that a rank lives."""
DEAD_S = 5.0
"""After a failure, a rank without a beat for this long is dead."""
SILENT_S = 20.0
"""While nothing has failed, a rank may be silent for this long. NCCL alone would wait for it for ten minutes."""


class _Terminated(BaseException):
    """torchrun ends this process, because another one has failed or because the user has stopped it."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within, a rank that dies ends this process within 30 s, with a line that names it. Only torchrun has ranks.

    Raises CedEdgeError in the first of the ranks that live; the others end without a line of their own.
    """
    if not torch.distributed.is_torchelastic_launched() or rank_and_world()[1] == 1:
        yield
        return
    watch = Watch(*rank_and_world())
    old = signal.signal(signal.SIGTERM, _terminate)  # training has its own handler while it runs
    try:
        yield
    except CedEdgeError:
        watch.fail()
        raise
    except (Exception, _Terminated) as e:
        # torchrun ends the ranks that live with SIGTERM. There are 30 s until SIGKILL, enough to find the dead one.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        watch.explain(e)
        raise
    finally:
        signal.signal(signal.SIGTERM, old)
        watch.leave()


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


class Watch:
    """The beats of this rank, in a thread, and a look at those of the others, in the store that torchrun holds."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.run = f"ced-edge/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.store = self._connect()
        self.store.set(f"{self.run}/name/{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self._add("beat", rank, 1)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """End the watch: this rank has done its work, or has failed."""
        self._end.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):
            self._add("left", self.rank, 1)

    def fail(self) -> None:
        """Let the others know that this rank reports the failure itself."""
        with contextlib.suppress(RuntimeError):
            self._add("failed", self.rank, 1)

    def explain(self, error: BaseException) -> None:
        """After `error`: raise CedEdgeError if a rank died, and SystemExit if another rank reports the failure.

        Return if this rank has to raise `error` itself.
        """
        try:
            before = [self._add("beat", rank, 0) for rank in range(self.world)]
            time.sleep(DEAD_S)
            now = [self._add("beat", rank, 0) for rank in range(self.world)]
            gone = {rank for rank in range(self.world) if self._add("left", rank, 0)}
            still = [rank for rank in range(self.world) if now[rank] == before[rank] and rank not in gone]
            # A rank without any beat was still starting, so torchrun may have ended it: it is the last one to suspect.
            dead = [rank for rank in still if now[rank]] or still
            alive = [rank for rank in range(self.world) if now[rank] and rank not in dead]
            failed = [rank for rank in range(self.world) if self._add("failed", rank, 0)]
            names = " and ".join(self._name(rank) for rank in dead)
        except RuntimeError as e:
            raise CedEdgeError(_LOST) from e
        if dead and self.rank == min(alive, default=self.rank):
            self.fail()
            raise CedEdgeError(_died(names)) from error
        if dead or [rank for rank in failed if rank != self.rank]:
            raise SystemExit(1) from error
        if isinstance(error, _Terminated):
            raise KeyboardInterrupt from error
        self.fail()

    def _beat(self) -> None:
        """Beat, and watch the rank before this one. If it falls silent, end this process."""
        store, other = self._connect(), (self.rank - 1) % self.world  # a store serves one thread at a time
        seen, seen_s = -1, time.monotonic()
        try:
            while not self._end.wait(BEAT_S):
                store.add(f"{self.run}/beat/{self.rank}", 1)
                beat = store.add(f"{self.run}/beat/{other}", 0)
                # Before its first beat a rank is still starting, which may take minutes.
                if beat != seen or not beat or store.add(f"{self.run}/left/{other}", 0):
                    seen, seen_s = beat, time.monotonic()
                elif time.monotonic() - seen_s > SILENT_S:
                    log.error("%s", _died(self._name(other, store)))
                    os._exit(1)
        except RuntimeError:
            if not self._end.wait(DEAD_S):  # else torchrun is ending this process already
                log.error("%s", _LOST)
                os._exit(1)

    def _connect(self) -> Any:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch's types lack it

        return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)

    def _add(self, what: str, rank: int, n: int) -> int:
        return int(self.store.add(f"{self.run}/{what}/{rank}", n))

    def _name(self, rank: int, store: Any = None) -> str:
        key, store = f"{self.run}/name/{rank}", store or self.store
        return f"rank {rank} ({store.get(key).decode() if store.check([key]) else 'while it started'})"


_LOST = "the connection to torchrun is lost: it, or its machine, has ended; run the same again to go on"


def _died(names: str) -> str:
    return f"{names} died, perhaps because memory was full: run the same again to go on"
