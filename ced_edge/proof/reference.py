"""The reference of an evaluation, which exported models are later held against: reference.json + reference.npz."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ced_edge.arrays import Float32, Float64
from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import Clip, data_hash, load_clip
from ced_edge.errors import InputError
from ced_edge.files import atomic_path, read_json, sha256_file
from ced_edge.labels import labels_hash
from ced_edge.runtime.bundle import Bundle

log = logging.getLogger(__name__)

FORMAT = 1
JSON_NAME, NPZ_NAME = "reference.json", "reference.npz"
_ARRAYS = ("ids", "probs", "per_class_ap")


@dataclass(frozen=True)
class Reference:
    """What a model answered to each clip, and all that is needed to ask it again."""

    ids: tuple[str, ...]
    """Names of the N clips, all different."""
    probs: Float32
    """(N, C) probabilities, in the order of `ids`."""
    per_class_ap: Float64
    """(C,) average precision; NaN where no clip has the class."""
    metrics: dict[str, float | int | None]
    """mean_ap, top1_by_group, counts; None where the data cannot tell."""
    device: str
    """Name of the hardware."""
    dtype: str
    """fp32 or bf16."""
    versions: dict[str, str]
    data_hash: str
    """Over the clips' names, labels and files."""
    weights_hash: str
    """SHA-256 of the checkpoint file."""
    labels_hash: str = dataclasses.field(default_factory=labels_hash)

    def __post_init__(self) -> None:
        n, c = self.probs.shape if self.probs.ndim == 2 else (-1, -1)
        if n != len(self.ids) or self.per_class_ap.shape != (c,) or len(set(self.ids)) != n:
            raise InputError(
                f"a reference of {len(self.ids)} clips does not fit probabilities of the shape {self.probs.shape} and "
                f"average precisions of the shape {self.per_class_ap.shape}, or names a clip twice"
            )
        if not ((self.probs >= 0) & (self.probs <= 1)).all():
            raise InputError("a reference holds values that are no probabilities in [0, 1]")

    def write(self, folder: Path) -> None:
        """Write both files, or neither. Raises CedEdgeError on a full disk."""
        # The npz is renamed first, and the JSON knows its hash: a kill in between leaves a pair that `read` refuses.
        with atomic_path(folder / JSON_NAME) as json_path, atomic_path(folder / NPZ_NAME) as npz_path:
            with npz_path.open("wb") as f:
                np.savez_compressed(
                    f, ids=np.array(self.ids, np.str_), probs=self.probs, per_class_ap=self.per_class_ap
                )
            fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _ARRAYS}
            text = {"format": FORMAT, "clips": len(self.ids), "npz_sha256": sha256_file(npz_path), **fields}
            json_path.write_text(json.dumps(text, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_reference(path: Path) -> Reference:
    """Read the reference in a folder (or beside a reference.json), with checks. Raises InputError."""
    json_path = path / JSON_NAME if path.is_dir() else path
    npz_path = json_path.with_name(NPZ_NAME)
    text = read_json(json_path)
    if not isinstance(text, dict) or text.get("format") != FORMAT:
        raise InputError(f"{json_path} is no reference of format {FORMAT}: write it again with `ced-edge evaluate`")
    if not npz_path.is_file():
        raise InputError(f"no such file: {npz_path}")
    if text.get("npz_sha256") != sha256_file(npz_path):
        raise InputError(f"{npz_path} does not belong to {json_path}, or is broken: run `ced-edge evaluate` again")
    if text.get("labels_hash") != labels_hash():
        raise InputError(f"{json_path} was made for another list of classes")
    names = {f.name for f in dataclasses.fields(Reference)} - set(_ARRAYS)
    try:
        fields: dict[str, Any] = {name: text[name] for name in names}
        with np.load(npz_path, allow_pickle=False) as arrays:
            ids = tuple(str(i) for i in arrays["ids"])
            return Reference(ids=ids, probs=arrays["probs"], per_class_ap=arrays["per_class_ap"], **fields)
    except KeyError as e:
        raise InputError(f"{json_path} and {NPZ_NAME} lack {e}: run `ced-edge evaluate` again") from e
    except InputError as e:
        raise InputError(f"{json_path}: {e}") from e


def same_model(bundle: Bundle, reference: Reference) -> None:
    """Raise InputError unless the reference is of the bundle's checkpoint."""
    if bundle.checkpoint_sha256 != reference.weights_hash:
        raise InputError(
            f"the reference is of other weights (sha256 {reference.weights_hash[:12]}...) than those that "
            f"{bundle.folder} comes from ({bundle.checkpoint_sha256[:12]}...): `ced-edge evaluate` that checkpoint"
        )
    if reference.probs.shape[1] != bundle.spec.n_classes:
        raise InputError(
            f"the reference has {reference.probs.shape[1]} classes, {bundle.folder} has {bundle.spec.n_classes}"
        )


def same_data(clips: Sequence[Clip], reference: Reference) -> list[Clip]:
    """The clips without those that `ced-edge evaluate` could not read either, which are counted aloud.

    Raises InputError unless the reference is of them, their labels and bytes; broken audio is named first.
    """
    known = set(reference.ids)
    heard = [clip for clip in clips if clip.id in known]
    for clip in heard:
        if not clip.path.is_file():
            raise AudioError(str(clip.path), "no such file")
    more, less = [], sorted(known - {clip.id for clip in heard})
    for clip in clips:
        if clip.id not in known:
            with contextlib.suppress(AudioError):
                load_clip(clip, 16_000)
                more.append(clip.id)
    if more or less:
        told = [f"{len(more)} clips it does not know, such as {min(more)}"] if more else []
        told += [f"{len(less)} of its clips are missing, such as {less[0]}"] if less else []
        raise InputError(f"the reference is of other data: {' and '.join(told)}; give the --data and --split it is of")
    if data_hash(heard) != reference.data_hash:
        for clip in heard:
            load_clip(clip, 16_000)
        raise InputError("the reference is of other data: a label or a file has changed since `ced-edge evaluate` ran")
    if (out := len(clips) - len(heard)) > (before := int(reference.metrics.get("rejected") or 0)):
        raise InputError(
            f"the reference is of other data: {out} clips cannot be read, {before} when `ced-edge evaluate` ran; "
            f"such as {next(clip.path for clip in clips if clip.id not in known)}"
        )
    if out:
        log.warning("%d of %d clips left out: as for the reference, they cannot be read", out, len(clips))
    return heard
