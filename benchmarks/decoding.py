"""How fast audio files are read, compared with another version of this program.

    git worktree add ../before REVISION
    python benchmarks/decoding.py ../before short.wav short.mp3 long.flac

Each version runs in a process of its own. The two read each file in turn, so both meet the same load of the machine.
Printed are the CPU time of one `load` at 16 kHz in the other version, and how many times as long this one takes: the
median of the paired ratios, and in brackets their quartiles.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

PAIRS = 21
LEAST_S = 0.1
"""CPU time of one measurement: short files are read several times."""

_READER = """
import sys, time
from pathlib import Path
from ced_edge.audio.read import load
for line in sys.stdin:
    path, times = line.rstrip("\\n").rsplit(" ", 1)
    start = time.process_time()
    for _ in range(int(times)):
        load(Path(path), 16_000)
    print((time.process_time() - start) / int(times), flush=True)
"""


class Reader:
    """A process that reads files with the code in the folder `source`."""

    def __init__(self, source: Path) -> None:
        pipe, env = subprocess.PIPE, os.environ | {"PYTHONPATH": str(source.resolve())}
        # `python -c` imports from the current folder first.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER], stdin=pipe, stdout=pipe, env=env, text=True, cwd=source
        )

    def seconds(self, path: Path, times: int) -> float:
        """CPU seconds of one reading: the mean of so many."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(path.resolve(), times, file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            raise SystemExit(f"decoding.py: {path} cannot be read")
        return float(line)


def main() -> None:
    if len(sys.argv) < 3 or not (Path(sys.argv[1]) / "ced_edge").is_dir():
        raise SystemExit("usage: python benchmarks/decoding.py FOLDER_OF_THE_OTHER_VERSION FILE...")
    readers = [Reader(Path(sys.argv[1])), Reader(Path(__file__).parents[1])]
    for path in map(Path, sys.argv[2:]):
        times = max(1, round(LEAST_S / min(readers[0].seconds(path, 1) for _ in range(3))))
        ratios, before = [], []
        for i in range(PAIRS):
            order = (0, 1) if i % 2 else (1, 0)
            seconds = {k: readers[k].seconds(path, times) for k in order}
            ratios.append(seconds[1] / seconds[0])
            before.append(seconds[0])
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{path.name:20} {1e3 * statistics.median(before):8.2f} ms  {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
