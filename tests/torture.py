"""Kills and failing disks at random moments of every stage: the end must be the same to the byte.

    python tests/torture.py --kills 1000 --failures 400 --work /tmp      # `make torture`

Each stage runs again and again in a child process. A kill is SIGKILL after a random time. A failure is a disk that is
full, or that cannot be written any more, from a random write on; a small C library in front of the system's calls does
this. After each the same stage goes on, until it ends by itself. Then its files must be those of a run that nobody
disturbed. A disk's failure must end in one line of our own.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

long torture_writes = 0, torture_fail_at = 0;
int torture_errno = 0;
char torture_folder[4096] = "";

static int fails(const char *path) {
    if (!torture_folder[0] || strncmp(path, torture_folder, strlen(torture_folder))) return 0;
    if (!torture_fail_at || ++torture_writes < torture_fail_at) return 0;
    errno = torture_errno;
    return 1;
}

static int fd_fails(int fd) {
    char link[64], path[4096];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (n <= 0) return 0;
    path[n] = 0;
    return fails(path);
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
ssize_t write(int fd, const void *data, size_t n) { NEXT(write); return fd_fails(fd) ? -1 : next(fd, data, n); }
ssize_t writev(int fd, const struct iovec *v, int n) { NEXT(writev); return fd_fails(fd) ? -1 : next(fd, v, n); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    NEXT(pwrite64); return fd_fails(fd) ? -1 : next(fd, data, n, at);
}
int fsync(int fd) { NEXT(fsync); return fd_fails(fd) ? -1 : next(fd); }
#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    NEXT(name); return (flags & (O_WRONLY | O_RDWR)) && fails(path) ? -1 : next(path, flags, mode); }
OPEN(open)
OPEN(open64)
"""
RARELY = {"export": 25}
"""Rounds from one turn of a stage to its next. An export takes a minute, the other stages a second."""
DONE, REPORTED, OTHER = 0, 3, 4
"""How a child ends: it has done its stage, with an error of our own, or with another one."""

Stage = Callable[[Path], None]
"""Does all the work of a stage in a folder, or what is left of it."""


def files(folder: Path) -> dict[str, bytes]:
    """What must not differ: every file, without the clock's columns, the empty lock, and the curves for tensorboard."""
    found = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = str(file.relative_to(folder))
        if name == "log.csv":
            rows = [line.split(",") for line in file.read_text().splitlines()]
            clock = rows[0].index("clips_per_s")
            found[name] = "\n".join(",".join(row[:clock] + row[clock + 1 :]) for row in rows).encode()
        elif file.name != ".lock" and "tensorboard" not in name and file.name != "state.pt":
            found[name] = file.read_bytes()
    return found


def make_stages(work: Path) -> dict[str, Stage]:
    """The four stages on small inputs. Everything that they import is imported here, once for all children."""
    import tiny_run
    import torch
    from tiny_teach import job_for, make_teacher

    from ced_edge.audio.clips import read_manifest
    from ced_edge.network.ced import CED
    from ced_edge.network.checkpoint import save_model
    from ced_edge.spec import SIZES
    from distill.packing.pack import PackConfig, pack
    from distill.teaching.teach import teach
    from distill.training.train import train
    from export.bundle import export_bundle
    from export.config import ExportConfig

    torch.set_num_threads(1)
    SIZES["tiny"] = tiny_run.SMALL
    clips = read_manifest(tiny_run.write_tones(work / "audio", 24))
    stream = tiny_run.make_stream(work / "stream")
    teacher = make_teacher(work)
    weights = work / "student.safetensors"
    save_model(weights, CED(tiny_run.SMALL).eval(), {})
    steps = tiny_run.config(steps=16, batch=4, checkpoint_minutes=0.0)
    kinds = ExportConfig(formats=("onnx",), kinds=("fp32", "int8"), window_s=1.0)
    return {
        "pack": lambda out: pack(clips, out, PackConfig(workers=1, clips_per_shard=6)) and None,
        "teach": lambda out: teach(job_for(stream.pack, teacher, out)),
        "train": lambda out: train(out, stream, steps) and None,
        "export": lambda out: export_bundle(weights, out / "bundle", kinds) and None,
    }


def start(stage: Stage, folder: Path, fail_at: int = 0, number: int = 0) -> int:
    """The process id of a child that does a stage. Its disk fails with `number` from write `fail_at` on."""
    pid = os.fork()
    if pid:
        return pid
    code = OTHER
    try:
        from ced_edge.errors import CedEdgeError

        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        if fail_at:
            _fail(folder, fail_at, number)
        try:
            stage(folder)
            code = DONE
        except (CedEdgeError, OSError) as e:  # the command line prints both as one line
            code = REPORTED
            (folder.parent / "error").write_text(f"{type(e).__name__}: {e}")
        except BaseException:
            (folder.parent / "error").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _fail(folder: Path, fail_at: int, number: int) -> None:
    library = ctypes.CDLL(None)
    ctypes.c_int.in_dll(library, "torture_errno").value = number
    ctypes.c_long.in_dll(library, "torture_fail_at").value = fail_at
    (ctypes.c_char * 4096).in_dll(library, "torture_folder").value = os.fsencode(folder)


