"""Patchout: in training, the blocks get only some of a view's patches (arXiv 2110.05069, section 3).

A step is then cheaper, and the student learns not to rely on any one patch. The position embeddings are added before
patches are dropped, so that each patch that is left keeps its place. At inference, nothing is dropped.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ced_edge.spec import ModelSpec


def kept_patches(
    spec: ModelSpec,
    samples: int,
    views: int,
    share: float,
    kind: str,
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Which patches of each view stay: (views, V) int64, in ascending order; drawn from (seed, step) alone.

    `samples` is the length of a view, `views` the views of one process, `share` the share of patches that is dropped.
    With the kind `structured`, whole rows (frequency) and columns (time) are dropped, the same in all views of a step.
    With `unstructured`, any patches are dropped, others in each view.
    """
    F, T = spec.grid_freq, spec.frontend.frames(samples) // spec.patch
    if kind == "structured":
        f, t = structured(F, T, share)
        rows, columns = (
            shuffles(seed, step, 1, n, counter)[0, :m].sort()[0] for n, m, counter in ((F, f, 2), (T, t, 3))
        )
        return (rows[:, None] * T + columns).flatten().expand(views, -1)  # order (f t)
    kept = max(1, round((1.0 - share) * F * T))
    return shuffles(seed, step, world * views, F * T, 2)[rank::world, :kept].sort(dim=1)[0]


def structured(F: int, T: int, share: float) -> tuple[int, int]:
    """How many of F rows and T columns stay, so that about `share` of the patches is dropped.

    Rows and columns lose the same share, as near as whole rows allow; the columns make up for the rest.
    """
    f = max(1, round(math.sqrt(1.0 - share) * F))
    return f, min(T, max(1, round((1.0 - share) * F * T / f)))


def shuffles(seed: int, step: int, rows: int, n: int, counter: int = 1) -> Tensor:
    """Independent shuffles of range(n), drawn from (seed, step) alone: (rows, n) int64.

    `counter` keeps these words apart from others with the same key; `time_offset` has 0.
    """
    words = np.random.Philox(key=[seed, step], counter=[0, 0, 0, counter]).random_raw(rows * n)
    return torch.from_numpy(np.argsort(words.reshape(rows, n), axis=1, kind="stable"))
