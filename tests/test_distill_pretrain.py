"""The masked-autoencoder warm-up: what is hidden, what is asked for, and runs that stop, go on and are started from."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import Notes

from ced_edge.audio.clips import Clip
from ced_edge.cli import cli
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model, read_metadata
from ced_edge.spec import SIZES, ModelSpec
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack
from distill.pipeline import run_pretrain
from distill.teaching.store import Store
from distill.teaching.teach import teach_labels
from distill.teaching.views import ViewRecipe
from distill.training.batches import TrainingData
from distill.training.config import PretrainConfig, TrainConfig
from distill.training.log import read_log
from distill.training.loop import Interrupted
from distill.training.optimizers import make_optimizers
from distill.training.pretrain import (
    MaskedAutoencoder,
    WaveBatches,
    n_visible,
    new_student,
    patches,
    pretrain,
    shuffles,
    sinusoids,
    waves,
)
from distill.training.train import train

RATE_HZ = 16_000
NARROW = ModelSpec(width=48, heads=3, depth=2)
SHORT = {
    "size": "narrow", "steps": 6, "batch": 8, "seconds": 1.0, "decoder_width": 32, "decoder_depth": 1, "workers": 0,
    "log_every": 1, "precision": "fp32", "optimizer": "adamw",
}  # fmt: skip


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that trains in no time."""
    monkeypatch.setitem(SIZES, "narrow", NARROW)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Twenty two-second clips in two shards: a buzz that dies away every 160 ms, so the rest follows from a part."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    t = np.arange(2 * RATE_HZ) / RATE_HZ
    clips = []
    for i in range(20):
        wave = np.exp(-4 * ((6.25 * t + rng.uniform()) % 1)) * (np.arange(len(t)) % 128 == 0)
        path = folder / f"{i}.wav"
        soundfile.write(path, wave, RATE_HZ)
        clips.append(Clip(path.name, path, (i,), None))
    return pack(clips, folder / "pack", PackConfig(workers=1, clips_per_shard=10))


def stop_after(step: int) -> Notes:
    """A reporter that presses Ctrl-C after a step."""
    return Notes(lambda now: signal.raise_signal(signal.SIGINT) if now == step else None)


def autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(CED(NARROW), 32, 1)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(1, 5), st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_shuffles_are_permutations_drawn_from_seed_and_step(seed: int, step: int, rows: int, n: int) -> None:
    order = shuffles(seed, step, rows, n)
    assert order.sort(dim=1).values.eq(torch.arange(n)).all()
    assert torch.equal(order, shuffles(seed, step, rows, n))
    if n > 30:
        for other in (shuffles(seed, step + 1, rows, n), shuffles(seed + 1 if seed < 2**62 else 0, step, rows, n)):
            assert not torch.equal(order, other)


def test_every_patch_is_hidden_equally_often() -> None:
    order = shuffles(seed=3, step=7, rows=20_000, n=16)
    visible = order[:, : n_visible(16, 0.75)]
    counts = visible.flatten().bincount(minlength=16).double()
    # Binomial: 20,000 draws at 1/4 have a standard deviation of 61.
    assert visible.shape[1] == 4
    assert (counts - 5_000).abs().max() < 5 * 61


def test_at_least_one_patch_is_visible_and_one_hidden() -> None:
    assert [n_visible(48, 0.75), n_visible(4, 0.99), n_visible(4, 0.01)] == [12, 1, 3]


def test_targets_are_the_patches_in_the_order_of_the_tokens() -> None:
    mae, mel = autoencoder(), 30.0 * torch.randn(3, 64, 101) - 40.0
    targets = mae.targets(mel)
    # Independently: scaled bin by bin over the batch, cut by unfold, each patch brought to mean 0 and variance 1.
    scaled = (mel - mel.mean(dim=(0, 2), keepdim=True)) / mel.std(dim=(0, 2), keepdim=True, unbiased=False)
    cut = F.unfold(scaled[:, None, :, :96], kernel_size=16, stride=16).transpose(1, 2)  # rows of patches, top first
    cut = (cut - cut.mean(dim=2, keepdim=True)) / cut.std(dim=2, keepdim=True, unbiased=False)
    assert targets.shape == (3, 24, 256)
    torch.testing.assert_close(targets, cut, atol=1e-4, rtol=1e-4)
    # The tokens are the same patches through the kernel, so the same order.
    proj = mae.student.patch_embed.proj
    by_hand = F.unfold(mel[:, None, :, :96], kernel_size=16, stride=16).transpose(1, 2) @ proj.weight.flatten(1).T
    tokens = mae.student.patch_embed(mel[:, None]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, by_hand + proj.bias, atol=1e-3, rtol=1e-4)


