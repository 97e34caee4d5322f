"""A store is the same to the byte however it was written: by one process or many, in one go or killed many times."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_teach import RECIPE, files, job_for, make_pack, make_teacher

import distill.teaching.teach
from distill.packing.shards import Pack
from distill.processes import in_order
from distill.teachers.spec import TeacherSpec
from distill.teaching.teach import Job, teach

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherSpec:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def by_one(packed: Pack, teacher: TeacherSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store that one process wrote in one go."""
    job = job_for(packed, teacher, tmp_path_factory.mktemp("one"))
    teach(job)
    return files(job.store.path)


TEACH = """
import pickle, sys
from distill.teaching.teach import teach

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as f:
        teach(pickle.load(f), workers=int(sys.argv[2]))
"""

KILL = """
import os, pickle, random, signal, sys, time
import torch
import pyarrow.parquet  # all that is imported once need not be imported by every child
from distill.teaching.teach import teach

with open(sys.argv[1], "rb") as f:
    job = pickle.load(f)
attempts, chance = int(sys.argv[2]), random.Random(0)
torch.set_num_threads(1)


def child(die_at=0):
    # Dies at the given call of a Python or C function, counted from the start; says how many there were.
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid:
        return pid
    sys.setprofile(count)
    teach(job)
    sys.setprofile(None)
    (job.store.path.parent / "calls").write_text(str(calls))
    os._exit(0)


def finished(pid):
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    if status == 0:
        os.rename(job.store.path, f"{job.store.path}-{sum(counts)}")
    return status == 0


counts, start = [0, 0], time.monotonic()
assert finished(child())
seconds, calls = time.monotonic() - start, int((job.store.path.parent / "calls").read_text())
for i in range(attempts):
    if i % 2:
        pid = child()
        time.sleep(chance.uniform(0.0, seconds / 2))
        os.kill(pid, signal.SIGKILL)
    else:
        pid = child(chance.randrange(1, calls // 2))
    counts[finished(pid)] += 1
assert finished(child())
print(*counts)
"""


def run_script(folder: Path, code: str, job: Job, *args: object, launcher: tuple[str, ...] = ()) -> str:
    """What a child Python, or what `launcher` starts it with, prints."""
    done = subprocess.run(command(folder, code, job, *args, launcher=launcher), **CHILD, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def command(folder: Path, code: str, job: Job, *args: object, launcher: tuple[str, ...] = ()) -> list[str]:
    script, pickled = folder / "script.py", folder / "job.pickle"
    script.write_text(code)
    pickled.write_bytes(pickle.dumps(job))
    return [sys.executable, *launcher, str(script), str(pickled), *map(str, args)]


CHILD: dict[str, Any] = {
    "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_one_process(packed: Pack, by_one: dict[str, bytes]) -> None:
    shards = [f"e{epoch:03d}/{shard.name}.parquet" for epoch in range(RECIPE.epochs) for shard in packed.shards]
    assert sorted(by_one) == sorted([*shards, "store.json"])


def test_several_workers(
    packed: Pack, teacher: TeacherSpec, by_one: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, counts, sizes = job_for(packed, teacher, tmp_path / "store"), [], []

    def watched(pool: Any, function: Any, items: Any, ahead: int) -> Any:
        sizes.extend(len(pickle.dumps((function, item))) for item in items)
        return in_order(pool, function, items, ahead)

    monkeypatch.setattr(distill.teaching.teach, "in_order", watched)
    teach(job, workers=2, progress=counts.append)
    assert files(job.store.path) == by_one
    assert counts == [6] * 4 * RECIPE.epochs
    # A unit names its shard. The whole index goes to each process once.
    assert max(sizes) < 300 < len(pickle.dumps(job)) / 3


def test_torchrun(packed: Pack, teacher: TeacherSpec, by_one: dict[str, bytes], tmp_path: Path) -> None:
    job = job_for(packed, teacher, tmp_path / "store")
    run_script(tmp_path, TEACH, job, 1, launcher=TORCHRUN)
    assert files(job.store.path) == by_one


@pytest.mark.parametrize("attempts", [24, pytest.param(400, marks=pytest.mark.slow)])
def test_killed_and_resumed(
    packed: Pack, teacher: TeacherSpec, by_one: dict[str, bytes], tmp_path: Path, attempts: int
) -> None:
    """SIGKILL at random calls and at random times; every time it goes on until it is done, and then from the start."""
    job = job_for(packed, teacher, tmp_path / "store")
    killed, finished = map(int, run_script(tmp_path, KILL, job, attempts).split())
    assert killed + finished == attempts
    assert killed > attempts / 2
    stores = sorted(tmp_path.glob("store-*"))
    assert len(stores) == finished + 2
    assert all(files(store) == by_one for store in stores)


@pytest.mark.slow
def test_killed_with_workers(packed: Pack, teacher: TeacherSpec, by_one: dict[str, bytes], tmp_path: Path) -> None:
    job, chance = job_for(packed, teacher, tmp_path / "store"), random.Random(0)
    for _ in range(6):
        parent = subprocess.Popen(command(tmp_path, TEACH, job, 2), **CHILD)
        wanted = len(list(tmp_path.rglob("*.parquet"))) + 1
        while parent.poll() is None and len(list(tmp_path.rglob("*.parquet"))) < wanted:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.05))
        parent.kill()
        parent.communicate()  # returns when the workers, too, have let go of stderr
    run_script(tmp_path, TEACH, job, 2)
    assert files(job.store.path) == by_one


@pytest.mark.slow
def test_ctrl_c_ends_workers_at_once(
    packed: Pack, teacher: TeacherSpec, by_one: dict[str, bytes], tmp_path: Path
) -> None:
    slow = TEACH.replace("import pickle", "import time, distill.teaching.teach\nimport pickle").replace(
        "if __name__", "distill.teaching.teach.TeachWorker.predict = lambda *_: time.sleep(60)\n\nif __name__"
    )
    job = job_for(packed, teacher, tmp_path / "store")
    parent = subprocess.Popen(command(tmp_path, slow, job, 2), start_new_session=True, **CHILD)
    while not (job.store.path / "store.json").exists():
        time.sleep(0.05)
    time.sleep(15)  # the workers are at work by now
    os.killpg(parent.pid, signal.SIGINT)
    assert "KeyboardInterrupt" in parent.communicate(timeout=20)[1]
    teach(job)
    assert files(job.store.path) == by_one


@pytest.mark.slow
def test_worker_that_dies_is_an_error(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    """As the kernel does when memory runs out: teaching must not wait for it forever."""
    dying = TEACH.replace(
        "if __name__",
        "import os, distill.teaching.teach\ndistill.teaching.teach.TeachWorker.predict = lambda *_: os._exit(9)\n"
        "if __name__",
    )
    dying = dying.replace("        teach(", "        try: teach(").replace(
        "[2]))", "[2]))\n        except Exception as e: print(type(e).__name__, e)"
    )
    job = job_for(packed, teacher, tmp_path / "store")
    assert run_script(tmp_path, dying, job, 2).startswith("CedEdgeError a worker process died")


def test_a_store_may_grow(packed: Pack, teacher: TeacherSpec, by_one: dict[str, bytes], tmp_path: Path) -> None:
    short = job_for(packed, teacher, tmp_path, recipe=dataclasses.replace(RECIPE, windows=((1, 0.5),)))
    teach(short)
    teach(job_for(packed, teacher, tmp_path))
    assert files(tmp_path) == by_one
    teach(short)
    assert files(tmp_path) == by_one
