"""The model against the published one, and its handling of batches and of long input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_forms import SMALL, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ced_edge.errors import InputError
from ced_edge.network.ced import CED, n_parameters, predict
from ced_edge.network.checkpoint import load_model
from ced_edge.spec import SIZES, ModelSpec, size

# Logits are sums over a few hundred float32 products of order 1.
LOGIT_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> CED:
    return small_model()


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "ced_official_small.npz") as arrays:
        return {k: torch.from_numpy(v) for k, v in arrays.items()}


def published(shared: Path) -> CED:
    # The heads are in no file, so that they are named.
    return load_model(shared / "golden" / "ced_official_small.safetensors", heads=3).requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize(
    ("name", "count"), [("tiny", 5_503_183), ("mini", 9_696_655), ("small", 21_622_543), ("base", 85_711_759)]
)
def test_parameter_counts_are_the_published(name: str, count: int) -> None:
    with torch.device("meta"):
        model = CED(size(name))
    assert n_parameters(model) == count


def test_unknown_size() -> None:
    with pytest.raises(InputError, match="unknown size 'huge': choose one of tiny, mini, small, base"):
        size("huge")


def test_spec_survives_json() -> None:
    for spec in (*SIZES.values(), SMALL):
        assert ModelSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("clip", ["a", "b"])
def test_published_outputs(shared: Path, golden: dict[str, Tensor], clip: str) -> None:
    model = published(shared)
    wave = golden[f"{clip}_wave"].float()[None] / 32768
    torch.testing.assert_close(model(wave)[0], golden[f"{clip}_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(predict(model, wave)[0], golden[f"{clip}_prob"], rtol=0, atol=1e-4)


def test_published_handling_of_long_input(shared: Path, golden: dict[str, Tensor]) -> None:
    """Explains clip c: 1012-frame chunks cut after the BatchNorm, the last one padded with zeros, plain means."""
    model = published(shared)
    wave = golden["c_wave"].float()[None] / 32768
    mel = model.front_end(wave)
    torch.testing.assert_close(mel[0, :, :64], golden["c_mel"], rtol=0, atol=3e-4)
    normed = model.init_bn(mel.unsqueeze(2)).squeeze(2)  # (1, 64, T)
    padded = F.pad(normed, (0, -normed.shape[2] % 1012))
    logits = torch.stack([after_batchnorm(model, chunk) for chunk in padded.split(1012, dim=2)])
    torch.testing.assert_close(logits.mean(0), golden["c_logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.sigmoid().mean(0), golden["c_prob"], rtol=0, atol=1e-4)
    # Ours gives the 3.7 s tail a 3.7 s weight and no padding, so that it differs.
    assert (predict(model, wave)[0] - golden["c_prob"]).abs().max() > 0.01


def after_batchnorm(model: CED, x: Tensor) -> Tensor:
    """The model from behind its BatchNorm: (1, 64, T) -> (n_classes,)."""
    tokens = model.patch_embed(x.unsqueeze(1)) + model.time_pos_embed[..., : x.shape[2] // 16] + model.freq_pos_embed
    return model.outputlayer(model.encode(tokens.flatten(2).transpose(1, 2)).mean(dim=1))[0]  # type: ignore[no-any-return]


def test_a_loud_neighbour_changes_nothing(model: CED) -> None:
    quiet, loud = 1e-4 * noise(1, 32_000), 1e3 * noise(1, 32_000, seed=1)
    together = model(torch.cat([quiet, loud]))
    torch.testing.assert_close(together[:1], model(quiet), rtol=0, atol=LOGIT_TOLERANCE)
    torch.testing.assert_close(together[1:], model(loud), rtol=0, atol=LOGIT_TOLERANCE)


def test_training_attention_is_the_fused_one() -> None:
    attention = CED(SMALL).blocks[0].attn  # type: ignore[union-attr]
    x = noise(2, 248, 48)
    torch.testing.assert_close(attention.train()(x), attention.eval()(x), rtol=0, atol=1e-6)  # type: ignore[operator,union-attr]


def test_tokens_are_in_the_order_frequency_then_time(model: CED) -> None:
    tokens = model.patches(noise(1, 64, 32)).flatten(2).transpose(1, 2)
    assert tokens.shape == (1, 8, 48)
    by_hand = model.patches(noise(1, 64, 32))[:, :, 1, 0]  # second frequency row, first time column
    torch.testing.assert_close(tokens[:, 2], by_hand)


def test_an_offset_moves_the_window_along_the_time_embedding(model: CED) -> None:
    mel = noise(1, 64, 32)
    moved = model.patches(mel, time_offset=5) - model.time_pos_embed[..., 5:7]
    torch.testing.assert_close(moved, model.patches(mel) - model.time_pos_embed[..., :2])


@pytest.mark.parametrize(("frames", "offset"), [(1_024, 0), (1_008, 1)])
def test_input_beyond_the_time_embedding_is_refused(model: CED, frames: int, offset: int) -> None:
    with pytest.raises(ValueError, match="do not fit the 63 positions"):
        model.forward_mel(noise(1, 64, frames), offset)


@pytest.mark.parametrize("seconds", [10, 20, 30])
def test_an_exact_multiple_keeps_its_last_chunk(model: CED, seconds: int) -> None:
    wave = noise(1, seconds * 16_000)
    chunks = torch.stack([model(c).sigmoid() for c in wave.split(160_000, dim=1)])
    assert len(chunks) == seconds // 10
    torch.testing.assert_close(predict(model, wave), chunks.mean(0), rtol=0, atol=1e-6)


def test_the_tail_weighs_what_it_holds(model: CED) -> None:
    wave = noise(2, 160_000 + 40_000)
    expected = 0.8 * model(wave[:, :160_000]).sigmoid() + 0.2 * model(wave[:, 160_000:]).sigmoid()
    torch.testing.assert_close(predict(model, wave), expected, rtol=0, atol=1e-6)


def test_a_tail_below_one_patch_is_padded_but_weighs_only_its_samples(model: CED) -> None:
    wave = noise(1, 160_000 + 7)
    tail = model(F.pad(wave[:, 160_000:], (0, SMALL.min_samples - 7))).sigmoid()
    expected = (160_000 * model(wave[:, :160_000]).sigmoid() + 7 * tail) / 160_007
    torch.testing.assert_close(predict(model, wave), expected, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 12_000))
def test_any_length_gets_probabilities(model: CED, samples: int) -> None:
    probs = predict(model, noise(2, samples))
    assert probs.shape == (2, 527)
    assert ((probs >= 0) & (probs <= 1)).all()


def test_no_samples_are_refused(model: CED) -> None:
    with pytest.raises(ValueError, match="no samples"):
        predict(model, torch.zeros(1, 0))


def test_a_short_time_embedding_shortens_the_chunks() -> None:
    short = CED(ModelSpec(width=48, heads=3, depth=1, max_frames=160)).eval()
    assert short.spec.max_samples == 159 * 160
    with torch.inference_mode():
        assert predict(short, noise(1, 60_000)).shape == (1, 527)