def test_silence_has_finite_targets() -> None:
    mae = autoencoder()
    assert mae.targets(torch.full((2, 64, 100), -100.0)).isfinite().all()
    loss = mae(torch.zeros(2, RATE_HZ), shuffles(0, 0, 2, 24), 6)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in mae.parameters() if p.grad is not None)


def test_the_student_gets_the_visible_patches_only() -> None:
    mae = autoencoder().eval()  # in training the statistics of a batch pass through init_bn, as they always do
    mel = torch.randn(1, 64, 96, requires_grad=True)
    order, visible = shuffles(1, 0, 1, 24), 6
    mae.reconstruct(mel, order, visible).square().sum().backward()
    assert mel.grad is not None
    used = F.unfold(mel.grad[:, None], kernel_size=16, stride=16)[0].abs().sum(dim=0)  # (24,)
    assert (used[order[0, :visible]] > 0).all()
    assert (used[order[0, visible:]] == 0).all()


def test_the_loss_is_the_error_on_the_hidden_patches() -> None:
    mae, wave = autoencoder().eval(), torch.randn(2, RATE_HZ)
    order, visible = shuffles(0, 0, 2, 24), 6
    mel = mae.student.front_end(wave)
    imagined, wanted = mae.reconstruct(mel, order, visible, 5).detach(), mae.targets(mel)
    errors = [
        float((imagined[b, i] - wanted[b, order[b, visible + i]]).square().mean()) for b in range(2) for i in range(18)
    ]
    assert mae(wave, order, visible, 5).item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_what_is_filled_in_depends_on_where_it_is_and_not_on_the_order_of_the_shuffle() -> None:
    mae, mel = autoencoder().eval(), torch.randn(1, 64, 96)
    order = shuffles(0, 0, 1, 24)
    turned = torch.cat([order[:, :6].flip(1), order[:, 6:].flip(1)], dim=1)
    a, b = mae.reconstruct(mel, order, 6), mae.reconstruct(mel, turned, 6)
    torch.testing.assert_close(a, b.flip(1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(a[0, 0], a[0, 1], atol=1e-3)


def test_start_positions_tell_all_patches_apart() -> None:
    model = new_student(PretrainConfig(size="narrow"))
    grid = (model.time_pos_embed + model.freq_pos_embed)[0].flatten(1).T.detach()  # (4 * 63, C)
    distance = torch.cdist(grid, grid) + 99.0 * torch.eye(len(grid))
    assert distance.min() > 0.1
    torch.testing.assert_close(
        sinusoids(3, 4)[:, [0, 2]],
        torch.tensor([[0.0, 1.0], *[[np.sin(i), np.cos(i)] for i in (1, 2)]], dtype=torch.float32),
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_the_optimizers_hold(optimizer: str) -> None:
    config = PretrainConfig(size="narrow", decoder_width=32, decoder_depth=1, optimizer=optimizer)
    mae = MaskedAutoencoder(new_student(config), 32, 1)
    adamw, *muon = make_optimizers(mae, config)
    names = {id(p): name for name, p in mae.named_parameters()}
    decayed, rest = ([names[id(p)] for p in group["params"]] for group in adamw.param_groups)
    matrices = [names[id(p)] for o in muon for group in o.param_groups for p in group["params"]]
    assert all(name.endswith("weight") and "norm" not in name and "bn" not in name for name in decayed)
    assert {"mask_token", "student.time_pos_embed", "student.freq_pos_embed"} < set(rest)
    assert len(matrices) == (4 * 3 if optimizer == "muon" else 0)  # qkv, proj, fc1 and fc2 of three blocks
    heads = [name for name in names.values() if "outputlayer" in name]
    assert sorted(decayed + rest + matrices + heads) == sorted(names.values())


def test_windows_differ_from_pass_to_pass(packed: Pack) -> None:
    stream = waves(packed, PretrainConfig(**SHORT))
    batches = [batch.wave for batch, _ in zip(WaveBatches(stream), range(5), strict=False)]
    assert all(batch.shape == (8, RATE_HZ) and batch.abs().max() <= 1.0 for batch in batches)
    rows = torch.cat(batches)
    assert len(rows.unique(dim=0)) == len(rows)
    again = next(iter(WaveBatches(stream, first=3))).wave
    assert torch.equal(again, batches[3])


def test_it_learns_and_leaves_a_student_to_start_from(packed: Pack, tmp_path: Path) -> None:
    config = PretrainConfig(**{**SHORT, "steps": 80, "lr": 5e-3, "log_every": 5, "workers": 1})
    listener = Notes()
    path = pretrain(tmp_path / "run", packed, config, reporter=listener)
    losses = [row["loss"] for row in read_log(tmp_path / "run")]
    assert len(losses) == 16
    assert np.mean(losses[-5:]) < 0.9  # 1 is what guessing gives
    assert "(1 is what guessing gives)" in listener.texts[-1]
    model = load_model(path)
    assert model.spec == NARROW
    torch.manual_seed(config.seed)
    fresh = new_student(config)
    changed = [k for k, v in fresh.state_dict().items() if not torch.equal(v, model.state_dict()[k])]
    assert not any(k.startswith("outputlayer") for k in changed)
    assert len(changed) == len([k for k in fresh.state_dict() if not k.startswith("outputlayer")])
    metadata = read_metadata(path)
    assert metadata["recipe"]["pretrain"]["mask"] == 0.75
    assert metadata["recipe"]["pack"] == packed.hash
    # And training takes it.
    store = Store(tmp_path / "store", ViewRecipe(windows=((1, 1.0),)), [], 5, packed.hash, clean=True)
    teach_labels(packed, store)
    stream = TrainingData(packed, store, store.recipe, batch=8, rate_hz=RATE_HZ)
    trained = TrainConfig(steps=2, batch=8, workers=0, precision="fp32", ema=0.0)
    assert load_model(train(tmp_path / "train", stream, trained, init=load_model(tmp_path / "run"))).spec == NARROW


def test_a_run_that_was_stopped_goes_on_exactly(packed: Pack, tmp_path: Path) -> None:
    config = PretrainConfig(**{**SHORT, "optimizer": "muon"})
    whole = load_model(pretrain(tmp_path / "whole", packed, config)).state_dict()
    with pytest.raises(Interrupted, match="step 2 of 6"):
        pretrain(tmp_path / "parts", packed, config, reporter=stop_after(2))
    parts = load_model(pretrain(tmp_path / "parts", packed, config)).state_dict()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    logs = [[(row["step"], row["loss"]) for row in read_log(tmp_path / name)] for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert pretrain(tmp_path / "parts", packed, config) == tmp_path / "parts" / "model.safetensors"
    with pytest.raises(InputError, match="begun with other values of steps"):
        pretrain(tmp_path / "parts", packed, dataclasses.replace(config, steps=7))
    (tmp_path / "parts" / "state.pt").write_bytes(b"no state")
    with pytest.raises(InputError, match="is no training state"):
        pretrain(tmp_path / "parts", packed, config)


def test_a_gradient_that_is_not_finite_is_an_error_that_keeps_the_checkpoint(
    packed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        pretrain(tmp_path, packed, PretrainConfig(**SHORT), reporter=stop_after(1))
    before = (tmp_path / "state.pt").read_bytes()
    monkeypatch.setattr(MaskedAutoencoder, "targets", lambda self, mel: mel.new_full((8, 24, 256), float("nan")))
    with pytest.raises(CedEdgeError, match="not finite at step 1"):
        pretrain(tmp_path, packed, PretrainConfig(**SHORT))
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_warm_up_that_learns_nothing_is_reported(
    packed: Pack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(tmp_path, packed, PretrainConfig(**{**SHORT, "lr": 1e-9}))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "no better than guessed" in caplog.text


def test_every_problem_of_a_config_is_named_at_once() -> None:
    with pytest.raises(InputError) as e:
        PretrainConfig(size="huge", steps=0, mask=1.0, seconds=11.0, decoder_width=50, lr=0.0, seed=-1, warmup=1.0)
    for flag in ("--size", "--steps", "--mask", "--seconds", "--decoder-width", "--lr", "--seed", "--warmup"):
        assert flag in str(e.value)


def test_the_longest_window_fits_the_time_embedding() -> None:
    assert patches(NARROW, 10 * RATE_HZ) == 248


def test_command_line(packed: Pack, tmp_path: Path) -> None:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in SHORT.items()]
    command = ["pretrain", f"--pack={packed.location}", f"--out={tmp_path / 'run'}", *flags, "--no-sinusoids"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(tmp_path / "run" / "model.safetensors")
    with pytest.raises(InputError, match="add --resume"):
        CliRunner().invoke(cli, command, catch_exceptions=False)
    assert CliRunner().invoke(cli, [*command, "--resume"], catch_exceptions=False).exit_code == 0
    with pytest.raises(InputError, match="--mask"):
        CliRunner().invoke(cli, [*command, "--resume", "--mask=2"], catch_exceptions=False)


def test_a_batch_that_processes_cannot_share_is_refused(
    packed: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig(**SHORT)
    assert waves(packed, config, 1, 4).batch == 2
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="--batch 8 cannot be shared by 3 processes: choose a multiple of 3"):
        run_pretrain(tmp_path / "run", packed, config)
    with pytest.raises(InputError, match="cannot be shared by 16 processes"):
        waves(packed, config, 0, 16)
