"""Packing: clips of any format become tar shards of 16-bit mono FLAC, with an index (the layout of WebDataset).

A pack is a folder of `shard-000000.tar` (members KEY.flac and KEY.json), `shard-000000.csv` (one row per clip),
`rejected.csv` (the clips that were left out, and why) and `index.json`, which is written last. The bytes depend on the
clips and the config alone. They are the same for any number of workers, and after any number of interruptions.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ced_edge.audio.clips import Clip
from ced_edge.errors import CedEdgeError, InputError, first_line
from ced_edge.files import (
    atomic_path,
    csv_line,
    folder_lock,
    read_json,
    sha256_file,
    sha256_json,
    valid_text,
    write_json,
)
from distill.packing.pieces import Encoded, PackConfig, Piece, cut, encode, probe
from distill.packing.shards import FORMAT, INDEX_NAME, MAX_JSON_BYTES, MAX_SHARD_SAMPLES, MAX_SHARDS, Pack
from distill.processes import Pool, in_order, pool_of

__all__ = ["PackConfig", "Progress", "pack"]

log = logging.getLogger(__name__)

REJECTED_NAME = "rejected.csv"
_WORK_NAME = ".work"  # state of a run that is not finished; it is removed after index.json is written
_SHARD_FIELDS = ("key", "id", "rate_hz", "samples", "labels", "group", "sha256")
_REJECT_FIELDS = ("id", "path", "reason")
_CHUNK = 16  # clips per message to a worker

_Reject = tuple[str, str, str]
"""Id, path and reason of a clip that was left out."""

Progress = Callable[[int], None]


def pack(clips: Sequence[Clip], out: Path, config: PackConfig, progress: Progress | None = None) -> Pack:
    """Pack `clips` into the folder `out`. A run that was killed continues where it stopped.

    Clips that cannot be used are listed in `rejected.csv`, and a warning counts them. `progress` is called with the
    number of clips done since its last call; the numbers add up to `len(clips)`. Raises InputError when `out` is a
    pack of other clips or another config, or in use, when two clips have one id, and when no clip can be used. Raises
    CedEdgeError when the disk is full, and with `config.strict` when a clip was rejected.
    """
    # A name of bytes that are no UTF-8 fits into no CSV file. A folder's clips have none; a caller's may.
    clips = [clip if clip.id.isascii() else dataclasses.replace(clip, id=valid_text(clip.id)) for clip in clips]
    identity = {"format": FORMAT, "config": config.identity(), "manifest": _manifest_hash(clips)}
    report = progress or (lambda _: None)
    _check_ids([clip.id for clip in clips])
    with folder_lock(out):
        finished = _is_finished(out, identity)
        if finished:
            report(len(clips))
        else:
            with pool_of(config.workers) as pool:
                pieces, rejects = _plan(clips, config, pool, report)
                give_up = config.strict and bool(rejects)
                shards = [] if give_up else _write_shards(pieces, out, config, pool, report, rejects)
            _write_rejects(out / REJECTED_NAME, sorted(rejects))
        _report_rejects(out, config.strict)
        if not finished:
            _write_index(out, identity, shards, len(rejects))
        shutil.rmtree(out / _WORK_NAME, ignore_errors=True)
        return Pack.open(out)


def _manifest_hash(clips: Sequence[Clip]) -> str:
    """Hash of the clips' names, labels and parts. Their folder is left out: a data set may be moved."""
    return sha256_json([[c.id, c.labels, c.group, c.start_s, c.stop_s] for c in sorted(clips, key=lambda c: c.id)])


def _check_ids(ids: Sequence[str]) -> None:
    if not ids:
        raise InputError("no clips to pack: the manifest is empty")
    twice = [name for name, n in collections.Counter(ids).items() if n > 1]
    if twice:
        raise InputError(f"{len(twice)} clips share a name, the first is {twice[0]!r}: names must differ")


def _is_finished(out: Path, identity: dict[str, Any]) -> bool:
    """Whether `out` holds the finished pack. Marks a new folder as this pack's; raises InputError for another pack."""
    started = out / _WORK_NAME / "pack.json"
    finished = (out / INDEX_NAME).exists()
    if not finished and not started.exists():
        if any(out.glob("shard-*")):
            raise InputError(f"{out} has shards of unknown origin: choose another folder, or delete them")
        write_json(started, identity)
    written = read_json(out / INDEX_NAME if finished else started)
    for key, what in (("format", "another format"), ("config", "another config"), ("manifest", "other clips")):
        if written.get(key) != identity[key]:
            what += _differences(written.get(key), identity[key])
            raise InputError(f"{out} is a pack of {what}: choose another folder, or delete it")
    # The folder is locked, so temporary files in it are those of a run that was killed.
    for left_over in (*out.glob(".*.tmp"), *started.parent.glob(".*.tmp")):
        left_over.unlink()
    return finished


