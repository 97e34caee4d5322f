"""Agreement: how near a student's predictions for held-out clips come to the ensemble's. No label is needed.

The views and the ensemble's predictions are those of a store, so no teacher runs. A class counts as present in a view
if the ensemble's probability is at least `PRESENT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
import torch

from ced_edge.arrays import Bools, Float32, Float64
from ced_edge.errors import InputError
from ced_edge.labels import labels
from ced_edge.network.ced import CED, predict
from ced_edge.proof import metrics
from distill.devices import find_device
from distill.packing.shards import Pack, ShardReader
from distill.teaching.store import PRESENT, Store
from distill.teaching.views import draw, render
from distill.training.losses import top_k_kl


@dataclass(frozen=True)
class Agreement:
    """Predictions for N views, and those of the ensemble."""

    probs: Float32
    """(N, 527), of the student."""
    target: Float32
    """(N, 527), of the ensemble; classes outside the stored top K are filled in, see `TopK.dense`."""
    kept: Bools
    """(N, 527): the classes that were stored."""

    @property
    def present(self) -> Bools:
        """(N, 527): the classes that the ensemble finds."""
        return self.kept & (self.target >= PRESENT)

    @property
    def kl(self) -> float:
        """KL divergence from the ensemble's distribution to the student's in nats, mean over views.

        It is the loss `top_k_kl`: over the stored classes, and all others as one.
        """
        logits = torch.logit(torch.from_numpy(self.probs).double(), eps=1e-7)
        return float(top_k_kl(logits, torch.from_numpy(self.target).double(), torch.from_numpy(self.kept)))

    @property
    def per_class_ap(self) -> Float64:
        """(527,) average precision against `present`; NaN for a class that the ensemble finds nowhere."""
        return metrics.average_precision(self.present, self.probs)

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON, with the number of views of each class."""
        per_class, views = self.per_class_ap, self.present.sum(axis=0)
        return {
            "kl": self.kl,
            "mean_ap": metrics.mean_ap(per_class),
            "classes_present": int(np.count_nonzero(views)),
            "views": len(self.probs),
            "per_class": {
                label.name: {"ap": float(ap), "views": int(n)}
                for label, ap, n in zip(labels(), per_class, views, strict=True)
                if n
            },
        }


def agreement(
    model: CED,
    pack: Pack,
    store: Store,
    device: str = "cpu",
    batch_size: int = 32,
    level_db: float = 0.0,
    progress: Callable[[int], None] = lambda views: None,
) -> Agreement:
    """A student on all views of a store, which is best of held-out clips. The model is left in eval mode on `device`.

    The student gets the views at another level if `level_db` is not 0: it shows how robust the student is.
    Raises InputError when the store is of another pack or of clean clips, or when it is not finished.
    """
    check_store(pack, store)
    where = find_device(device)
    model = model.eval().to(where)
    rows: list[tuple[Float32, Float32, Bools]] = []
    with torch.inference_mode():
        for waves, target, kept in _batches(pack, store, model.spec.frontend.rate_hz, batch_size):
            waves *= np.float32(10.0 ** (level_db / 20.0))
            probs = predict(model, torch.from_numpy(waves).to(where)).cpu().numpy()
            rows.append((probs, target, kept))
            progress(len(waves))
    return Agreement(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def check_store(pack: Pack, store: Store) -> None:
    """Raise InputError when a store holds no predictions for views of this pack."""
    if store.clean:
        raise InputError(f"{store.place} is a store of clean clips: give one of views (`teach` without --clean)")
    if store.pack != pack.hash:
        raise InputError(
            f"{store.place} is a store of another pack than {pack.location}: give the pack it was made from"
        )


def _batches(pack: Pack, store: Store, rate_hz: int, size: int) -> Iterator[tuple[Float32, Float32, Bools]]:
    """Waves (B, samples) at `rate_hz`, the ensemble's probabilities (B, 527), and which of them were stored."""
    reader = ShardReader(pack)
    for shard in pack.shards:
        loaded = reader.load(shard)
        for epoch in store.epochs:
            target, kept = store.read(epoch, shard.name, shard.clips).dense()
            for first in range(0, shard.clips, size):
                clips = range(first, min(first + size, shard.clips))
                views = (draw(store.recipe, epoch, clip, loaded.ids) for clip in clips)
                waves = [render(view, loaded.waves, loaded.rms, pack.rate_hz) for view in views]
                if pack.rate_hz != rate_hz:
                    waves = [soxr.resample(wave, pack.rate_hz, rate_hz) for wave in waves]
                yield np.stack(waves), target[clips.start : clips.stop], kept[clips.start : clips.stop]
