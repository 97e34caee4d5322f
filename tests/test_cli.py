"""The command line: one line and an exit code for every mistake, results on stdout, JSON."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import Call, refused
from safetensors.torch import load_file
from tiny_run import SMALL, make_pack, make_store, small_student, write_tones

from ced_edge.cli import COMMANDS, cli
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import folder_lock
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import save_model
from ced_edge.spec import ModelSpec
from distill.cli import read_clips
from distill.packing.shards import Pack
from distill.teaching.store import Store
from distill.training.log import read_log
from distill.training.loop import STATE_NAME


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty folder, one core and the small student."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with small_student():
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def store(packed: Pack, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"), packed)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CED of random weights."""
    path = tmp_path_factory.mktemp("teacher") / "ear.safetensors"
    torch.manual_seed(3)
    model = CED(SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    save_model(path, model, {})
    return path


# The group.


def test_help_lists_every_command_and_each_has_its_own(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in out
        assert text[:30] in out
    for name in COMMANDS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, (name, result.exception)
        assert f" {name} " in result.output


def test_version(call: Call) -> None:
    code, out, _ = call("--version")
    assert code == 0
    assert out.startswith("ced-edge, version ")


def test_usage_errors_exit_with_2(call: Call) -> None:
    refused(call("distil"), 2, "No such command 'distil'")
    refused(call("pack"), 2, "(ced-edge pack --help)")
    refused(call("pack"), 2, "Missing")
    refused(call("pack", "x", "--out", "y", "--rate", "much"), 2, "not a valid integer")
    assert call()[0] == 2


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_traceback_only_with_debug(call: Call, place: int) -> None:
    arguments = ["pack", "nowhere.csv", "--out", "p"]
    code, _, err = call(*arguments)
    assert (code, "Traceback" in err) == (2, False)
    code, _, err = call(*arguments[:place], "--debug", *arguments[place:])
    assert (code, "Traceback" in err) == (2, True)
    assert err.strip().splitlines()[-1].startswith("ced-edge: no such manifest or folder")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("two\nlines"), 2, "ced-edge: two lines"),
        (CedEdgeError("disk full"), 1, "ced-edge: disk full"),
        (ZeroDivisionError("by zero"), 1, "ced-edge: unexpected ZeroDivisionError: by zero (--debug shows where)"),
        (ValueError("a\nb\n\nc"), 1, "ced-edge: unexpected ValueError: a ... c (--debug shows where)"),
        (KeyError(), 1, "ced-edge: unexpected KeyError: KeyError (--debug shows where)"),
        (KeyboardInterrupt(), 130, "ced-edge: stopped"),
    ],
)
def test_every_exception_becomes_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("distill.cli.read_clips", fail)
    found, out, err = call("pack", "x", "--out", "y")
    assert (found, out, err.strip()) == (code, "", message)


def test_notices_of_our_own_packages_are_lines_on_stderr(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        for package, level in (
            ("ced_edge", "info"),
            ("distill", "warning"),
            ("export", "error"),
            ("ced_edge", "debug"),
        ):
            getattr(logging.getLogger(f"{package}.room.module"), level)("%s of %s", level, package)
        logging.getLogger("another_library").warning("not ours")
        # A progress bar replaces sys.stderr while it is drawn, and then puts the old one back.
        with contextlib.redirect_stderr(io.StringIO()) as above_the_bar:
            logging.getLogger("distill").info("above the bar")
        assert above_the_bar.getvalue() == "ced-edge: above the bar\n"
        raise CedEdgeError("and an error")

    monkeypatch.setattr("distill.cli.read_clips", fail)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own would hide that another library is silent
    code, out, err = call("pack", "x", "--out", "y")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "ced-edge: info of ced_edge",
        "ced-edge: warning: warning of distill",
        "ced-edge: error of export",
        "ced-edge: and an error",
    ]
    assert [h for name in ("", "ced_edge", "distill", "export") for h in logging.getLogger(name).handlers] == []


# Packing.


def test_pack_reports_its_result(call: Call, tmp_path: Path) -> None:
    write_tones(tmp_path / "audio", 5)
    (tmp_path / "audio" / "note.wav").write_text("this is no sound")
    code, out, err = call("pack", tmp_path / "audio", "--out", "p", "--json")
    assert code == 0
    assert json.loads(out) == {"clips": 5, "hours": pytest.approx(5 * 0.8 / 3600), "shards": 1, "rejected": 1}
    assert "rejected 1 clips" in err
    assert Pack.open("p").clips == 5
    assert os.listdir() == ["p"]  # no other file is written
    code, out, _ = call("pack", tmp_path / "audio", "--out", "p")
    assert (code, out) == (0, "p: 5 clips, 0.00 hours\n")
    refused(call("pack", tmp_path / "audio", "--out", "q", "--strict"), 1, "rejected 1 clips", "rejected.csv")


