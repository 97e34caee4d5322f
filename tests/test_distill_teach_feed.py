"""Teaching on a GPU, without one: processes render ahead of the process that holds the teachers."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_teach import RECIPE, files, job_for, make_pack, make_teacher
from torch import Tensor

from ced_edge.errors import CedEdgeError, InputError
from distill.packing.shards import Pack, read_shard
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teachers
from distill.teachers.spec import TeacherSpec
from distill.teaching import rendering
from distill.teaching.rendering import Renderer, Renderings
from distill.teaching.teach import Job, TeachWorker, teach, teach_from_feed, units


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherSpec:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def in_line(packed: Pack, teacher: TeacherSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store whose views were rendered in line, by the process of the teachers."""
    job = job_for(packed, teacher, tmp_path_factory.mktemp("one"))
    teach(job)
    return files(job.store.path)


class Slowed(Ensemble):
    """Teachers that call `first` before each prediction."""

    def __init__(self, teacher: TeacherSpec, rate_hz: int, first: Callable[[], None]) -> None:
        super().__init__(load_teachers([teacher]), rate_hz)
        self.first = first

    def __call__(self, wave: Tensor) -> Tensor:
        self.first()
        return super().__call__(wave)


def feed_into(job: Job, renderers: int, ensemble: Ensemble | None = None) -> list[int]:
    """Teach as on a GPU, and return the numbers of views in the order in which they were reported."""
    job.store.create()
    counts: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        teach_from_feed(TeachWorker(job, ensemble), units(job), renderers, counts.append)
    finally:
        torch.set_num_threads(before)
    return counts


@pytest.mark.parametrize("renderers", [0, 1, 3, 5])
def test_the_bytes_do_not_depend_on_the_renderers(
    packed: Pack, teacher: TeacherSpec, in_line: dict[str, bytes], tmp_path: Path, renderers: int
) -> None:
    """With 5 renderers and 4 shards, the epochs of a shard are rendered by different processes."""
    job = job_for(packed, teacher, tmp_path)
    assert feed_into(job, renderers) == [6] * 4 * RECIPE.epochs
    assert files(tmp_path) == in_line


def test_whole_clips_too(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    teach(job_for(packed, teacher, tmp_path / "in-line", clean=True))
    feed_into(job_for(packed, teacher, tmp_path / "fed", clean=True), 2)
    assert files(tmp_path / "fed") == files(tmp_path / "in-line")


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_unit_is_rendered_by_one_process(
    packed: Pack, monkeypatch: pytest.MonkeyPatch, shards: int, workers: int
) -> None:
    todo = [(shard, epoch) for shard in packed.shards[:shards] for epoch in range(RECIPE.epochs)]
    done = []
    for number in range(workers):
        info = type("Info", (), {"id": number, "num_workers": workers})
        monkeypatch.setattr(rendering, "get_worker_info", lambda info=info: info)
        monkeypatch.setattr(Renderer, "batches", lambda self, loaded, epoch: iter([(loaded.shard, epoch)]))
        done.append(list(Renderings(Renderer(packed, RECIPE, 1.0), todo)))
    assert sorted((s.name, e) for part in done for s, e in part) == sorted((s.name, e) for s, e in todo)
    # No process is without work while another one has two shards.
    assert max(map(len, done)) <= -(-len(todo) // min(workers, len(todo))) + RECIPE.epochs - 1


def test_a_batch_has_the_seconds_that_it_should(packed: Pack) -> None:
    renderers = [Renderer(packed, RECIPE, seconds) for seconds in (0.1, 1.0, 9.0)]
    batches = [list(renderer.batches(renderer.load(packed.shards[0]), 0)) for renderer in renderers]
    assert [[len(views.ids) for views in some] for some in batches] == [[1] * 6, [2] * 3, [6]]
    ids = [name for views in batches[1] for name in views.ids]
    assert ids == [clip.id for clip in read_shard(packed, packed.shards[0])]


def test_a_damaged_shard_ends_the_teaching(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    name = packed.shards[0].name
    (tmp_path / name).write_bytes(b"")
    broken = dataclasses.replace(packed, location=str(tmp_path), shards=packed.shards[:1])
    with pytest.raises(InputError, match=rf"{tmp_path}/{name} is damaged") as e:
        feed_into(job_for(broken, teacher, tmp_path / "store"), 1)
    assert "\n" not in str(e.value)
    assert list(files(tmp_path / "store")) == ["store.json"]


def test_nan_ends_the_teaching(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    class Broken(Slowed):
        def __call__(self, wave: Tensor) -> Tensor:
            return super().__call__(wave) * np.nan

    broken = Broken(teacher, packed.rate_hz, lambda: None)
    clip = read_shard(packed, packed.shards[0])[0].id
    with pytest.raises(CedEdgeError, match=f"NaN for clip {clip} of {packed.shards[0].name}"):
        feed_into(job_for(packed, teacher, tmp_path), 1, broken)
    assert list(files(tmp_path)) == ["store.json"]


def test_a_renderer_that_dies_is_reported_and_the_next_run_goes_on(
    packed: Pack, teacher: TeacherSpec, in_line: dict[str, bytes], tmp_path: Path
) -> None:
    job, calls = job_for(packed, teacher, tmp_path), []

    def kill_in_the_middle() -> None:
        calls.append(0)
        if len(calls) == 4:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            for child in children[-2:]:
                os.kill(int(child), signal.SIGKILL)

    with pytest.raises(CedEdgeError, match=r"a process that renders views died.*use fewer --workers, and run again"):
        feed_into(job, 2, Slowed(teacher, packed.rate_hz, kill_in_the_middle))
    left = files(tmp_path)
    assert "store.json" in left
    assert left.items() < in_line.items()
    feed_into(job, 2)
    assert files(tmp_path) == in_line


def test_too_little_memory_is_one_line(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(CedEdgeError, match="the teachers need more memory than the GPU has: use a larger GPU") as e:
        feed_into(job_for(packed, teacher, tmp_path), 0, Slowed(teacher, packed.rate_hz, full))
    assert "\n" not in str(e.value)