def _differences(written: Any, wanted: Any) -> str:
    if not (isinstance(written, dict) and isinstance(wanted, dict)):
        return ""
    names = sorted(k for k in written.keys() | wanted.keys() if written.get(k) != wanted.get(k))
    return " (" + "; ".join(f"{k} {written.get(k)}, not {wanted.get(k)}" for k in names) + ")"


def _plan(clips: Sequence[Clip], config: PackConfig, pool: Pool, report: Progress) -> tuple[list[Piece], list[_Reject]]:
    """Cut the clips into pieces, in the order in which they are packed. Also the clips whose header is unreadable."""
    pieces: list[Piece] = []
    rejects: list[_Reject] = []
    chunks = (clips[i : i + _CHUNK] for i in range(0, len(clips), _CHUNK))
    lengths = itertools.chain.from_iterable(in_order(pool, probe, chunks, 8 * config.workers))
    for clip, length in zip(clips, lengths, strict=True):
        if isinstance(length, str):
            rejects.append(_reject(clip.id, clip, length))
            report(1)
        else:
            pieces += cut(clip, length, config)
    _check_ids([p.id for p in pieces] or [""])
    for p in pieces:
        # One character takes up to 12 bytes in JSON, one label 5. The reader refuses more than MAX_JSON_BYTES.
        if 12 * (len(p.id) + len(p.clip.group or "")) + 5 * len(p.clip.labels or ()) > MAX_JSON_BYTES - 100:
            raise InputError(f"clip {p.id[:80]!r}... has a name, group or list of labels too long to be packed")
    # Shuffled by hash, not by a random generator: the order is the same on every machine, for every version of
    # Python, and for any order of the manifest.
    pieces.sort(key=lambda p: hashlib.sha256(f"{config.seed}:{p.id}".encode()).digest())
    return pieces, rejects


def _write_shards(
    pieces: Sequence[Piece], out: Path, config: PackConfig, pool: Pool, report: Progress, rejects: list[_Reject]
) -> list[str]:
    """Write the shards that do not exist yet, add to `rejects`, and return the names of all shards without suffix."""
    size = config.clips_per_shard
    units = {f"shard-{i // size:06d}": pieces[i : i + size] for i in range(0, len(pieces), size)}
    if len(units) > MAX_SHARDS:
        raise InputError(f"{len(units)} shards are more than {MAX_SHARDS}: choose a larger --clips-per-shard")
    todo = {name: unit for name, unit in units.items() if not _is_written(out, name, unit)}
    report(sum(p.counts for name, unit in units.items() if name not in todo for p in unit))
    jobs = ((unit[i : i + _CHUNK], config) for unit in todo.values() for i in range(0, len(unit), _CHUNK))
    # One stream of pieces over all shards, so that the workers do not wait at the end of each shard.
    encoded = itertools.chain.from_iterable(in_order(pool, encode, jobs, 4 * config.workers))
    for name, unit in todo.items():
        _write_shard(out, name, _counted(zip(unit, encoded, strict=False), report), config.rate_hz)
    for name in units:
        rejects += [(r["id"], r["path"], r["reason"]) for r in _read_table(_rejects_path(out, name), _REJECT_FIELDS)]
    return [name for name in units if (out / f"{name}.csv").exists()]


def _is_written(out: Path, name: str, unit: Sequence[Piece]) -> bool:
    """Whether a shard is finished. Raises InputError when it holds other pieces."""
    tables = ((out / f"{name}.csv", _SHARD_FIELDS), (_rejects_path(out, name), _REJECT_FIELDS))
    written = sorted(row["id"] for path, header in tables for row in _read_table(path, header))
    if written == sorted(p.id for p in unit):
        return True
    if (out / f"{name}.csv").exists():
        raise InputError(f"{out} was begun when the audio files had other lengths: choose another folder, or delete it")
    return False