def test_bad_manifests_and_flags(call: Call, tmp_path: Path) -> None:
    write_tones(tmp_path, 2)

    def manifest(text: str) -> Path:
        (tmp_path / "m.csv").write_text(text)
        return tmp_path / "m.csv"

    for text, message in (
        ("file,labels\n000.wav,1\n", "filename"),
        ("filename\n000.wav\n000.wav\n", "000.wav"),
        ("filename\n", "m.csv"),
    ):
        refused(call("pack", manifest(text), "--out", "p"), 2, message)
    for label in ("527", "Nonsense"):  # `pack` needs no labels, and counts the unknown ones
        table = manifest(f"filename,labels\n000.wav,{label}\n")
        refused(call("evaluate", tmp_path, "--data", table, "--out", "p"), 2, label)
    refused(call("pack", tmp_path / "nowhere", "--out", "p"), 2, "no such manifest", "nowhere")
    good = manifest("filename\n000.wav\n")
    refused(call("pack", good, "--out", "p", "--rate", 0), 2, "'--rate': 0 is not in the range 1000<=x<=1000000")
    refused(call("pack", good, "--out", "p", "--workers", 0), 2, "'--workers': 0 is not in the range x>=1")
    refused(call("pack", good, "--out", "p", "--segment", 0.05), 2, "min_s and segment_s")
    refused(call("pack", good, "--out", "p", "--split", "train"), 2, "split")
    assert os.listdir() == []  # nothing half-written
    (tmp_path / "000.wav").write_bytes(b"")
    refused(call("pack", good, "--out", "p"), 2, "none of the clips can be used")


def test_clips_of_one_name_in_two_manifests_get_different_ids(tmp_path: Path) -> None:
    one, two = (write_tones(tmp_path / name, 2).rename(tmp_path / name / f"{name}.csv") for name in ("one", "two"))
    names = ["one/000.wav", "one/001.wav", "two/000.wav", "two/001.wav"]
    assert [c.id for c in read_clips([one, two], None, None)] == names
    assert [c.id for c in read_clips([one], None, None)] == ["000.wav", "001.wav"]
    with pytest.raises(InputError, match="rename one of them"):
        read_clips([one, one], None, None)


# Teaching.


def test_teach_then_train_then_evaluate(call: Call, packed: Pack, teacher: Path, tmp_path: Path) -> None:
    code, out, err = call(
        "teach", "--pack", packed.location, "--out", "s", "--teacher", f"ear={teacher}", "--windows", "2x0.4", "-k", 7
    )
    store = Store.open(Path("s"))
    assert (code, out) == (0, f"s: 48 views, {store.bytes()} bytes\n")
    assert (store.k, store.recipe.windows, store.teachers[0]["name"]) == (7, ((2, 0.4),), "ear")
    flags = ["--steps", 4, "--batch", 4, "--workers", 0]
    wanted = ["train", "--pack", packed.location, "--store", "s", "--out", "r", *flags]
    code, out, err = call(*wanted)
    assert (code, out) == (0, "r/model.safetensors\n")
    assert "train: 4 of 4, loss" in err
    refused(call(*wanted), 2, "r holds a run already: add --resume")
    assert call(*wanted, "--resume")[:2] == (0, "r/model.safetensors\n")
    code, out, _ = call(*wanted, "--resume", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"weights": "r/model.safetensors", "steps": 4, "loss": read_log(Path("r"))[-1]["loss"]},
    )

    manifest = write_tones(tmp_path / "eval", 6)
    code, out, _ = call("evaluate", "r", "--data", manifest, "--json", "--out", "reference")
    assert code == 0
    found = json.loads(out)
    assert (found["clips"], found["classes_present"], len(found["per_class_ap"])) == (6, 4, 4)
    assert sorted(os.listdir("reference")) == ["reference.json", "reference.npz"]
    code, out, _ = call("evaluate", "r", "--data", manifest)
    assert code == 0
    assert f"mean_ap: {found['mean_ap']:.4f}" in out


