"""The scripts of the student: whole sources are held out, trials are valid recipes, the best weights are kept."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny_run import SMALL, config, make_stream, small_student

from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model, read_metadata, save_model
from distill.evaluation.agreement import agreement
from distill.training.config import TrainConfig
from distill.training.train import train

RUNS = Path(__file__).resolve().parents[1] / "runs"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUNS))


def manifest(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_whole_sources_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from student_split import main

    packages = [f"package-{i}" for i in range(300)]
    manifest(
        tmp_path / "a/debian/pool.csv", [{"filename": f"{p}/{i}.flac", "package": p} for p in packages for i in (0, 1)]
    )
    manifest(tmp_path / "a/synth/pool.csv", [{"filename": "x.flac", "kind": "music"}])
    splits = [{"filename": f"{s}.wav", "split": s} for s in ("train", "dev", "test")]
    manifest(tmp_path / "a/shared/esc10.csv", splits)
    monkeypatch.setattr("sys.argv", ["student_split.py", str(tmp_path / "a"), str(tmp_path / "out")])
    main()
    parts = {name: read(tmp_path / f"out/{name}.csv") for name in ("train", "held")}
    sources = {name: {row["source"] for row in rows} for name, rows in parts.items()}
    assert sources["train"] & sources["held"] == set()
    assert 10 < len(sources["held"]) < 50  # a share of 1 in 11, of 300
    assert len(parts["train"]) + len(parts["held"]) == 602
    assert {row["filename"] for row in parts["train"] if not row["source"]} == {"synth/x.flac", "shared/train.wav"}
    assert all(row["source"] == f"debian:{row['filename'].split('/')[1]}" for row in parts["held"])


def test_no_audio_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from student_split import main

    monkeypatch.setattr("sys.argv", ["student_split.py", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"holds none of .*: build a pool with runs/pool_debian\.py"):
        main()


def test_every_trial_is_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from student_trials import BASELINE, TRIALS

    from distill.cli import train as command

    for name, flags in TRIALS.items():
        with CliRunner().isolation():
            context = command.make_context("train", ["--pack", "p", "--store", "s", "--out", "o", *BASELINE, *flags])
        fields = {k: v for k, v in context.params.items() if k in TrainConfig().to_dict() and v is not None}
        assert TrainConfig.from_dict({**fields}).size == "tiny", name
    assert TRIALS["baseline"] == []


def test_the_best_weights_are_kept_and_the_curve_grows(tmp_path: Path) -> None:
    from student_stretch import add, measure

    stream = make_stream(tmp_path / "data")
    run, out = tmp_path / "run", tmp_path / "best"
    with small_student():
        train(run, stream, config(steps=4))
        row = measure(run, stream.pack, stream.store)
        assert (row["steps"], row["views"]) == (4, 16)
        found = agreement(load_model(run), stream.pack, stream.store, level_db=-30.0)
        assert row["quiet_kl"] == pytest.approx(found.kl, abs=1e-4)
        assert add(run, out, row)
        kept = (out / "model.safetensors").read_bytes()
        assert {t.dtype for t in load_file(out / "model.safetensors").values() if t.is_floating_point()} == {
            torch.float16
        }
        assert read_metadata(out)["recipe"] == read_metadata(run)["recipe"]
        torch.testing.assert_close(load_model(out).norm.weight, load_model(run).norm.weight, atol=1e-3, rtol=1e-3)
        # Worse weights get a row and are not kept. A measurement that is repeated replaces its row.
        save_model(run / "model.safetensors", CED(SMALL), {"recipe": read_metadata(run)["recipe"], "step": "5"})
        worse = {**row, "steps": 5, "kl": row["kl"] + 1}
        assert not add(run, out, worse)
        assert not add(run, out, {**worse, "kl": row["kl"] + 2})
    assert (out / "model.safetensors").read_bytes() == kept
    rows = read(out / "curve.csv")
    assert [(r["steps"], float(r["kl"])) for r in rows] == [("4", row["kl"]), ("5", pytest.approx(row["kl"] + 2))]


def test_the_long_run_is_a_valid_script() -> None:
    subprocess.run(["bash", "-n", RUNS / "student.sh"], check=True)
    missing = subprocess.run(
        ["bash", RUNS / "student.sh"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert missing.returncode != 0
    assert "AUDIO: a folder of audio" in missing.stderr


def test_a_trial_takes_its_budget_and_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that takes 2 CPU seconds per step and 3 to start: 40 seconds are 20 steps."""
    import student_trials as module

    calls: list[tuple[object, ...]] = []

    def run(*arguments: object) -> tuple[str, float]:
        calls.append(arguments)
        if arguments[0] == "agreement":
            return json.dumps({"kl": 0.5 - 0.001 * len(calls), "mean_ap": 0.25}), 1.0
        return "", 3.0 + 2.0 * int(str(arguments[arguments.index("--steps") + 1]))

    monkeypatch.setattr(module, "run", run)
    flags = ["--pack", "p", "--store", "s", "--held-pack", "hp", "--held-store", "hs", "--out", str(tmp_path)]
    flags += ["--cpu-seconds", "40", "--other", "5 s=s5", "--only", "baseline", "--only", "5 s"]
    monkeypatch.setattr("sys.argv", ["student_trials.py", *flags])
    module.main()
    rows = read(tmp_path / "trials.csv")
    assert [(r["trial"], r["steps"], r["views"], r["cpu_s"]) for r in rows] == [
        ("baseline", "20", "2560", "40"), ("5 s", "20", "2560", "40"),
    ]  # fmt: skip
    stores = [call[call.index("--store") + 1] for call in calls if call[0] == "train"]
    assert stores == ["s"] * 3 + ["s5"] * 3
    assert [call[call.index("--level") + 1] for call in calls if call[0] == "agreement"] == [0, -30.0] * 2
    table = (tmp_path / "trials.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table] == [
        "| trial",
        "| ---",
        "| 5 s",
        "| baseline",
    ]  # the lowest KL first
    before = len(calls)
    module.main()
    assert len(calls) == before
    monkeypatch.setattr("sys.argv", ["student_trials.py", *flags, "--only", "nothing"])
    with pytest.raises(SystemExit):
        module.main()


