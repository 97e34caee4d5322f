"""The reference of an evaluation, which exported models are compared with: reference.json and reference.npz."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Float32, Float64
from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import Clip, data_hash, load_clip
from ced_edge.errors import InputError, first_line
from ced_edge.files import atomic_path, read_json, sha256_file
from ced_edge.labels import labels_hash
from ced_edge.runtime.bundle import Bundle
from ced_edge.spec import is_number

log = logging.getLogger(__name__)

FORMAT = 1
JSON_NAME, NPZ_NAME = "reference.json", "reference.npz"
_ARRAYS = {"ids": np.str_, "probs": np.float32, "per_class_ap": np.float64}
"""Arrays of the npz and their types."""
_UNPACKED_BYTES, _UNPACKED_RATIO = 64_000_000, 8
"""Largest unpacked npz: so many bytes, plus so many times the file's size. Probabilities as
float32 hardly compress, so this is far above any real reference, and still keeps a small file from filling memory."""


@dataclass(frozen=True)
class Reference:
    """What a checkpoint predicted for each clip, and what identifies the checkpoint, the clips and the hardware."""

    ids: tuple[str, ...]
    """Names of the N clips, all different."""
    probs: Float32
    """(N, C) probabilities, in the order of `ids`."""
    per_class_ap: Float64
    """(C,) average precision; NaN where no clip has the class."""
    metrics: dict[str, float | int | None]
    """mean_ap, top1_by_group and counts; None where the data has no groups, say."""
    device: str
    """Name of the hardware that computed it."""
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
        if not ((self.probs >= 0) & (self.probs <= 1)).all():  # NaN fails both
            raise InputError("a reference holds values that are no probabilities in [0, 1]")
        texts = (self.device, self.dtype, self.data_hash, self.weights_hash, self.labels_hash)
        numbers = isinstance(self.metrics, dict) and all(v is None or is_number(v) for v in self.metrics.values())
        if not (numbers and is_number(self.metrics.get("mean_ap"))):
            raise InputError("the metrics of a reference must be numbers, mean_ap among them")
        if not all(isinstance(text, str) for text in texts):
            raise InputError("device, dtype and hashes of a reference must be texts")

    def write(self, folder: Path) -> None:
        """Write both files, or neither. Raises CedEdgeError on a full disk."""
        # On leaving the block the npz is renamed first. The JSON holds its hash, so a kill between the two renames
        # leaves a pair that `read_reference` refuses, and never a mixture of two references that looks right.
        with atomic_path(folder / JSON_NAME) as json_path, atomic_path(folder / NPZ_NAME) as npz_path:
            with npz_path.open("wb") as f:
                np.savez_compressed(
                    f, ids=np.array(self.ids, np.str_), probs=self.probs, per_class_ap=self.per_class_ap
                )
            fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _ARRAYS}
            # Sorted keys and no time of writing: the same evaluation writes the same bytes.
            text = {"format": FORMAT, "clips": len(self.ids), "npz_sha256": sha256_file(npz_path), **fields}
            json_path.write_text(json.dumps(text, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_reference(path: Path) -> Reference:
    """Read the reference in the folder `path`, or beside the reference.json `path`.

    Nothing in the files is trusted: no pickle is loaded, and sizes are compared before memory is allocated. Raises
    InputError when a file is missing, damaged, or of other classes.
    """
    json_path = path / JSON_NAME if path.is_dir() else path
    npz_path = json_path.with_name(NPZ_NAME)
    text = read_json(json_path)
    if not isinstance(text, dict) or text.get("format") != FORMAT:
        raise InputError(f"{json_path} is no reference of format {FORMAT}: write it again with `ced-edge evaluate`")
    if not npz_path.is_file():
        raise InputError(f"no such file: {npz_path}")
    # Against mistakes, not against attacks: who changes the npz can change this hash too.
    if text.get("npz_sha256") != sha256_file(npz_path):
        raise InputError(f"{npz_path} does not belong to {json_path}, or is damaged: run `ced-edge evaluate` again")
    if text.get("labels_hash") != labels_hash():
        raise InputError(f"{json_path} was made for another list of classes")
    names = {f.name for f in dataclasses.fields(Reference)} - set(_ARRAYS)
    try:
        fields: dict[str, Any] = {name: text[name] for name in names}
        arrays = _read_npz(npz_path)
        ids = tuple(str(i) for i in arrays["ids"].reshape(-1))
        return Reference(ids=ids, probs=arrays["probs"], per_class_ap=arrays["per_class_ap"], **fields)
    except KeyError as e:
        raise InputError(f"{json_path} and {NPZ_NAME} lack {e}: run `ced-edge evaluate` again") from e
    except InputError as e:
        raise InputError(f"{json_path}: {e}") from e
    except Exception as e:  # a damaged archive fails in many ways, and a damaged header of numpy in more
        raise InputError(f"{npz_path} is damaged ({first_line(e)}): run `ced-edge evaluate` again") from e


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a reference. Raises InputError when they are too large, ValueError and others when damaged.

    Not `np.load`: it allocates whatever size a header names, and unpacks whatever the archive holds. Here at most
    the declared size of a member is read (zipfile keeps to it), and its array is a view of those very bytes.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.getinfo(f"{name}.npy") for name in _ARRAYS}
        size, most = sum(m.file_size for m in members.values()), _UNPACKED_BYTES + _UNPACKED_RATIO * path.stat().st_size
        if size > most:
            raise InputError(f"{NPZ_NAME} would unpack to {size / 1e6:.0f} MB, more than a reference of its size can")
        arrays: dict[str, NDArray[Any]] = {}
        for name, member in members.items():
            # The decoders of other methods allocate a buffer whose size the archive sets.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name} is compressed by another method than deflate")
            with archive.open(member) as f:
                if np.lib.format.read_magic(f) != (1, 0):
                    raise ValueError(f"{name} is of another version of the npy format")
                shape, _, dtype = np.lib.format.read_array_header_1_0(f)
                if dtype.type is not _ARRAYS[name]:
                    raise ValueError(f"{name} is of the type {dtype}")
                arrays[name] = np.frombuffer(f.read(), dtype).reshape(shape)
        return arrays


def same_model(bundle: Bundle, reference: Reference) -> None:
    """Raise InputError unless the reference is of the bundle's checkpoint and classes."""
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
    """The clips that the reference holds. Warns of clips that neither `ced-edge evaluate` nor this can read.

    Raises InputError unless the reference is of exactly these clips, labels and bytes. Audio that is missing or
    broken is named first, because it is the most likely reason.
    """
    known = set(reference.ids)
    used = [clip for clip in clips if clip.id in known]
    for clip in used:
        if not clip.path.is_file():
            raise AudioError(str(clip.path), "no such file")
    # A clip may be missing in the reference if it cannot be read: `ced-edge evaluate` left it out for that reason.
    extra, missing = [], sorted(known - {clip.id for clip in used})
    for clip in clips:
        if clip.id not in known:
            with contextlib.suppress(AudioError):
                load_clip(clip, 16_000)
                extra.append(clip.id)
    if extra or missing:
        reasons = [f"{len(extra)} clips are not in it, such as {min(extra)}"] if extra else []
        reasons += [f"{len(missing)} of its clips are missing, such as {missing[0]}"] if missing else []
        raise InputError(
            f"the reference is of other data: {' and '.join(reasons)}; give the --data and --split that it was made of"
        )
    # The hash covers labels and bytes. It says that something changed, but not what, so broken audio is looked for.
    if data_hash(used) != reference.data_hash:
        for clip in used:
            load_clip(clip, 16_000)
        raise InputError("the reference is of other data: a label or a file has changed since `ced-edge evaluate` ran")
    if (unread := len(clips) - len(used)) > (before := int(reference.metrics.get("rejected") or 0)):
        raise InputError(
            f"the reference is of other data: {unread} clips cannot be read, {before} when `ced-edge evaluate` ran; "
            f"such as {next(clip.path for clip in clips if clip.id not in known)}"
        )
    if unread:
        log.warning("%d of %d clips left out: as for the reference, they cannot be read", unread, len(clips))
    return used
