"""Damaged files of every kind that ced-edge reads: each case must end in a result or in one line. Needs Linux.

    python tests/fuzz.py --cases 10000                   # `make fuzz`
    python tests/fuzz.py --kind wav --seed 7             # other damage
    python tests/fuzz.py --repeat .venv/fuzz/FILE        # one case that failed, with its traceback

A case is a good file with random damage (fuzz_mutations.py), read by the function that the commands use
(fuzz_kinds.py). Each kind has a process of its own. A case fails when

- an exception reaches the user that is not a CedEdgeError with one printable line,
- it takes longer than 10 s; then the process is killed and a new one goes on,
- the peak memory of the process is over 500 MB more than before the case, or
- the process dies.

The damage depends only on --seed, the kind and the number of the case (but each new Ogg file has a random serial
number). A file that fails is kept.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import click
import numpy as np
from fuzz_kinds import KINDS, Kind
from fuzz_mutations import mutate

from ced_edge.errors import CedEdgeError

SECONDS_LIMIT, MEMORY_LIMIT_MB = 10.0, 500.0
ADDRESS_SPACE = 8 << 30
"""A process that asks for more gets a MemoryError: this protects the machine."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    name: str
    """result, error (one line) or failure."""
    text: str = ""
    megabytes: float = 0.0


@dataclass
class Count:
    """What became of the cases of a kind."""

    results: int = 0
    errors: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    most_mb: float = 0.0

    @property
    def cases(self) -> int:
        """All cases that ran."""
        return self.results + self.errors + len(self.failures)

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count one case."""
        self.slowest_s = max(self.slowest_s, seconds)
        self.most_mb = max(self.most_mb, outcome.megabytes)
        self.results += outcome.name == "result"
        self.errors += outcome.name == "error"
        self.failures += [outcome.text] * (outcome.name == "failure")


# The process that reads ----------------------------------------------------------------------------------------------


def read(kind: Kind, path: Path) -> Outcome:
    """Read one file, and measure how much the memory of this process grows."""
    before = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, counts from here
    outcome = Outcome("result")
    try:
        with warnings.catch_warnings():
            for category in (RuntimeWarning, UserWarning):  # Python would print them below our one line
                warnings.simplefilter("error", category)
            kind.read(path)
    except CedEdgeError as e:
        outcome = Outcome("error" if str(e).isprintable() else "failure", str(e))
    except BaseException as e:
        outcome = Outcome("failure", f"{type(e).__name__}: {e}\n\n{traceback.format_exc()}")
    grown = _memory_mb("VmHWM") - before
    if grown > MEMORY_LIMIT_MB:
        return Outcome("failure", f"took {grown:.0f} MB ({outcome.text})", grown)
    return Outcome(outcome.name, outcome.text, grown)


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def serve(kind: Kind, folder: Path, paths: list[Path], pipe: Connection) -> None:
    """Read each file whose path the pipe brings. Without `paths` of good files, make them first."""
    logging.disable()
    paths = paths or kind.make(folder)
    for path in paths:  # a kind whose good files cannot be read would prove nothing; this imports all modules too
        kind.read(path)
    for stream in (1, 2):  # decoders in C write about every damaged header
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    pipe.send(paths)
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        pipe.send(read(kind, path))


class Reader:
    """A process that reads files of one kind. After it hung or died, `start` brings a new one."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self._kind, self._folder = kind, folder
        self.paths: list[Path] = []
        self.start()

    def start(self) -> None:
        """Start the process. The good files must be in place, except the first time, when it makes them."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(self._kind, self._folder, self.paths, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.paths = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self._kind} cannot make and read its good files") from None

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def read(self, path: Path) -> Outcome:
        """Read one file. A process that hangs is killed."""
        self._pipe.send(path)
        with contextlib.suppress(EOFError, ConnectionError):
            if self._pipe.poll(SECONDS_LIMIT):
                outcome: Outcome = self._pipe.recv()
                return outcome
            self._process.kill()
            self._process.join()
            return Outcome("failure", f"took more than {SECONDS_LIMIT:g} s")
        self._process.join()
        return Outcome("failure", f"died (exit code {self._process.exitcode})")

    def close(self) -> None:
        """End the process: without a pipe it ends by itself."""
        self._pipe.close()
        self._process.join(SECONDS_LIMIT)
        self._process.kill()
        self._process.join()


# The cases -----------------------------------------------------------------------------------------------------------


def fuzz(name: str, kind: Kind, cases: int, seed: int, keep: Path, end: float = float("inf")) -> Count:
    """Run the cases of one kind, until the monotonic time `end` at the latest."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(kind, Path(folder))
        files = {path: path.read_bytes() for path in reader.paths}
        try:
            for i in range(cases):
                if time.monotonic() > end:
                    break
                rng = np.random.default_rng([seed, i, *name.encode()])
                path = reader.paths[i % len(files)]
                path.write_bytes(mutate(files[path], list(files.values()), rng))
                began = time.monotonic()
                outcome = reader.read(path)
                count.add(outcome, time.monotonic() - began)
                if outcome.name == "failure":
                    place = "+".join(path.relative_to(folder).parts)
                    _keep(keep, f"{name}@{seed}@{i}@{place}", path.read_bytes(), outcome.text)
                path.write_bytes(files[path])
                if not reader.is_alive:
                    reader.start()
        finally:
            reader.close()
    return count