def test_thinning_keeps_the_clips_with_rare_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 clips, of which six hold a rare class: they are kept, with an even part of the others, and no row changes."""
    import numpy as np
    from student_thin import chances, main

    from distill.packing.shards import read_shard
    from distill.teaching.store import TopK

    stream = make_stream(tmp_path / "data")
    rare, files = set(), []
    for number, shard in enumerate(stream.pack.shards):
        probabilities = np.full((shard.clips, 527), 1e-4, np.float32)
        probabilities[:, 0] = 0.9
        probabilities[number % 6, 5 + number] = 0.9
        names = [clip.id for clip in read_shard(stream.pack, shard)]
        rare.add(names[number % 6])
        files += names
        for epoch in stream.store.epochs:
            stream.store.file(epoch, shard.name).unlink()
            stream.store.write(epoch, shard.name, TopK.top_k(probabilities, 5))
    monkeypatch.setattr("distill.training.balance.FEWEST", 1)
    manifest(tmp_path / "all.csv", [{"filename": name, "source": f"s{i}"} for i, name in enumerate(files)])
    flags = ["--pack", stream.pack.location, "--store", str(stream.store.path), "--out", str(tmp_path / "thin.csv")]
    monkeypatch.setattr("sys.argv", ["student_thin.py", str(tmp_path / "all.csv"), *flags, "--keep", "12"])
    main()
    kept = read(tmp_path / "thin.csv")
    assert len(kept) == 12
    assert rare <= {row["filename"] for row in kept}
    assert [row for row in read(tmp_path / "all.csv") if row in kept] == kept
    assert chances(np.array([8.0, 1.0, 1.0]), 2).tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert chances(np.array([8.0, 1.0, 1.0]), 3).tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_an_average_of_weights_is_taken_by_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from student_average import main

    for step, name in enumerate(("new", "old")):
        save_model(tmp_path / f"{name}.safetensors", CED(SMALL), {"step": step})
    files = [str(tmp_path / f"{name}.safetensors") for name in ("new", "old")]
    monkeypatch.setattr("sys.argv", ["student_average.py", *files, "--share", "0.75", "--out", str(tmp_path / "out")])
    main()
    averaged = tmp_path / "out" / "model.safetensors"
    new, old, found = (load_model(Path(f)).state_dict() for f in (*files, averaged))
    assert any((new[k] != old[k]).any() for k in new)
    for key in new:
        torch.testing.assert_close(found[key], (0.75 * new[key] + 0.25 * old[key]).to(new[key].dtype))
    assert read_metadata(averaged)["averaged_of"]["share"] == 0.75
    monkeypatch.setattr("sys.argv", ["student_average.py", *files, "--share", "1.5", "--out", str(tmp_path / "no")])
    with pytest.raises(SystemExit):
        main()
    assert not (tmp_path / "no").exists()
