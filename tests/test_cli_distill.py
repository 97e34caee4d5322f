"""`ced-edge distill` end to end with a small random teacher: new, called twice, and interrupted in every stage."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Call
from tiny_run import SMALL, learnt, small_student, write_tones

from ced_edge.cli import main
from ced_edge.files import sha256_file
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model, save_model
from ced_edge.proof.reference import read_reference
from distill import pipeline
from distill.evaluation import comparison
from distill.packing.shards import Pack
from distill.pipeline import TIMES_NAME
from distill.progress import ProgressBar
from distill.teachers import load
from distill.teachers.base import Teacher
from distill.teachers.spec import TeacherSpec
from distill.teaching import teach
from distill.teaching.store import Store


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One core and the small student."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with small_student():
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The main job on 13 tones without labels and one broken file, as arguments without --runs."""
    folder = tmp_path_factory.mktemp("job")
    write_tones(folder / "train", 13).unlink()
    (folder / "train" / "broken.wav").write_text("no sound")
    torch.manual_seed(3)
    model = CED(SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    save_model(folder / "ear.safetensors", model, {})
    save_model(folder / "nose.safetensors", CED(SMALL), {})
    flags = [
        "--windows",
        "2x0.4",
        "--steps",
        10,
        "--batch",
        4,
        "--workers",
        0,
        "--clips-per-shard",
        5,
        "--log-every",
        1,
    ]
    return [
        "distill", "--data", folder / "train", "--eval-data", write_tones(folder / "eval", 8), "--name", "x",
        "--teacher", f"ear={folder / 'ear.safetensors'}", "--teacher", f"nose={folder / 'nose.safetensors'}", *flags,
    ]  # fmt: skip


REWRITTEN = {"times.json", "summary.json", "evaluation.json", "loss.png", "per_class_ap.png", ".lock"}
"""Files that a second call may write again, because they cost no time."""


def results(run: Path) -> dict[str, bytes]:
    """The files of a run, without those that contain times."""
    names = [p for p in run.rglob("*") if p.is_file() and not {"tensorboard", ".lock"} & set(p.parts)]
    # The state holds the same numbers in another order.
    unlike = {"times.json", "summary.json", "log.csv", "state.pt"}
    return {str(p.relative_to(run)): p.read_bytes() for p in names if p.name not in unlike}


@pytest.fixture(scope="module")
def whole(job: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the main job from start to end."""
    runs = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, small_student():
        patch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
        patch.setattr(sys, "argv", ["ced-edge", *map(str, job), "--runs", str(runs)])
        main()
    return runs / "x"


def test_the_main_job_leaves_all_its_results(whole: Path) -> None:
    pack, store = Pack.open(whole / "pack"), Store.open(whole / "store")
    assert (pack.clips, pack.rejected, len(pack.shards)) == (13, 1, 3)
    assert [t["name"] for t in store.teachers] == ["ear", "nose"]
    assert load_model(whole).spec == SMALL
    assert [row["step"] for row in learnt(whole)] == list(range(1, 11))
    models = json.loads((whole / "evaluation.json").read_text())
    assert list(models) == ["ear", "ensemble", "nose", "student"]
    reference = read_reference(whole)
    assert reference.weights_hash == sha256_file(whole / "model.safetensors")
    assert reference.metrics["mean_ap"] == models["student"]["mean_ap"]
    assert len(reference.ids) == 8
    for name in ("loss.png", "per_class_ap.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["views"] == 26
    assert summary["bytes_per_view"] == store.bytes() / 26
    assert summary["hours"] == pytest.approx(13 * 0.8 / 3600)
    assert set(summary["stage_seconds"]) == {"pack", "teach", "train", "evaluate"}
    assert [p.name for p in whole.rglob("*") if p.name.endswith(".tmp")] == []


def test_a_second_call_does_no_work_again(
    call: Call, job: list[object], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name not in REWRITTEN}

    def work(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(teach.TeachWorker, "predict", work)
    monkeypatch.setattr(comparison, "evaluate", work)
    monkeypatch.setattr(comparison, "evaluate_together", work)
    monkeypatch.setattr(CED, "forward", work)
    code, out, err = call(*job, "--runs", whole.parent, "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads((whole / "summary.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in before} == before
    code, out, _ = call(*job, "--runs", whole.parent)
    assert code == 0
    parts = ("ear", "nose", "ensemble", "student", "of the ensemble's mAP", "13 clips", "bytes", "wall time: pack")
    assert sorted(parts, key=out.index) == list(parts)


def test_teachers_and_the_student_are_loaded_once(
    call: Call, job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first check, teaching and evaluation share the teachers. The trained student is another file."""
    loaded: list[str] = []
    load_teacher, load_model = load.load_teacher, pipeline.load_model

    def teacher(source: TeacherSpec, device: str = "cpu") -> Teacher:
        loaded.append(source.name)
        return load_teacher(source, device=device)

    def student(source: str | Path) -> CED:
        loaded.append(Path(source).name)
        return load_model(source)

    monkeypatch.setattr(load, "load_teacher", teacher)
    monkeypatch.setattr(pipeline, "load_model", student)
    monkeypatch.setattr(comparison, "load_model", student)
    init = Path(str(job[2])).parent / "nose.safetensors"
    code, _, err = call(*job, "--runs", tmp_path, "--init", init)
    assert code == 0, err
    assert sorted(loaded) == ["ear", "model.safetensors", "nose", "nose.safetensors"]


def test_a_reference_that_is_lost_is_written_again(call: Call, job: list[object], whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "runs" / whole.name))
    before = (run / "reference.json").read_bytes()
    (run / "reference.json").unlink()
    code, _, err = call(*job, "--runs", run.parent)
    assert code == 0, err
    assert (run / "reference.json").read_bytes() == before


@pytest.mark.parametrize("where", ["pack", "teach", "train", "evaluate teachers", "evaluate student"])
def test_interrupted_in_any_stage_it_goes_on(
    call: Call, job: list[object], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real = pipeline.stage

    @contextlib.contextmanager
    def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Ctrl-C in the middle of the stage `where`: at its second report of progress, or at its only one."""
        with real(name, total) as progress:
            signs: list[int] = []

            def report(n: int) -> None:
                progress(n)
                signs.append(n)
                if name == where and len(signs) == (1 if where.startswith("evaluate") else 2):
                    raise KeyboardInterrupt

            yield report

    def update(self: ProgressBar, step: int, steps: int, text: str = "") -> None:
        if self.name == where == "train" and step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "stage", stage)
        patch.setattr(comparison, "stage", stage)
        patch.setattr(ProgressBar, "update", update)
        code, out, err = call(*job, "--runs", tmp_path)
    assert (code, out) == (130, ""), err
    assert "Traceback" not in err
    assert [p.name for p in (tmp_path / "x").rglob("*") if p.name.endswith(".tmp")] == []
    code, _, err = call(*job, "--runs", tmp_path)
    assert code == 0, err
    assert results(tmp_path / "x") == results(whole)
    assert learnt(tmp_path / "x") == learnt(whole)
    assert where.split()[0] in json.loads((tmp_path / "x" / TIMES_NAME).read_text())


def test_wrong_input_is_refused_before_any_work(
    call: Call, job: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    folder = Path(str(job[2]))

    def refused(message: str, *flags: object, code: int = 2) -> None:
        found, out, err = call(*job, "--runs", tmp_path / "runs", *flags)
        assert (found, out) == (code, ""), err
        last = err.strip().splitlines()[-1]
        assert last.startswith("ced-edge: ")
        assert message in last
        assert not (tmp_path / "runs").exists()

    refused("neither a CED nor", "--teacher", f"t={tmp_path / 'other.pt'}")
    refused("a teacher cannot be named student", "--teacher", f"student={folder.parent / 'ear.safetensors'}")
    refused("views of 11 s do not fit", "--windows", "1x11")
    refused("no such checkpoint", "--init", "nowhere.pt")
    refused("--size must be one of", "--size", "huge")
    refused("unknown device", "--device", "abacus")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("distill is for one process")
    monkeypatch.delenv("WORLD_SIZE")
    at = job.index("--eval-data")
    job = [*job[:at], "--eval-data", folder, *job[at + 2 :]]
    refused("no clip to evaluate on has labels")


def test_a_batch_larger_than_the_pack_is_refused_before_teaching(call: Call, job: list[object], tmp_path: Path) -> None:
    code, _, err = call(*job, "--runs", tmp_path, "--batch", 14)
    assert code == 2
    assert "a batch of 14 is more than the 13 clips" in err
    assert not (tmp_path / "x" / "store").exists()


def test_other_flags_in_the_same_folder_are_refused_by_name(call: Call, job: list[object], whole: Path) -> None:
    for flags, message in (
        (["--lr", 1e-5], "was begun with other values of lr"),
        (["-k", 4], "is a store of another k"),
        (["--view-seed", 4], "is a store of another recipe"),
        (["--clips-per-shard", 6], "is a pack of another config (clips_per_shard 5, not 6)"),
    ):
        code, out, err = call(*job, "--runs", whole.parent, *flags)
        assert (code, out) == (2, "")
        assert message in err


def test_without_data_it_is_the_demo_and_flags_of_real_data_are_refused(call: Call, tmp_path: Path) -> None:
    code, _, err = call("distill", "--runs", tmp_path, "--init", "a.pt", "--split", "train", "--teacher", "t=x.pt")
    assert code == 2
    assert err == "ced-edge: --split, --teacher, --init need --data: give the audio to train on\n"


def test_without_evaluation_data_the_last_stage_is_left_out(call: Call, job: list[object], tmp_path: Path) -> None:
    at = job.index("--eval-data")
    job = [*job[:at], *job[at + 2 :]]
    code, out, _ = call(*job, "--runs", tmp_path, "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["models"] == {}
    assert "evaluate" not in summary["stage_seconds"]
    assert not (tmp_path / "x" / "reference.json").exists()
