"""How weights move: the optimisers, the learning rate over the steps, and the average over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from distill.training.config import Config


def make_optimizers(
    model: nn.Module, config: Config, betas: tuple[float, float] = (0.9, 0.98)
) -> list[torch.optim.Optimizer]:
    """AdamW with decay on matrices and kernels only; or Muon for the blocks' matrices and AdamW for the rest."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {n: p for n, p in learning.items() if config.optimizer == "muon" and "blocks." in n and p.ndim == 2}
    rest = {n: p for n, p in learning.items() if n not in matrices}
    # Position embeddings and mask tokens have several axes, but are no matrices.
    decayed = {n: p for n, p in rest.items() if p.ndim > 1 and not n.endswith(("_embed", "_token"))}
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": [p for n, p in rest.items() if n not in decayed], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)]
    if matrices:
        decay, weights = config.weight_decay, list(matrices.values())
        optimizers.append(torch.optim.Muon(weights, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate: a linear rise, then half a cosine down to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def warm_ema(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential average of weights whose decay rises as (1 + n) / (10 + n): early weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, n: Any) -> None:
        weight = 1.0 - min(decay, (1.0 + float(n)) / (10.0 + float(n)))
        # Called with lists of one type: weights and statistics, or BatchNorm's count of batches.
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:
            torch._foreach_copy_(averaged, current)

    return update
