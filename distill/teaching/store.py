"""The store: the ensemble's top-K predictions for every view, one Parquet file per (shard, epoch).

A row holds K class indices and K probabilities, largest first, and the sum of all other probabilities (the tail). Rows
are in the order of the shard's clips. A probability takes 8 bits as round(255 sqrt(p)), the tail takes 16 bits.

A file is written under a temporary name, then renamed, and never written again. It carries a hash of everything that
decides its content, so that a store of other clips, views or teachers is refused. A store may come from a stranger:
see docs/security.md.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ced_edge import __version__
from ced_edge.arrays import Bools, Float32, UInt8
from ced_edge.errors import InputError
from ced_edge.files import atomic_path, path_inside, sha256_json, write_json
from ced_edge.spec import N_CLASSES
from distill.packing.location import join, open_file, scheme
from distill.teaching import parquet
from distill.teaching.views import ViewRecipe

CLEAN_EPOCH = -1
"""The epoch of predictions for whole clips without augmentation: for labels, and for comparison."""

PRESENT = 0.3
"""A class counts as present in a view if the ensemble gives it this probability or more."""

_MAX_HEADER_BYTES = 1 << 20
"""Of `store.json`, which has about 1 KB."""
_MEND = "copy the whole folder that `ced-edge teach` wrote"


def quantise(p: Float32) -> UInt8:
    """Probabilities in [0, 1] -> 8 bits on a square-root scale.

    Most probabilities are far below 0.1. The root gives these small steps, and at most 0.004 of error near 1.
    """
    return np.round(255.0 * np.sqrt(np.clip(p, 0.0, 1.0))).astype(np.uint8)


def dequantise(q: UInt8) -> Float32:
    """The inverse of `quantise`: [0, 1]."""
    return np.asarray(np.square(q.astype(np.float32) / np.float32(255.0)))


class NotTaught(InputError):
    """Predictions that `teach` has not made yet. The same command works later. Exit code 75, as in BSD's sysexits."""

    exit_code = 75