def _counted(pairs: Iterable[tuple[Piece, Encoded]], report: Progress) -> Iterator[tuple[Piece, Encoded]]:
    for piece, encoded in pairs:
        yield piece, encoded
        report(int(piece.counts))


def _write_shard(out: Path, name: str, pairs: Iterable[tuple[Piece, Encoded]], rate_hz: int) -> None:
    """Write the tar, then the list of its rejects, then its table. A shard with a table is finished."""
    number = name.removeprefix("shard-")
    rows: list[tuple[Any, ...]] = []
    rejects: list[_Reject] = []
    samples, tar_path = 0, out / f"{name}.tar"
    with atomic_path(tar_path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for piece, encoded in pairs:
            if encoded.reason is not None:
                rejects.append(_reject(piece.id, piece.clip, encoded.reason))
                continue
            key, clip = f"{number}-{len(rows):06d}", piece.clip
            fields = {"id": piece.id, "labels": clip.labels, "group": clip.group, "samples": encoded.samples}
            samples += encoded.samples
            if samples > MAX_SHARD_SAMPLES:
                raise InputError(f"{tar_path} is too long to be held in memory: choose a smaller --clips-per-shard")
            _add(tar, f"{key}.flac", encoded.flac)
            _add(tar, f"{key}.json", json.dumps(fields).encode())
            tags = ";".join(map(str, clip.labels or ()))
            digest = hashlib.sha256(encoded.flac).hexdigest()
            rows.append((key, piece.id, rate_hz, encoded.samples, tags, clip.group or "", digest))
    if not rows:
        tar_path.unlink()  # every piece was rejected
    _write_rejects(_rejects_path(out, name), rejects)
    if rows:
        _write_table(out / f"{name}.csv", _SHARD_FIELDS, rows)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member. Its header has no owner and no time, so that the tar is the same on every machine."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), 0, 0o644
    tar.addfile(info, io.BytesIO(data))


def _write_index(out: Path, identity: dict[str, Any], names: Sequence[str], rejected: int) -> None:
    if not names:
        raise InputError(f"none of the clips can be used: see {out / REJECTED_NAME}")
    rate_hz = identity["config"]["rate_hz"]
    shards = []
    for name in names:
        samples = [int(row["samples"]) for row in _read_table(out / f"{name}.csv", _SHARD_FIELDS)]
        hashes = {"sha256": sha256_file(out / f"{name}.tar"), "csv_sha256": sha256_file(out / f"{name}.csv")}
        shards.append({"name": f"{name}.tar", "clips": len(samples), "seconds": sum(samples) / rate_hz, **hashes})
    totals = {"clips": sum(s["clips"] for s in shards), "seconds": sum(s["seconds"] for s in shards)}
    write_json(out / INDEX_NAME, {**identity, **totals, "rate_hz": rate_hz, "shards": shards, "rejected": rejected})


def _report_rejects(out: Path, strict: bool) -> None:
    """Warn of how many were rejected, and why. Raises CedEdgeError with `strict`."""
    rows = _read_table(out / REJECTED_NAME, _REJECT_FIELDS)
    reasons = collections.Counter(row["reason"].partition(": ")[0] for row in rows)  # details would be as many as clips
    if reasons:
        counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
        text = f"rejected {reasons.total()} clips ({counts}): see {out / REJECTED_NAME}"
        if strict:
            raise CedEdgeError(text)
        log.warning(text)


def _rejects_path(out: Path, name: str) -> Path:
    return out / _WORK_NAME / f"{name}.csv"


def _reject(name: str, clip: Clip, reason: str) -> _Reject:
    return name, valid_text(str(clip.path)), reason


def _write_rejects(path: Path, rejects: Iterable[_Reject]) -> None:
    _write_table(path, _REJECT_FIELDS, rejects)


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
        f.writelines(map(csv_line, (header, *rows)))


def _read_table(path: Path, header: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with this header; none if there is no file. Raises InputError when it is damaged."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            rows = list(reader)
        if list(reader.fieldnames or ()) != list(header):
            raise ValueError(f"its columns are not {', '.join(header)}")
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row has too few or too many values")
        _ = [int(row["samples"]) for row in rows if "samples" in row]
    except (ValueError, csv.Error) as e:  # ValueError: no UTF-8 as well
        folder = path.parent.parent if path.parent.name == _WORK_NAME else path.parent
        raise InputError(f"{path} is damaged ({first_line(e)}): delete {folder}, and pack again") from e
    return rows
