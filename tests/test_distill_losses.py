"""Losses: against torch.distributions, scikit-learn and sums by hand; finite at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch.distributions import Categorical, kl_divergence

from distill.training.losses import bce, prior_logits, spread, top_k_kl


def answers(
    seed: int, batch: int = 5, classes: int = 12, k: int = 4
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, probabilities, and which of them are the K largest of their row."""
    g = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(batch, classes, generator=g)
    target = torch.rand(batch, classes, generator=g) * 0.98 + 0.01
    kept = torch.zeros_like(target, dtype=torch.bool).scatter_(1, target.topk(k, dim=1).indices, True)
    return logits, target, kept


@given(st.integers(0, 1_000), st.integers(1, 11))
def test_top_k_kl_is_that_of_the_kept_classes_and_one_tail(seed: int, k: int) -> None:
    logits, target, kept = answers(seed, k=k)
    divergences = []
    for x, p, keep in zip(logits.double(), target.double(), kept, strict=True):
        odds, weights = p / (1.0 - p), x.exp()
        teacher = torch.cat([odds[keep], odds[~keep].sum()[None]])
        student = torch.cat([weights[keep], weights[~keep].sum()[None]])
        divergences.append(kl_divergence(Categorical(probs=teacher), Categorical(probs=student)))
    expected = torch.stack(divergences).mean()
    # float32 against float64 over terms of a few units.
    torch.testing.assert_close(top_k_kl(logits, target, kept).double(), expected, rtol=1e-4, atol=1e-5)


def test_top_k_kl_by_hand() -> None:
    # Odds 3, 1 and a tail of 1/9 + 1/9; the student holds all four classes alike.
    target = torch.tensor([[0.75, 0.5, 0.1, 0.1]])
    kept = torch.tensor([[True, True, False, False]])
    q = np.array([3.0, 1.0, 2.0 / 9.0])
    q /= q.sum()
    expected = float(np.sum(q * np.log(q / np.array([0.25, 0.25, 0.5]))))
    assert top_k_kl(torch.zeros(1, 4), target, kept).item() == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 1_000))
def test_top_k_kl_is_zero_where_the_student_agrees_up_to_a_shift(seed: int) -> None:
    _, target, kept = answers(seed)
    agreed = torch.logit(target)
    assert top_k_kl(agreed, target, kept).item() == pytest.approx(0.0, abs=1e-5)
    assert top_k_kl(agreed + 2.5, target, kept).item() == pytest.approx(0.0, abs=1e-5)
    assert top_k_kl(-agreed, target, kept).item() > 0.01


def test_how_the_tail_is_shared_out_does_not_matter() -> None:
    logits, target, kept = answers(0)
    moved = logits.clone()
    for row, keep in zip(moved, kept, strict=True):
        row[~keep] = row[~keep].flip(0)
    torch.testing.assert_close(top_k_kl(moved, target, kept), top_k_kl(logits, target, kept))


@pytest.mark.parametrize("keep", ["some", "all", "one"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("size", [1.0, 80.0])
def test_gradients_are_finite_at_the_edges(keep: str, value: float, size: float) -> None:
    logits, target, kept = answers(1)
    kept = {"some": kept, "all": torch.ones_like(kept), "one": torch.zeros_like(kept)}[keep]
    kept[:, 0] = True
    target[0], target[1, 0] = value, value
    x = (size * logits).requires_grad_()
    loss = bce(x, target) + top_k_kl(x, target, kept)
    loss.backward()
    assert torch.isfinite(loss)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_top_k_kl_has_the_gradient_of_its_values() -> None:
    logits, target, kept = answers(2)
    assert torch.autograd.gradcheck(
        lambda x: top_k_kl(x, target.double(), kept), logits.double().requires_grad_(), atol=1e-6
    )


def test_bce_is_scikit_learns_log_loss() -> None:
    logits, _, _ = answers(3)
    hard = torch.rand(5, 12, generator=torch.Generator().manual_seed(4)) < 0.4
    p = logits.double().sigmoid().numpy().ravel()
    expected = log_loss(hard.numpy().ravel(), np.stack([1.0 - p, p], axis=1))
    assert bce(logits, hard.float()).item() == pytest.approx(expected, rel=1e-5)


def test_bce_of_soft_answers_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]])
    target = torch.tensor([[0.25, 0.5]])
    # -ln(1/2), and -(ln(3/4) + ln(1/4)) / 2.
    expected = (math.log(2.0) - 0.5 * (math.log(0.75) + math.log(0.25))) / 2.0
    assert bce(logits, target).item() == pytest.approx(expected, abs=1e-6)


def test_prior_logits_predict_the_prevalence() -> None:
    prevalence = torch.tensor([0.5, 0.01, 0.9, 0.0, 1.0])
    torch.testing.assert_close(prior_logits(prevalence).sigmoid()[:3], prevalence[:3])
    # Never and always become very unlikely and very likely: 1e-5 from the edge.
    torch.testing.assert_close(prior_logits(prevalence)[3:], torch.tensor([-11.512915, 11.512915]), rtol=1e-3, atol=0)


def test_spread_by_hand() -> None:
    # Variances over the two clips: 0.04 and 0.01.
    assert spread(torch.tensor([[0.1, 0.5], [0.5, 0.7]])).item() == pytest.approx(math.sqrt(0.05), abs=1e-6)
    assert spread(torch.tensor([[0.1, 0.5]] * 3)).item() == 0.0
    assert spread(torch.tensor([[0.25, 0.5], [0.5, 0.75]], dtype=torch.bfloat16)).dtype == torch.float32
