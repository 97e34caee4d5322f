"""The reference of an evaluation, which exported models are later held against: reference.json + reference.npz."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.errors import InputError
from ced_edge.files import atomic_path, read_json, sha256_file
from ced_edge.labels import labels_hash

FORMAT = 1
JSON_NAME, NPZ_NAME = "reference.json", "reference.npz"
_ARRAYS = ("ids", "probs", "per_class_ap")


@dataclass(frozen=True)
class Reference:
    """What a model answered to each clip, and all that is needed to ask it again."""

    ids: tuple[str, ...]
    """Names of the N clips, all different."""
    probs: NDArray[np.float32]
    """(N, C) probabilities, in the order of `ids`."""
    per_class_ap: NDArray[np.float64]
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
