"""Teaching: teacher and student get the same samples, ranks share the work, and a store of other data is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_teach import RATE_HZ, RECIPE, files, job_for, make_pack, make_teacher
from torch import Tensor

import distill.teaching.teach
from ced_edge.audio.clips import read_manifest
from ced_edge.errors import CedEdgeError, InputError
from distill.devices import local_device
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack, read_shard
from distill.pipeline import run_teach
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teacher, load_teachers
from distill.teachers.spec import TeacherSpec, parse_teachers
from distill.teaching.store import CLEAN_EPOCH, Store
from distill.teaching.teach import Job, teach, teach_labels, units
from distill.teaching.views import INT16_SCALE, ViewRecipe
from distill.training.batches import Batches, TrainingData

N = 527


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherSpec:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


# The same array


class Recorder:
    """A teacher that records its input, and whose prediction is a fingerprint of it."""

    name, rate_hz, sha256, min_samples, device = "recorder", RATE_HZ, "0" * 64, 1, torch.device("cpu")
    known = np.ones(N, np.bool_)

    def __init__(self) -> None:
        self.inputs: list[NDArray[np.float32]] = []

    def __call__(self, wave: Tensor) -> Tensor:
        self.inputs += [row.copy() for row in wave.numpy()]
        return torch.from_numpy(np.stack([fingerprint(row) for row in wave.numpy()]))


def fingerprint(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (527,) that hang on every bit of a wave; 8 bits hold them exactly."""
    rng = np.random.default_rng(list(hashlib.sha256(wave.tobytes()).digest()))
    p = np.zeros(N, np.float32)
    p[rng.choice(N, 8, replace=False)] = np.square(rng.integers(1, 256, 8).astype(np.float32) / np.float32(255.0))
    return p


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    one = Recorder()
    monkeypatch.setattr(distill.teaching.teach, "load_teachers", lambda specs, device: [one])
    return one


def job_of(packed: Pack, recorder: Recorder, folder: Path, **changes: Any) -> Job:
    described = Ensemble([recorder], packed.rate_hz).describe()
    store = dataclasses.replace(Store(folder, RECIPE, described, 20, packed.hash), **changes)
    return Job(packed, store, (TeacherSpec("recorder", "none"),))