def test_evaluate_teachers_and_their_ensemble(call: Call, teacher: Path, tmp_path: Path) -> None:
    """All rows equal the evaluation of the checkpoint: both teachers are that model, and the ensemble is their mean."""
    manifest = write_tones(tmp_path / "eval", 6)
    both = ["--teacher", f"ear={teacher}", "--teacher", f"twin={teacher}"]
    alone = json.loads(call("evaluate", teacher, "--data", manifest, "--json")[1])
    code, out, _ = call("evaluate", *both, "--data", manifest, "--json")
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["ear", "twin", "ensemble"]
    for row in found.values():
        assert row["per_class_ap"] == pytest.approx(alone["per_class_ap"])
        assert (row["mean_ap"], row["data_hash"]) == (pytest.approx(alone["mean_ap"]), alone["data_hash"])
    code, out, _ = call("evaluate", teacher, *both[:2], "--data", manifest, "--out", "reference", "--json")
    assert (code, list(json.loads(out))) == (0, ["ear", "ensemble", "student"])
    assert sorted(os.listdir("reference")) == ["reference.json", "reference.npz"]
    code, out, _ = call("evaluate", teacher, *both, "--data", manifest)
    assert code == 0
    assert sorted(("top-1 by group", "ear", "twin", "ensemble", "student"), key=out.index)[1:] == [
        "ear", "twin", "ensemble", "student",
    ]  # fmt: skip
    assert out.count(f"{alone['mean_ap']:.4f}") == 4


def test_labels_as_the_teacher(call: Call, packed: Pack, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["teach", "--pack", packed.location, "--out", "s", "--labels"]
    refused(call(*wanted, "--teacher", f"ear={teacher}"), 2, "--labels are the only teacher")
    code, out, _ = call(*wanted, "--json")
    store = Store.open(Path("s"))
    assert store.clean
    assert (code, json.loads(out)) == (0, {"store": "s", "views": 24, "bytes": store.bytes(), "processes": 1})
    # Under torchrun one process prints, and it cannot know what the others still write.
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, result in ((0, {"store": "s", "views": 24, "bytes": None, "processes": 2}), (1, None)):
        monkeypatch.setenv("RANK", str(rank))
        code, out, err = call(*wanted, "--json")
        assert (code, json.loads(out or "null"), err) == (0, result, f"ced-edge: s: process {rank} of 2 has finished\n")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    train = ["train", "--pack", packed.location, "--store", "s", "--out", "r", "--steps", 3, "--batch", 4]
    assert call(*train, "--windows", "1x0.4", "--view-seed", 3)[0] == 0
    views = torch.load(f"r/{STATE_NAME}", weights_only=True)["recipe"]["views"]
    assert (views["windows"], views["seed"]) == (((1, 0.4),), 3)


def test_bad_teachers(call: Call, packed: Pack, tmp_path: Path, teacher: Path) -> None:
    def teach(*flags: object) -> tuple[int, str, str]:
        return call("teach", "--pack", packed.location, "--out", "s", *flags)

    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "half.safetensors").write_bytes(teacher.read_bytes()[:5_000])
    refused(teach(), 2, "no teacher")
    refused(teach("--teacher", "t=nowhere.pt"), 2, "nowhere.pt")
    refused(teach("--teacher", f"t={tmp_path / 'other.pt'}"), 2, "other.pt", "neither a CED nor")
    refused(teach("--teacher", f"t={tmp_path / 'text.pt'}"), 2, "text.pt")
    refused(teach("--teacher", f"t={tmp_path / 'half.safetensors'}"), 2, "half.safetensors")
    refused(teach("--teacher", f"t={teacher}", "--teacher", f"t={teacher}"), 2, "t")
    refused(teach("--teacher", f"t={teacher}", "-k", 0), 2, "'-k': 0 is not in the range 1<=x<=527")
    refused(teach("--teacher", f"t={teacher}", "--windows", "2"), 2, "EPOCHSxSECONDS")
    refused(call("teach", "--pack", "nowhere", "--out", "s", "--teacher", f"t={teacher}"), 2, "nowhere/index.json")
    assert not list(Path().glob("s/e*"))
    assert teach("--teacher", f"t={teacher}", "--windows", "1x0.4")[0] == 0
    refused(teach("--teacher", f"t={teacher}", "--windows", "1x0.4", "-k", 5), 2, "another k")


def test_teachers_are_listed(call: Call) -> None:
    code, out, _ = call("teachers", "--json")
    assert code == 0
    rows = json.loads(out)
    assert rows
    assert all(row["name"] and row["licence"] for row in rows)
    code, out, _ = call("teachers")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == [row["name"] for row in rows]
    refused(call("teachers", "--fetch", "nobody"), 2, "nobody")


# Training.


