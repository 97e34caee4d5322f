"""The losses: pure functions of logits and stored predictions; and the measure that shows the cold-start plateau."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy against probabilities, mean over views and classes: (B, C), (B, C) -> ()."""
    return F.binary_cross_entropy_with_logits(logits, target)


def top_k_kl(logits: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """KL divergence between softmax distributions over the kept classes and the tail as one class: -> ().

    A softmax over logits weighs classes by their odds p / (1 - p), so the teacher's distribution is its odds,
    normalised. Classes compete in it, and a prediction that is the same for every clip is far from all of them: that
    is what leaves the cold-start plateau that BCE alone stays on.
    """
    p = target.clamp(1e-7, 1.0 - 1e-3)
    teacher = torch.log(p) - torch.log1p(-p)  # (B, C) log-odds
    return _kl(_merged(teacher, kept), _merged(logits, kept))


def _merged(logits: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities (B, C + 1): the kept classes in place, the others -inf, the tail as one class last."""
    tail = logits.masked_fill(kept, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.masked_fill(~kept, -torch.inf), tail], dim=1).log_softmax(dim=1)


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    q = teacher.exp()
    difference = torch.where(q > 0, teacher - student, 0.0)
    return (q * difference).sum(dim=1).mean()


def prior_logits(prevalence: Tensor) -> Tensor:
    """The head's bias at which it predicts the classes' mean probability: (C,) -> (C,)."""
    p = prevalence.clamp(1e-5, 1.0 - 1e-5)
    return torch.log(p) - torch.log1p(-p)


def spread(probabilities: Tensor) -> Tensor:
    """How much predictions differ from clip to clip: root of the summed variance over clips, (B, C) -> ().

    A student on the cold-start plateau predicts the same for every clip: its spread is near 0, the teacher's is not.
    """
    return probabilities.float().var(dim=0, unbiased=False).sum().sqrt()