def test_student_gets_the_samples_of_the_teacher(packed: Pack, recorder: Recorder, tmp_path: Path) -> None:
    """Bit for bit, for every clip and epoch; and its target is the prediction for these samples."""
    job = job_of(packed, recorder, tmp_path)
    teach(job)
    assert len(recorder.inputs) == packed.clips * RECIPE.epochs
    taught = {wave.tobytes() for wave in recorder.inputs}
    assert len(taught) == len(recorder.inputs)

    stream = TrainingData(packed, job.store, RECIPE, batch=4, rate_hz=RATE_HZ)
    trained: list[bytes] = []
    for batch in itertools.islice(Batches(stream), packed.clips * RECIPE.epochs // 4):
        for wave, target in zip(batch.wave.numpy(), batch.target.numpy(), strict=True):
            np.testing.assert_array_equal(target, fingerprint(wave))
            trained.append(wave.tobytes())
    assert sorted(trained) == sorted(taught)


def test_two_students_get_the_samples_of_the_teacher(packed: Pack, recorder: Recorder, tmp_path: Path) -> None:
    job = job_of(packed, recorder, tmp_path)
    teach(job)
    streams = [TrainingData(packed, job.store, RECIPE, 6, RATE_HZ, rank=r, world=2) for r in range(2)]
    batches = [b for s in streams for b in itertools.islice(Batches(s), packed.clips * RECIPE.epochs // 12)]
    assert sorted(w.tobytes() for b in batches for w in b.wave.numpy()) == sorted(w.tobytes() for w in recorder.inputs)


def test_the_clean_epoch_has_whole_clips(packed: Pack, recorder: Recorder, tmp_path: Path) -> None:
    job = job_of(packed, recorder, tmp_path, clean=True)
    teach(job)
    waves = [clip.wave * INT16_SCALE for shard in packed.shards for clip in read_shard(packed, shard)]
    assert [w.tobytes() for w in recorder.inputs] == [w.tobytes() for w in waves]
    first = packed.shards[0]
    dense, _ = job.store.read(CLEAN_EPOCH, first.name, first.clips).dense("zero")
    np.testing.assert_array_equal(dense, [fingerprint(w) for w in waves[: first.clips]])


def test_finished_files_are_not_predicted_again(packed: Pack, recorder: Recorder, tmp_path: Path) -> None:
    job = job_of(packed, recorder, tmp_path)
    counts: list[int] = []
    teach(job, progress=counts.append)
    n, before = len(recorder.inputs), files(tmp_path)
    assert sum(counts) == n == packed.clips * RECIPE.epochs
    teach(job, progress=counts.append)
    assert (len(recorder.inputs), sum(counts)) == (n, 2 * n)
    job.store.file(1, packed.shards[2].name).unlink()
    teach(job, progress=counts.append)
    assert (len(recorder.inputs), sum(counts)) == (n + 6, 3 * n)
    assert files(tmp_path) == before


def test_teachers_are_loaded_once_in_a_process(
    packed: Pack, teacher: TeacherSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def counted(spec: TeacherSpec, device: str) -> Any:
        loaded.append(spec.name)
        return load_teacher(spec, device=device)

    monkeypatch.setattr(distill.teachers.load, "load_teacher", counted)
    first = run_teach(packed, tmp_path / "a", [teacher], RECIPE, 20, "cpu", workers=1)
    assert loaded == ["narrow"]
    ensemble = Ensemble(load_teachers([teacher]), packed.rate_hz)
    loaded.clear()
    second = run_teach(packed, tmp_path / "b", [teacher], RECIPE, 20, "cpu", workers=1, ensemble=ensemble)
    assert loaded == []
    assert files(first.path) == files(second.path)


# The share of each rank


def test_ranks_share_the_shards(
    packed: Pack, teacher: TeacherSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard is one rank's alone, so that a machine fetches only its own."""
    job = job_for(packed, teacher, tmp_path)
    whole, parts = units(job), []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(units(job))
    assert sorted((s.name, e) for part in parts for s, e in part) == sorted((s.name, e) for s, e in whole)
    names = [{shard.name for shard, _ in part} for part in parts]
    assert sum(map(len, names)) == len(set().union(*names)) == len(packed.shards)


def test_each_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [local_device(d) for d in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(d) for d in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda:3", "cuda:1"]


def test_teaching_leaves_the_threads_as_they_were(packed: Pack, recorder: Recorder, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        teach(job_of(packed, recorder, tmp_path))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# Refusals


def test_another_pack_is_refused(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another pack"):
        teach(job_for(packed, teacher, tmp_path, pack="0" * 64))
    assert files(tmp_path) == {}


def test_another_recipe_is_refused(packed: Pack, recorder: Recorder, tmp_path: Path) -> None:
    job = job_of(packed, recorder, tmp_path)
    teach(job)
    before = files(tmp_path)
    for changes, named in (({"seed": 1}, "recipe"), ({"windows": ((3, 1.0),)}, "windows")):
        other = dataclasses.replace(job.store, recipe=dataclasses.replace(RECIPE, **changes))
        with pytest.raises(InputError, match=named):
            teach(dataclasses.replace(job, store=other))
    assert files(tmp_path) == before


def test_another_teacher_is_refused(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    """Whether the store's header says so or the file was exchanged in the meantime."""
    other = make_teacher(tmp_path, seed=1)
    job = job_for(packed, teacher, tmp_path / "store")
    job.store.create()
    changed = dataclasses.replace(job, teachers=(other,))
    with pytest.raises(InputError, match="store of other teachers than these narrow"):
        teach(changed)
    with pytest.raises(InputError, match="store of another teachers"):
        teach(job_for(packed, other, tmp_path / "store"))
    assert list(files(job.store.path)) == ["store.json"]


def test_nan_is_an_error(packed: Pack, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "__call__", lambda self, wave: torch.full((len(wave), N), torch.nan))
    job = job_of(packed, recorder, tmp_path)
    clip = read_shard(packed, packed.shards[0])[0].id
    with pytest.raises(CedEdgeError, match=f"NaN for clip {clip} of {packed.shards[0].name}"):
        teach(job)
    assert list(files(tmp_path)) == ["store.json"]


def test_damaged_shard_is_refused(packed: Pack, teacher: TeacherSpec, tmp_path: Path) -> None:
    name = packed.shards[0].name
    (tmp_path / name).write_bytes(b"")
    broken = dataclasses.replace(packed, location=str(tmp_path), shards=packed.shards[:1])
    with pytest.raises(InputError, match=rf"{tmp_path}/{name} is damaged"):
        teach(job_for(broken, teacher, tmp_path / "store"))
    assert list(files(tmp_path / "store")) == ["store.json"]


# Labels as a teacher


def labels_store(packed: Pack, folder: Path, k: int = 20) -> Store:
    described = [{"name": "labels", "sha256": packed.hash, "rate_hz": packed.rate_hz, "n_known": N}]
    return Store(folder, RECIPE, described, k, packed.hash, clean=True)


def test_labels_as_a_teacher(packed: Pack, tmp_path: Path) -> None:
    store = labels_store(packed, tmp_path)
    teach_labels(packed, store)
    before = files(tmp_path)
    teach_labels(packed, store)
    assert files(tmp_path) == before
    for shard in packed.shards:
        dense, _ = store.read(CLEAN_EPOCH, shard.name, shard.clips).dense("tail")
        for row, clip in zip(dense, read_shard(packed, shard), strict=True):
            assert np.flatnonzero(row).tolist() == list(clip.labels or ())
            assert row.max() == 1.0


def test_labels_that_are_missing_too_many_or_anothers(packed: Pack, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 2 labels: teaching takes 1 to 1"):
        teach_labels(packed, labels_store(packed, tmp_path / "many", k=1))
    other = dataclasses.replace(labels_store(packed, tmp_path / "other"), pack="0" * 64)
    with pytest.raises(InputError, match="another pack"):
        teach_labels(packed, other)


# Real audio, real teachers


@pytest.mark.slow
def test_bytes_per_view_of_real_predictions(shared: Path, tmp_path: Path) -> None:
    clips = read_manifest(shared / "audio" / "esc10.csv", split="train")
    packed = pack(clips, tmp_path / "pack", PackConfig(workers=1))
    folder = shared / "teachers"
    specs = parse_teachers([f"mn04={folder / 'mn04_as_mAP_432.pt'}", f"yamnet={folder / 'yamnet_spectra_in.tflite'}"])
    described = Ensemble(load_teachers(specs), packed.rate_hz).describe()
    store = Store(tmp_path / "store", ViewRecipe(windows=((2, 2.0),)), described, 20, packed.hash)
    teach(Job(packed, store, tuple(specs)))
    size = sum(len(content) for content in files(store.path).values())
    print(json.dumps({"clips": packed.clips, "bytes_per_view": size / (2 * packed.clips)}))
    assert size / (2 * packed.clips) <= 48