@dataclass(frozen=True)
class TopK:
    """Stored predictions for N views: `index` and `value` (N, K), largest first; `tail` (N,) is the sum of the rest."""

    index: NDArray[np.uint16]
    value: Float32
    tail: Float32

    @classmethod
    def top_k(cls, probabilities: Float32, k: int) -> TopK:
        """The K largest of (N, 527) probabilities. Equal ones stay in class order: all machines keep the same."""
        order = np.argsort(-probabilities, axis=1, kind="stable")
        kept, rest = order[:, :k], order[:, k:]
        return cls(
            kept.astype(np.uint16),
            np.take_along_axis(probabilities, kept, axis=1),
            # Summed in float64: the tail has hundreds of very small values.
            np.take_along_axis(probabilities, rest, axis=1).sum(axis=1, dtype=np.float64).astype(np.float32),
        )

    @classmethod
    def joined(cls, parts: Sequence[TopK]) -> TopK:
        """The views of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("index", "value", "tail")))

    def dense(self, rule: str = "tail") -> tuple[Float32, Bools]:
        """Probabilities (N, 527), and a mask (N, 527) of the classes whose probability was stored.

        `rule` fills the other classes: `tail` gives each an equal share of their stored sum, `smallest` gives each an
        equal share of the smallest stored value (the published rule), `zero` gives them 0. Raises InputError.
        """
        N, K = self.index.shape
        rest = max(N_CLASSES - K, 1)
        if rule == "tail":
            fill = self.tail / rest
        elif rule == "smallest":
            fill = self.value[:, -1] / rest
        elif rule == "zero":
            fill = np.zeros(N, np.float32)
        else:
            raise InputError(f"unknown rule {rule!r} for the classes outside the top K: tail, smallest or zero")
        # A class outside the top K is never more probable than the smallest stored one, so its fill is not either.
        dense = np.repeat(np.minimum(fill, self.value[:, -1])[:, None], N_CLASSES, axis=1).astype(np.float32)
        kept = np.zeros((N, N_CLASSES), np.bool_)
        np.put_along_axis(dense, self.index.astype(np.int64), self.value, axis=1)
        np.put_along_axis(kept, self.index.astype(np.int64), True, axis=1)
        return dense, kept


@dataclass(frozen=True)
class Store:
    """A folder of predictions: `store.json` and `e<epoch>/<shard>.parquet`."""

    path: Path
    recipe: ViewRecipe
    teachers: list[dict[str, Any]]
    """Name, SHA-256, rate and number of known classes of each teacher, in order: see `Ensemble.describe`."""
    k: int
    pack: str
    """Hash of the pack that the predictions are for."""
    clean: bool = False
    """Predictions for whole clips without augmentation: one epoch in all."""
    address: str = ""
    """Where a store on a server lies, as `location.join` takes it. It is read only, and `path` has no meaning then."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= N_CLASSES:
            raise InputError(f"-k must be within 1 and {N_CLASSES}, not {self.k}")

    @property
    def epochs(self) -> list[int]:
        """The epochs that a finished store holds."""
        return [CLEAN_EPOCH] if self.clean else list(range(self.recipe.epochs))

    def _identity(self) -> dict[str, Any]:
        # Without the windows: epochs can be added to a store, and `check` compares the windows of each epoch.
        recipe = None if self.clean else {k: v for k, v in self.recipe.to_dict().items() if k != "windows"}
        return {"pack": self.pack, "recipe": recipe, "teachers": self.teachers, "k": self.k, "clean": self.clean}

    def to_dict(self) -> dict[str, Any]:
        """What identifies the store, for a checkpoint's recipe."""
        return self._identity()

    def digest(self, epoch: int, shard: str) -> str:
        """Hash of everything that decides the predictions of one file."""
        view = "clean" if epoch == CLEAN_EPOCH else _recipe_digest(self.recipe, epoch)
        return sha256_json({**self._identity(), "view": view, "shard": shard})

    def check(self) -> bool:
        """Whether `store.json` exists and covers all epochs. Raises InputError naming every difference."""
        if not (self.path / "store.json").exists():
            return False
        written = Store.open(self.path)
        refuse_other(self._identity(), written._identity(), self.path)
        if self.clean:
            return True
        have, want = ([s.recipe.seconds(e) for e in s.epochs] for s in (written, self))
        if any(a != b for a, b in zip(have, want, strict=False)):
            raise InputError(f"{self.path} is a store of other windows: choose another folder, or delete it")
        return len(have) >= len(want)

    def create(self) -> None:
        """Write `store.json`, or check the one that exists; it may gain epochs, and never loses any.

        Only one process at a time may call this. Raises InputError naming every difference.
        """
        file = self.path / "store.json"
        if not self.check():
            header = {**self._identity(), "recipe": self.recipe.to_dict(), "format": 1, "version": __version__}
            write_json(file, header)

    @classmethod
    def open(cls, place: Path | str) -> Store:
        """Open a store that exists: a folder, or the address of one (`http://`, `https://`, `s3://` or `gs://`).

        Raises InputError when there is none, or its header is damaged.
        """
        address, file = str(place) if scheme(str(place)) else "", join(str(place), "store.json")
        if not address and not Path(file).exists():
            raise InputError(f"no store at {place}: write one with `ced-edge teach`")
        try:
            with open_file(str(place), "store.json", _MEND, _MAX_HEADER_BYTES) as f:
                h = json.loads(b"".join(f.blocks()))
            if h["format"] != 1:
                raise InputError(f"{file} is of format {h['format']}, this program reads 1")
            recipe, teachers, k, pack, clean = (h[key] for key in ("recipe", "teachers", "k", "pack", "clean"))
            if [type(value) for value in (teachers, k, pack, clean)] != [list, int, str, bool]:
                raise ValueError("a field is of the wrong kind")
            return cls(Path(place), ViewRecipe.from_dict(recipe), teachers, k, pack, clean, address)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise InputError(f"{file} is no header of a store: choose another folder, or delete it") from e

    @property
    def place(self) -> str:
        """The folder or address, for messages."""
        return self.address or str(self.path)

    def file(self, epoch: int, shard: str) -> Path:
        """The path of one file of predictions. Raises InputError for a name that leads out of the store."""
        return path_inside(self._folder(epoch), f"{shard}.parquet")

    def _folder(self, epoch: int) -> Path:
        return self.path / _epoch_name(epoch)

    def left(self, shards: Iterable[str], epochs: Iterable[int]) -> list[tuple[str, int]]:
        """The (shard, epoch) pairs whose file does not exist. Raises InputError like `done`."""
        # One listing per epoch: with 20,000 files it takes less time than a look for each of them.
        there = {epoch: {f.name for f in self._folder(epoch).glob("*.parquet")} for epoch in epochs}
        pairs = [(shard, epoch) for shard in shards for epoch in there]
        return [(s, e) for s, e in pairs if f"{s}.parquet" not in there[e] or not self.done(e, s)]

    def write(self, epoch: int, shard: str, top_k: TopK) -> None:
        """Write one file of predictions, whole or not at all. The same predictions always give the same bytes.

        Only one process at a time may write a file. Raises CedEdgeError on a full disk.
        """
        N, K = top_k.index.shape
        file = self.file(epoch, shard)
        table = pa.table(
            {
                "clip": pa.array(np.arange(N, dtype=np.int32)),
                "index": _fixed(top_k.index, pa.uint16(), K),
                "value": _fixed(quantise(top_k.value), pa.uint8(), K),
                "tail": pa.array(top_k.tail.astype(np.float16)),
            }
        )
        with (
            atomic_path(file) as temporary,
            pq.ParquetWriter(
                temporary,
                table.schema,
                # These settings are part of the format: another one would change the bytes of every store.
                compression="zstd",
                compression_level=19,
                use_dictionary=False,
                write_statistics=False,
                store_schema=False,
                write_page_checksum=True,
                # Byte stream split puts the high bytes of all indices together, which compresses better.
                column_encoding={
                    "clip": "DELTA_BINARY_PACKED",
                    "index.list.element": "BYTE_STREAM_SPLIT",
                    "value.list.element": "BYTE_STREAM_SPLIT",
                },
            ) as writer,
        ):
            writer.write_table(table)
            writer.add_key_value_metadata({"digest": self.digest(epoch, shard)})

    def done(self, epoch: int, shard: str) -> bool:
        """Whether one file exists. Raises InputError when it is for other clips, views or teachers."""
        file = self.file(epoch, shard)
        if not file.exists():
            return False
        digest = self.digest(epoch, shard).encode()
        try:
            footer = parquet.read_footer(file)
            # To parse a footer takes half a millisecond, and there may be 20,000 of them.
            same = digest in footer or parquet.parse_layout(footer).metadata.get(b"digest") == digest
        except _BROKEN as e:
            raise _broken(file, e) from e
        if not same:
            raise _other(file)
        return True

    def read(self, epoch: int, shard: str, clips: int) -> TopK:
        """The predictions of one file, for `clips` clips.

        Raises NotTaught when it is missing, and InputError when it is broken, or for other clips, views or teachers.
        """
        name = f"{_epoch_name(epoch)}/{shard}.parquet"
        file, most = join(self.place, name), self._most_bytes(clips)
        if not self.address and not self.file(epoch, shard).exists():
            raise NotTaught(f"{file} is missing: `ced-edge teach` has not finished this store")
        try:
            with open_file(self.place, name, _MEND, most) as reader:
                data = b"".join(reader.blocks())
            layout = parquet.layout_of(data)
            if layout.metadata.get(b"digest") != self.digest(epoch, shard).encode():
                raise _other(file)
            if layout.rows != clips:
                raise ValueError(f"{layout.rows} predictions, not {clips}")
            if (unpacked := parquet.unpacked_bytes(data, layout)) > most:
                raise ValueError(f"{unpacked} bytes when unpacked are too many for {clips} predictions")
            with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as f:
                table = f.read()
            index = table["index"].combine_chunks().values.to_numpy().reshape(-1, self.k).astype(np.uint16)
            value = table["value"].combine_chunks().values.to_numpy().reshape(-1, self.k).astype(np.uint8)
            tail = table["tail"].to_numpy().astype(np.float32)
        except _BROKEN as e:
            raise _broken(file, e) from e
        if not len(index) == len(value) == len(tail) == clips or index.max(initial=0) >= N_CLASSES:
            raise _broken(file, f"not {clips} predictions over {N_CLASSES} classes")
        return TopK(index, dequantise(value), tail)

    def _most_bytes(self, clips: int) -> int:
        # A row takes 6 + 3 K bytes. The rest is for what Parquet adds: levels, page headers, a footer.
        return clips * (16 + 8 * self.k) + (1 << 17)

    def bytes(self) -> int:
        """Size of all files of the store, in bytes."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())


def _epoch_name(epoch: int) -> str:
    return "clean" if epoch == CLEAN_EPOCH else f"e{epoch:03d}"


@functools.lru_cache(maxsize=1_024)
def _recipe_digest(recipe: ViewRecipe, epoch: int) -> str:
    return recipe.digest(epoch)


def refuse_other(wanted: dict[str, Any], written: dict[str, Any], path: Path) -> None:
    """Raise InputError naming every key in which the store at `path` differs from the wanted one."""
    different = [k for k in wanted if sha256_json(wanted[k]) != sha256_json(written.get(k))]
    if different:
        raise InputError(f"{path} is a store of another {' and '.join(different)}: choose another folder, or delete it")


def _fixed(values: NDArray[Any], kind: pa.DataType, k: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind), k)


_BROKEN = (pa.ArrowException, OSError, AttributeError, *parquet.BROKEN)
"""What reading a damaged Parquet file may raise."""


def _other(file: Path | str) -> InputError:
    return InputError(f"{file} holds predictions for other clips, views or teachers: use another store folder")


def _broken(file: Path | str, why: object) -> InputError:
    return InputError(f"{file} is broken ({why}): delete it and run `ced-edge teach` again")
