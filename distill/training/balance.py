"""Balanced sampling: clips with rare sounds are used more often than others.

What is rare is decided by the ensemble, so no label is needed. Audio from the wild is mostly speech and music: with all
clips used equally, a student seldom gets the other classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Bools, Float64
from distill.packing.shards import Pack, Shard
from distill.teaching.store import PRESENT, Store

FEWEST = 10
"""A class in fewer clips counts as if it were in so many: no clip may fill a whole pass."""
VIEWS = 6
"""So many views of a clip say what is in it, if the store has them."""


def clip_weights(pack: Pack, store: Store, power: float) -> list[Float64]:
    """How often to use each clip, relative to the others: one array (clips,) per shard, of mean 1 over all clips.

    A weight is in proportion to n^-power, where n is the number of clips that hold the rarest class of this clip. A
    class is in a clip if it is `PRESENT` in two of its first `VIEWS` views: one view may miss a short sound, or have it
    from another clip that was mixed in. Of a store with one epoch, that one view decides. Clips without any class count
    as a class of their own. The power is 0 for equal use, 1 for equal use of the classes. Raises InputError like
    `Store.read`.
    """
    found = [_held(store, shard) for shard in pack.shards]
    counts = np.maximum(sum(held.sum(axis=0) for held in found), FEWEST)
    rarest = [np.where(held, counts, np.inf).min(axis=1) for held in found]
    weights = [n**-power for n in rarest]
    mean = sum(float(w.sum()) for w in weights) / pack.clips
    return [w / mean for w in weights]


def _held(store: Store, shard: Shard) -> Bools:
    """(clips, 528): the classes that the ensemble finds in each clip, and last whether it finds none."""
    views = [store.read(epoch, shard.name, shard.clips).dense() for epoch in store.epochs[:VIEWS]]
    found = np.sum([kept & (target >= PRESENT) for target, kept in views], axis=0)
    held = found >= min(2, len(views))
    return np.column_stack([held, ~held.any(axis=1)])


def times(weights: Sequence[Float64], order: NDArray[np.int64], place: float) -> list[NDArray[np.int64]]:
    """How often each clip comes in one pass: one array per shard of `order`. The sum of all weights must be whole.

    A clip of weight w comes floor(w) or ceil(w) times, and w times on average over `place`, from 0 to below 1.
    """
    flat = np.concatenate([weights[shard] for shard in order])
    stops = np.floor(np.cumsum(flat) + place).astype(np.int64)
    stops[-1] = round(flat.sum())  # what the last sum is, but for rounding
    counts = np.diff(stops, prepend=0)
    return np.split(counts, np.cumsum([len(weights[shard]) for shard in order])[:-1])
