"""The exported form of the network is the same function: against float64 mathematics and the torch model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ced_edge.frontend import mel_filters
from ced_edge.network.ced import CED, predict
from ced_edge.network.frontend import LogMel
from ced_edge.spec import FrontendSpec, ModelSpec
from export.graph import CentredBlock, ExportModel, FrontEnd

SPEC = FrontendSpec()


def exact_log_mel(wave: np.ndarray) -> np.ndarray:
    """The definition in float64, frame by frame: (T, n_mels) dB."""
    N, hop = SPEC.n_fft, SPEC.hop
    padded = np.pad(wave.astype(np.float64), N // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N) / N)
    frames = np.stack([padded[i : i + N] * window for i in range(0, len(wave) + 1, hop)])
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    db = 10 * np.log10(np.maximum(power @ mel_filters(SPEC).astype(np.float64).T, SPEC.min_power))
    return np.maximum(db, db.max() - SPEC.top_db)


def sounds(samples: int, seed: int = 0) -> np.ndarray:
    """(4, samples): noise, a tone and a sweep over faint noise, a click."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / SPEC.rate_hz
    sweep = 0.3 * np.sin(2 * np.pi * (100 * t + 900 * t**2)) + 1e-4 * rng.standard_normal(samples)
    tone = 0.5 * np.sin(2 * np.pi * 440 * t) + 1e-4 * rng.standard_normal(samples)
    click = np.zeros(samples)
    click[samples // 2] = 0.9
    return np.stack([0.2 * rng.standard_normal(samples), tone, sweep, click]).astype(np.float32)


@given(samples=st.integers(SPEC.min_samples, 20_000), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_front_end_of_any_length_is_the_definition(samples: int, seed: int) -> None:
    waves = sounds(samples, seed)
    found = FrontEnd(SPEC)(torch.from_numpy(waves)).numpy()
    for wave, mel in zip(waves, found, strict=True):
        exact = exact_log_mel(wave)
        assert mel.shape == exact.shape
        # float32 rounds relative to the loudest bin of a frame, so faint bins have a larger error.
        below = exact.max(axis=1, keepdims=True) - exact
        assert (np.abs(mel - exact) < 1e-4 * np.maximum(1, 10 ** ((below - 40) / 20))).all()


def test_faint_bins_are_as_exact_as_the_torch_front_ends() -> None:
    waves = sounds(16_000)
    exact = np.stack([exact_log_mel(wave) for wave in waves])
    ours = FrontEnd(SPEC)(torch.from_numpy(waves)).numpy() - exact
    torchs = LogMel(SPEC)(torch.from_numpy(waves)).transpose(1, 2).numpy() - exact
    for mine, theirs in zip(ours, torchs, strict=True):
        # Not the largest error: where a bin happens to hold next to nothing, that is chance.
        assert np.sqrt(np.mean(mine**2)) < 1.5 * max(np.sqrt(np.mean(theirs**2)), 1e-4)


def test_a_loud_neighbour_changes_no_clip() -> None:
    waves = torch.from_numpy(sounds(8_000))
    front_end = FrontEnd(SPEC)
    together = front_end(waves * torch.tensor([[1.0], [1e-5], [1.0], [1.0]]))
    torch.testing.assert_close(together[1], front_end(waves[1:2] * 1e-5)[0], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def model() -> CED:
    """A small CED in which no part is the identity."""
    torch.manual_seed(0)
    model = CED(ModelSpec(width=24, heads=3, depth=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        bn = model.init_bn[1]
        bn.running_mean.uniform_(-50, -20)
        bn.running_var.uniform_(50, 200)
    return model


@pytest.mark.parametrize("samples", [2_400, 16_000, 40_123, 160_000])
@pytest.mark.parametrize("waveform", [True, False])
def test_tagger_is_the_model(model: CED, samples: int, waveform: bool) -> None:
    wave = torch.from_numpy(sounds(samples))
    # The two front ends round faint bins differently.
    atol = 5e-5 if waveform else 1e-5
    with torch.inference_mode():
        x = wave if waveform else model.front_end(wave)
        torch.testing.assert_close(ExportModel(model, waveform)(x), predict(model, wave), atol=atol, rtol=0)


@pytest.mark.parametrize("samples", [5_000, 16_000, 160_000])
def test_one_clip_through_centred_blocks_is_the_model(model: CED, samples: int) -> None:
    tagger = ExportModel(model, False, CentredBlock)
    for wave in torch.from_numpy(sounds(samples)).split(1):
        with torch.inference_mode():
            torch.testing.assert_close(tagger(model.front_end(wave)), predict(model, wave), atol=1e-5, rtol=0)


def test_queries_keys_and_values_are_of_one_size(model: CED) -> None:
    """Of a head, they may come in one range; the student's differ by a factor of ten."""
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[: model.spec.width] *= 10
            block.attn.qkv.weight[-model.spec.width :] *= 0.3
    tagger = ExportModel(model, False)
    sizes = []
    for block in tagger.blocks:
        block.qkv.register_forward_hook(lambda layer, args, y: sizes.append(y.square().mean((0, 1)).sqrt()))
    with torch.inference_mode():
        tagger(model.front_end(torch.from_numpy(sounds(16_000))))
    for size in sizes:
        q, k, v = size.reshape(3, model.spec.heads, -1).square().mean(2).sqrt()
        assert (q / k).max() < 2
        assert (k / q).max() < 2
        assert v.max() < 2 * (q * k).sqrt().mean()


def test_tagger_leaves_the_model_as_it_was(model: CED) -> None:
    before = {name: p.clone() for name, p in model.state_dict().items()}
    ExportModel(model, True)
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_an_fft_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be halved three times"):
        FrontEnd(FrontendSpec(n_fft=500))
