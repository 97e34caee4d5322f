"""The demonstration's teachers: what they are trained on, that they learn, and that their files load as teachers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import Notes

from ced_edge.audio.clips import read_manifest
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.labels import index_of
from distill.demo import teachers as demo_teachers
from distill.demo.synth import write_dataset
from distill.demo.teachers import (
    SHORT_FRAMES,
    TRAININGS,
    Examples,
    Training,
    augment,
    make_batches,
    make_losses,
    new_cnn,
    new_transformer,
    read_examples,
    shorter,
)
from distill.teachers.load import load_teacher
from distill.training.batches import Batch
from distill.training.loop import Interrupted


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("synth") / "data", clips=48, eval_clips=8, seconds=1.0)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# ---- their input --------------------------------------------------------------------------------------------------


def test_without_mixing_labels_stay_and_levels_stay_within_gain_and_floor() -> None:
    mel = torch.full((64, 20, 50), 0.0)
    target = torch.eye(64)
    augmented, labels = augment(mel, target, 0.0, -11.5, rng())
    assert torch.equal(labels, target)
    kept = augmented[augmented > -11.4]
    decibels = kept / math.log(10.0) * 10.0
    assert decibels.min() >= -9.001
    assert decibels.max() <= 5.001
    masked = (augmented <= -11.4).flatten(1).float().mean(dim=1)
    assert 0.3 < (masked == 0).float().mean() < 0.7 or (masked > 0).any()
    assert masked.max() < 0.45  # a fifth of the time and a quarter of the bands


def test_mixing_adds_power_and_joins_labels() -> None:
    mel = torch.zeros(32, 8, 16)
    target = torch.eye(32)
    augmented, labels = augment(mel, target, 1.0, -30.0, rng(), gain_db=(0.0, 0.0))
    assert torch.equal(labels.diagonal(), torch.ones(32))
    assert set(labels.sum(dim=1).tolist()) <= {1.0, 2.0}
    assert (labels.sum(dim=1) == 2).any()
    power = augmented[augmented > -29.0].exp()  # 1 and a partner at -12 to 2 dB
    assert power.min() >= 1 + 10**-1.2 - 1e-4
    assert power.max() <= 1 + 10**0.2 + 1e-4


def test_rolling_keeps_every_frame() -> None:
    mel = torch.arange(40.0).expand(16, 4, 40).contiguous()
    for seed in range(20):
        augmented, _ = augment(
            mel, torch.zeros(16, 2), 0.0, -1e9, torch.Generator().manual_seed(seed), gain_db=(0.0, 0.0)
        )
        whole = [clip[0] for clip in augmented if (clip > -1e8).all()]
        assert all(torch.equal(clip.sort().values, torch.arange(40.0)) for clip in whole)
        assert any(clip[0] != 0 for clip in whole)


@pytest.mark.parametrize("make", [new_cnn, new_transformer])
def test_features_are_those_of_the_loaded_teacher(make: object, tmp_path: Path, manifest: Path) -> None:
    """What a network is trained on must be what the teacher that reads its file computes from the waveform."""
    torch.manual_seed(0)
    student = make(1e-3)  # type: ignore[operator]
    student.model.eval()
    examples = read_examples(manifest, student.front_end, "eval")
    name = "cnn" if make is new_cnn else "transformer"
    path = tmp_path / ("cnn.pt" if name == "cnn" else "transformer.safetensors")
    demo_teachers.train_one(name, Training(steps=0, lr=1e-3), manifest, path)
    teacher = load_teacher(path)
    clips = read_manifest(manifest, "eval")
    waves = torch.stack([torch.from_numpy(demo_teachers.load(c.path, teacher.rate_hz)) for c in clips])
    # The same seed and no step: the same weights but for the head's bias, which is the log-odds of each class.
    with torch.no_grad():
        student.head.bias.copy_(demo_teachers.prior_logits(read_examples(manifest, student.front_end).target.mean(0)))
        own = torch.sigmoid(student.forward(examples.mel.float(), 0))
    # Half-precision features, and for the transformer bfloat16 arithmetic.
    torch.testing.assert_close(own, teacher(waves), atol=0.01, rtol=0.05)


def test_examples_carry_the_manifests_labels(manifest: Path) -> None:
    examples = read_examples(manifest, new_transformer(1e-3).front_end)
    clips = read_manifest(manifest, "train")
    assert examples.mel.shape == (48, 64, 101)
    assert examples.target.shape == (48, 527)
    for clip, row in zip(clips, examples.target, strict=True):
        assert tuple(torch.nonzero(row)[:, 0].tolist()) == clip.labels


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)  # both in this process
    return demo_teachers.train_demo_teachers(manifest, tmp_path_factory.mktemp("teachers"), shorter(12))


def test_both_load_as_different_teachers_that_know_silence(trained: dict[str, Path], manifest: Path) -> None:
    teachers = {name: load_teacher(path, name) for name, path in trained.items()}
    assert {name: t.rate_hz for name, t in teachers.items()} == {"cnn": 32_000, "transformer": 16_000}
    assert len({t.sha256 for t in teachers.values()}) == 2
    unknown = np.ones(527, bool)
    unknown[[i for clip in read_manifest(manifest, "train") for i in clip.labels or ()]] = False
    for teacher in teachers.values():
        noise = 3e-4 * torch.randn(2, teacher.rate_hz, generator=rng())
        probabilities = teacher(noise)
        assert probabilities.shape == (2, 527)
        assert probabilities[:, unknown].max() < 0.01  # no class that was never trained
        assert probabilities[0, index_of("Silence")] > 0.02  # the share of silent clips is 1 in 24


def test_finished_teachers_are_kept_and_missing_or_outdated_ones_made(trained: dict[str, Path], manifest: Path) -> None:
    out = trained["cnn"].parent
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in trained.values()}
    assert demo_teachers.train_demo_teachers(manifest, out, shorter(12)) == trained
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in trained.values()}
    trained["cnn"].write_bytes(b"damaged")
    demo_teachers.train_demo_teachers(manifest, out, shorter(12))
    assert trained["cnn"].read_bytes() == before[trained["cnn"]][1]  # and the training is repeatable
    other = shorter(12) | {"transformer": dataclasses.replace(TRAININGS["transformer"], steps=3)}
    demo_teachers.train_demo_teachers(manifest, out, other)
    assert trained["cnn"].read_bytes() == before[trained["cnn"]][1]
    assert trained["transformer"].read_bytes() != before[trained["transformer"]][1]


def test_the_loss_falls_within_a_few_steps(manifest: Path) -> None:
    torch.manual_seed(0)
    net = new_transformer(6e-3)
    examples = read_examples(manifest, net.front_end)
    losses = make_losses(net, Training(steps=40, lr=6e-3), examples.target.mean(dim=0) > 0)
    whole = Batch(examples.mel.float(), examples.target, examples.target > 0)

    def loss() -> float:
        with torch.no_grad():
            return float(losses(whole, 0)["loss"])

    start = loss()
    for _, batch in zip(range(40), make_batches(examples, net, Training(steps=40, lr=6e-3)), strict=False):
        losses(batch, 0)["loss"].backward()
        for optimizer in net.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss() < 0.9 * start


def test_batches_are_a_function_of_their_number_and_use_every_clip_once_in_a_pass(manifest: Path) -> None:
    net, training = new_cnn(1e-3), Training(steps=9, lr=1e-3, batch=20, mix=0.0, short=0.5)
    clips = 50
    labels = torch.eye(clips)  # each clip its own class, so a row shows which clip it is
    examples = Examples(torch.randn(clips, 16, 300).half(), labels)
    some = list(itertools.islice(make_batches(examples, net, training), 10))
    again = list(itertools.islice(make_batches(examples, net, training, first=3), 7))
    for a, b in zip(some[3:], again, strict=True):
        assert torch.equal(a.wave, b.wave)
        assert torch.equal(a.target, b.target)
    assert [batch.wave.shape[2] for batch in some[:9]] == [SHORT_FRAMES] * 5 + [300] * 4
    order = torch.cat([batch.target.argmax(dim=1) for batch in some]).reshape(4, clips)
    assert all(sorted(row.tolist()) == list(range(clips)) for row in order)
    assert len(order.unique(dim=0)) == 4


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_a_stopped_training_continues_exactly(manifest: Path, tmp_path: Path, name: str) -> None:
    training = Training(steps=8, lr=1e-3, batch=8)
    paths = []
    for folder, stop in (("whole", 0), ("parts", 5)):
        path = tmp_path / folder / "teacher.safetensors"
        path.parent.mkdir()
        if stop:
            press = Notes(lambda step: signal.raise_signal(signal.SIGINT) if step == 5 else None)
            with pytest.raises(Interrupted, match="stopped at step 5 of 8"):
                demo_teachers.train_one(name, training, manifest, path, "id", press)
            assert not path.exists()
        demo_teachers.train_one(name, training, manifest, path, "id")
        assert [p.name for p in path.parent.iterdir() if p.is_dir()] == []  # nothing is left but the teacher
        paths.append(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_side_by_side_gives_two_teachers_and_restores_the_threads(manifest: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        paths = demo_teachers.train_demo_teachers(manifest, tmp_path, shorter(2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(load_teacher(path).known.all() for path in paths.values())


# ---- bad input ----------------------------------------------------------------------------------------------------


def test_failure_of_the_other_process_is_reported(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "cnn.pt").mkdir()  # the file cannot be put there
    training = Training(steps=1, lr=1e-3)
    with (
        pytest.raises(CedEdgeError, match="demo teacher cnn failed"),
        demo_teachers._in_another_process("cnn", training, manifest, tmp_path / "cnn.pt", "", 1),
    ):
        pass


def test_clips_without_labels_or_of_unequal_length_are_refused(manifest: Path, tmp_path: Path) -> None:
    front_end = new_transformer(1e-3).front_end
    names = [str(clip.path) for clip in read_manifest(manifest, "train")[:2]]
    bare = tmp_path / "bare.csv"
    bare.write_text("filename,split\n" + "".join(f"{name},train\n" for name in names))
    with pytest.raises(InputError, match="no labels"):
        read_examples(bare, front_end)
    long = write_dataset(tmp_path / "long", clips=1, eval_clips=0, seconds=2.0).parent / "clips/train-000000.flac"
    mixed = tmp_path / "mixed.csv"
    mixed.write_text(f"filename,labels,split\n{names[0]},0,train\n{long},0,train\n")
    with pytest.raises(InputError, match="one length"):
        read_examples(mixed, front_end)
    with pytest.raises(InputError, match="no such manifest"):
        demo_teachers.train_demo_teachers(tmp_path / "none.csv", tmp_path / "out", shorter(1))