def _keep(keep: Path, name: str, data: bytes, text: str) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    (keep / name).write_bytes(data)
    (keep / f"{name}.txt").write_text(f"python tests/fuzz.py --repeat '{keep / name}'\n\n{text}\n", errors="replace")


def repeat(file: Path) -> Outcome:
    """Read a kept file again, in this process."""
    name, _, _, place = file.name.split("@")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, *place.split("+"))
        assert path in KINDS[name].make(Path(folder))
        path.write_bytes(file.read_bytes())
        return read(KINDS[name], path)


@click.command()
@click.option("--cases", type=click.IntRange(1), default=10_000, show_default=True, help="Number for all kinds.")
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="Only this kind; repeat.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--minutes", type=float, default=30.0, show_default=True, help="Longest time.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count(), help="Processes.  [default: the cores]")
@click.option("--keep", type=click.Path(path_type=Path), default=Path(".venv/fuzz"), show_default=True)
@click.option("--repeat", "again", type=click.Path(exists=True, path_type=Path), help="Read a kept file again.")
def main(
    cases: int, kinds: tuple[str, ...], seed: int, minutes: float, workers: int, keep: Path, again: Path | None
) -> None:
    """Read damaged files of every kind. Exit code 1 unless all cases ended in a result or in one line."""
    if again is not None:
        outcome = repeat(again)
        click.echo(f"{outcome.name}, {outcome.megabytes:.0f} MB: {outcome.text}")
        sys.exit(outcome.name == "failure")
    kinds = kinds or tuple(KINDS)
    each, end = -(-cases // len(kinds)), time.monotonic() + 60 * minutes
    row = "| {:11} | {:>6} | {:>7} | {:>6} | {:>8} | {:>9} | {:>7} |".format
    click.echo(row("kind", "cases", "results", "errors", "failures", "slowest s", "most MB"))
    click.echo(row(*["---"] * 7))
    total = Count()
    with ThreadPoolExecutor(workers) as pool:
        counts = pool.map(lambda name: fuzz(name, KINDS[name], each, seed, keep, end), kinds)
        for kind, c in zip(kinds, counts, strict=True):
            numbers = (c.cases, c.results, c.errors, len(c.failures), f"{c.slowest_s:.2f}", f"{c.most_mb:.0f}")
            click.echo(row(kind, *numbers))
            for text, number in collections.Counter(t.splitlines()[0][:150] for t in c.failures).most_common(8):
                click.echo(f"  {number} x {text!r}", err=True)
            total.results += c.results
            total.errors += c.errors
            total.failures += c.failures
            total.slowest_s, total.most_mb = max(total.slowest_s, c.slowest_s), max(total.most_mb, c.most_mb)
    numbers = (total.cases, total.results, total.errors, len(total.failures))
    click.echo(row("all", *numbers, f"{total.slowest_s:.2f}", f"{total.most_mb:.0f}"))
    if total.failures:
        click.echo(f"the files that failed are in {keep}", err=True)
    if total.cases < each * len(kinds):
        click.echo(f"stopped after {minutes:g} minutes, before the last case", err=True)
    sys.exit(bool(total.failures) or total.cases < each * len(kinds))


if __name__ == "__main__":
    main()
