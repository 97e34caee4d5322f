"""Balanced sampling: clips with rare sounds are used more often than others.

What is rare is decided by the ensemble, so no label is needed. Audio from the wild is mostly speech and music: with all
clips used equally, a student seldom gets the other classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Float64
from ced_edge.spec import N_CLASSES
from distill.packing.shards import Pack
from distill.teaching.store import CLEAN_EPOCH, Store

CONFIDENT = 0.3
"""A class is in a clip if the ensemble gives it this probability or more in the first epoch."""
FEWEST = 10
"""A class in fewer clips counts as if it were in so many: no clip may fill a whole pass."""


def clip_weights(pack: Pack, store: Store, power: float) -> list[Float64]:
    """How often to use each clip, relative to the others: one array (clips,) per shard, of mean 1 over all clips.

    A weight is n^-power, where n is the number of clips that hold the rarest class of this clip. Clips without any
    class count as a class of their own. The power is 0 for equal use, 1 for equal use of the classes.
    """
    epoch = CLEAN_EPOCH if store.clean else 0
    found = [_confident(store, epoch, shard.name, shard.clips) for shard in pack.shards]
    counts = np.maximum(sum(held.sum(axis=0) for held in found), FEWEST)
    rarest = [np.where(held, counts, np.inf).min(axis=1) for held in found]
    weights = [n**-power for n in rarest]
    mean = sum(float(w.sum()) for w in weights) / pack.clips
    return [w / mean for w in weights]


def _confident(store: Store, epoch: int, shard: str, clips: int) -> NDArray[np.bool_]:
    """(clips, 528): the classes that the ensemble finds in each clip, and last whether it finds none."""
    top_k = store.read(epoch, shard, clips)
    held = np.zeros((clips, N_CLASSES + 1), np.bool_)
    np.put_along_axis(held, top_k.index.astype(np.int64), top_k.value >= CONFIDENT, axis=1)
    held[:, -1] = ~held.any(axis=1)
    return held


def times(
    weights: Sequence[Float64], order: NDArray[np.int64], place: float, total: int | None = None
) -> list[NDArray[np.int64]]:
    """How often each clip comes in one pass: one array per shard of `order`.

    A clip of weight w comes floor(w) or ceil(w) times, and w times on average over `place`, from 0 to below 1. `total`
    is the sum of the weights, a whole number: by default the number of clips.
    """
    flat = np.concatenate([weights[shard] for shard in order])
    stops = np.floor(np.cumsum(flat) + place).astype(np.int64)
    stops[-1] = len(flat) if total is None else total  # the sum of the weights, but for rounding
    counts = np.diff(stops, prepend=0)
    return np.split(counts, np.cumsum([len(weights[shard]) for shard in order])[:-1])