def test_bad_training_input(call: Call, packed: Pack, store: Store, tmp_path: Path) -> None:
    def train(*flags: object, out: str = "r") -> tuple[int, str, str]:
        return call("train", "--pack", packed.location, "--store", store.path, "--out", out, "--batch", 4, *flags)

    refused(train("--size", "huge", "--lr", 0), 2, "--size must be one of tiny", "--lr must be above 0")
    refused(train("--windows", "1x2"), 2, "has views of its own")
    refused(train("--view-seed", 1), 2, "has views of its own")
    refused(train("--config", "nowhere.toml"), 2, "no such file: nowhere.toml")
    refused(train("--batch", 25), 2, "a batch of 25 is more than the 24 clips")
    refused(train("--workers", 9), 2, "a batch of 4 is more than the 2 clips of each reader")
    refused(call("train", "--pack", packed.location, "--store", "nowhere", "--out", "r"), 2, "no store at nowhere")
    refused(call("train", "--pack", "nowhere", "--store", store.path, "--out", "r"), 2, "nowhere")
    save_model(tmp_path / "wide.safetensors", CED(ModelSpec(width=96, heads=3, depth=1)), {})
    refused(train("--init", tmp_path / "wide.safetensors"), 2, "--init", "is a 96x1, --size is tiny")
    refused(train("--init", "nowhere.pt"), 2, "no such checkpoint: nowhere.pt")
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "wide.safetensors").read_bytes()[:1_000])
    refused(train("--init", tmp_path / "broken.safetensors"), 2, "broken.safetensors")
    Path("file").write_text("")
    refused(train(out="file/r"), 2, "cannot write into file/r")
    assert not list(Path().glob("r/[!.]*"))


def test_init_starts_from_weights(call: Call, packed: Pack, store: Store, teacher: Path) -> None:
    flags = ["--steps", 2, "--batch", 4, "--workers", 0, "--lr", 1e-9, "--weight-decay", 0, "--ema", 0]
    wanted = ["train", "--pack", packed.location, "--store", store.path, "--out", "r", "--init", teacher, *flags]
    assert call(*wanted)[0] == 0
    start, end = load_file(teacher), load_file("r/model.safetensors")
    for key, value in end.items():
        if value.is_floating_point() and "running" not in key:
            torch.testing.assert_close(value, start[key], rtol=0, atol=1e-6)
    assert end["init_bn.1.num_batches_tracked"] == 2  # it did train


def test_a_second_run_in_the_same_folder_is_refused(call: Call, packed: Pack, store: Store, teacher: Path) -> None:
    train = ["train", "--pack", packed.location, "--store", store.path, "--out", "r", "--steps", 2, "--batch", 4]
    teach = ["teach", "--pack", packed.location, "--out", "r", "--teacher", f"t={teacher}", "--windows", "1x0.4"]
    distill = ["distill", "--data", Path(packed.location).parent / "audio", "--teacher", f"t={teacher}", "--runs", "."]
    with folder_lock(Path("r")):
        for wanted in (train, teach, [*distill, "--name", "r"]):
            refused(call(*wanted), 2, "another run is at work in r")
    assert call(*train)[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(call: Call, packed: Pack, store: Store, teacher: Path, tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "audio", 4)
    message = "--device cuda: torch finds"
    wanted = ["--device", "cuda", "--out", "r", "--pack", packed.location]
    refused(call("train", *wanted, "--store", store.path), 2, message)
    refused(call("teach", *wanted, "--teacher", f"t={teacher}"), 2, message)
    refused(call("evaluate", teacher, "--data", manifest, "--device", "cuda"), 2, message)
    refused(call("distill", "--data", manifest, "--teacher", f"t={teacher}", "--device", "cuda"), 2, message)
    refused(call("evaluate", teacher, "--data", manifest, "--device", "abacus"), 2, "unknown device 'abacus'")
    assert not list(Path().glob("**/*.parquet"))
    assert not Path("runs").exists()


# Evaluating.


def test_bad_evaluation_input(call: Call, teacher: Path, tmp_path: Path) -> None:
    manifest = write_tones(tmp_path / "audio", 4)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "half.safetensors").write_bytes(teacher.read_bytes()[:5_000])
    for name in ("broken.pt", "half.safetensors"):
        refused(call("evaluate", tmp_path / name, "--data", manifest), 2, name, "not a readable checkpoint")
    refused(call("evaluate", "nowhere.pt", "--data", manifest), 2, "nowhere.pt")
    refused(call("evaluate", tmp_path, "--data", manifest), 2, "no checkpoint in the folder")
    refused(call("evaluate", teacher, "--data", manifest, "--dtype", "fp8"), 2, "'fp8' is not one of 'fp32', 'bf16'")
    refused(call("evaluate", teacher, "--data", tmp_path / "audio"), 2, "no clip has labels")
    refused(call("evaluate", teacher, "--data", manifest, "--batch", 0), 2, "--batch")
    refused(call("evaluate", "--data", manifest), 2, "give a CHECKPOINT")
    refused(call("evaluate", "--data", manifest, "--teacher", f"t={teacher}", "--out", "r"), 2, "give a CHECKPOINT")
    refused(call("evaluate", "--data", manifest, "--teacher", f"student={teacher}"), 2, "cannot be named student")
    assert os.listdir() == []
