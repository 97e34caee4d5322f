"""Rendering for teachers: shards and epochs in, batches of views out, in this process or in several ahead of a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ced_edge.arrays import Float32
from distill.packing.shards import INT16_SCALE, LoadedShard, Pack, Shard, ShardReader
from distill.processes import in_order
from distill.teaching.store import CLEAN_EPOCH
from distill.teaching.views import ViewRecipe, draw, render

Unit = tuple[Shard, int]
"""A shard and an epoch: what is predicted, and stored, as a whole."""


class Views(NamedTuple):
    """B successive views of one unit."""

    shard: Shard
    epoch: int
    ids: list[str]
    """The B clips that the views are of."""
    wave: Tensor
    """(B, samples) float32 in [-1, 1] at the pack's rate."""


@dataclass
class Renderer:
    """Makes the views of a pack. It keeps the shard that it read last, so a shard's epochs should follow each other."""

    pack: Pack
    recipe: ViewRecipe
    seconds: float
    """Audio per batch, in seconds. A batch has at least one view."""

    def __post_init__(self) -> None:
        self._shards = ShardReader(self.pack)

    def load(self, shard: Shard) -> LoadedShard:
        """Read and decode a shard. Raises InputError when it is damaged."""
        return self._shards.load(shard)

    def batches(self, loaded: LoadedShard, epoch: int) -> Iterator[Views]:
        """All views of an epoch, in the order of the shard's clips."""
        shard, ids, rate_hz = loaded.shard, loaded.ids, self.pack.rate_hz
        if epoch == CLEAN_EPOCH:
            # Whole clips differ in length. One at a time, so that no prediction depends on a neighbour's padding.
            for name, wave in zip(ids, loaded.waves, strict=True):
                yield Views(shard, epoch, [name], _tensor([wave.astype(np.float32) * INT16_SCALE]))
            return
        size = max(1, int(self.seconds / self.recipe.seconds(epoch)))
        for start in range(0, len(ids), size):
            chosen = range(start, min(start + size, len(ids)))
            drawn = (draw(self.recipe, epoch, i, ids) for i in chosen)
            waves = [render(view, loaded.waves, loaded.rms, rate_hz) for view in drawn]
            yield Views(shard, epoch, [ids[i] for i in chosen], _tensor(waves))


def _tensor(waves: Sequence[Float32]) -> Tensor:
    return torch.from_numpy(np.stack(waves))


class Renderings(IterableDataset[Views]):
    """The views of many units. As the source of a feed, each of its processes reads shards of its own."""

    def __init__(self, renderer: Renderer, todo: Iterable[Unit]) -> None:
        self.renderer = renderer
        self._shards = [list(units) for _, units in itertools.groupby(todo, key=lambda unit: unit[0].name)]

    def __iter__(self) -> Iterator[Views]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        parts = self._parts(workers)[number::workers]
        # Decoding a shard takes seconds. The next one is decoded while this one is rendered, or the GPU would wait.
        with ThreadPoolExecutor(1) as decoder:
            shards = in_order(decoder, self.renderer.load, (units[0][0] for units in parts), ahead=2)
            for units, loaded in zip(parts, shards, strict=True):
                for _, epoch in units:
                    yield from self.renderer.batches(loaded, epoch)

    def _parts(self, workers: int) -> list[list[Unit]]:
        """One part per shard; with fewer shards than processes, a shard's epochs are spread over several parts."""
        parts = -(-workers // max(1, len(self._shards)))
        return [units[i::parts] for units in self._shards for i in range(min(parts, len(units)))]