def ended(pid: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Victim:
    """A stage, its undisturbed result, and the folder that is worked on now."""

    def __init__(self, name: str, stage: Stage, work: Path) -> None:
        self.name, self.stage = name, stage
        self.folder = work / name / "now"
        self.counts: Counter[str] = Counter()
        self._clear()
        begin = time.monotonic()
        assert self.run() == DONE, self.error()
        self.seconds = time.monotonic() - begin
        self.wanted = files(self.folder)
        assert self.wanted
        self._clear()

    def run(self, fail_at: int = 0, number: int = 0) -> int:
        return ended(start(self.stage, self.folder, fail_at, number))

    def error(self) -> str:
        file = self.folder.parent / "error"
        return file.read_text() if file.exists() else ""

    def kill(self, chance: random.Random) -> None:
        """Start the stage, and kill it after a random time, unless it has ended by then."""
        pid = start(self.stage, self.folder)
        time.sleep(chance.uniform(0.0, 0.9 * self.seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        assert code in (DONE, -signal.SIGKILL), f"{self.name}: {self.error()}"
        self.counts["kills" if code else "ended before the kill"] += 1
        if code == DONE:
            self.compare()

    def fail(self, chance: random.Random, number: int) -> None:
        """Run the stage on a disk that fails at a random write; then on one that works."""
        code = self.run(chance.randrange(1, 120), number)
        assert code in (DONE, REPORTED), f"{self.name} on {errno.errorcode[number]}: {self.error()}"
        self.counts[f"{errno.errorcode[number]}{'' if code else ' behind the last write'}"] += 1
        if code == DONE or chance.random() < 0.5:
            self.finish()

    def finish(self) -> None:
        """Let the stage end by itself, and compare its files."""
        assert self.run() == DONE, f"{self.name}: {self.error()}"
        self.compare()

    def compare(self) -> None:
        found = files(self.folder)
        names = found.keys() ^ self.wanted.keys() or {n for n in found if found[n] != self.wanted[n]}
        assert not names, f"{self.name} ended with other files than an undisturbed run: {', '.join(sorted(names))}"
        self.counts["equal ends"] += 1
        self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)


def disturb(victims: list[Victim], kills: int, failures: int, seconds: float) -> Iterator[str]:
    """Kill and fail in turn until the numbers or the time are reached. Yields a line now and then."""
    chance, end, told = random.Random(0), time.monotonic() + seconds, time.monotonic()

    def total(*names: str) -> int:
        return sum(v.counts[n] for v in victims for n in names)

    for turn in itertools.count():
        if time.monotonic() > end or (total("kills") >= kills and total("ENOSPC", "EROFS") >= failures):
            break
        for victim in victims:
            if turn % RARELY.get(victim.name, 1):
                continue
            if total("kills") < kills:
                victim.kill(chance)
            if total("ENOSPC", "EROFS") < failures:
                victim.fail(chance, chance.choice((errno.ENOSPC, errno.EROFS)))
        if time.monotonic() - told > 30.0:
            told = time.monotonic()
            yield f"{total('kills')} kills, {total('ENOSPC', 'EROFS')} failures, {total('equal ends')} equal ends"
    for victim in victims:
        victim.finish()


def with_library(work: Path) -> None:
    """Start this program again behind the library, unless it runs behind it already."""
    if "torture" not in os.environ.get("LD_PRELOAD", ""):
        source, library = work / "torture.c", work / "libtorture.so"
        source.write_text(LIBRARY)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def main() -> None:
    """Print the counts of each stage as JSON, or fail with the first difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--failures", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=1_800.0, help="Stop after this time, whatever is reached.")
    parser.add_argument("--stages", default="pack,teach,train,export")
    parser.add_argument("--work", type=Path, required=True, help="Folder for the temporary files.")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    with_library(work)
    stages = make_stages(work)
    names = options.stages.split(",")
    if "export" in names:
        stages["export"](work / "imports")  # the converters take seconds to import: here, and not in every child
    victims = [Victim(name, stages[name], work) for name in names]
    for line in disturb(victims, options.kills, options.failures, options.seconds):
        print(line, file=sys.stderr, flush=True)
    print(json.dumps({v.name: dict(sorted(v.counts.items())) for v in victims}))


if __name__ == "__main__":
    main()
