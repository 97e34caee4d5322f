"""Clips: files or parts of files, listed by a folder of audio or a table, and their samples."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ced_edge import labels
from ced_edge.arrays import Float32
from ced_edge.audio.base import AUDIO_SUFFIXES, AudioError
from ced_edge.audio.folders import audio_files, by_stem, is_audio_name
from ced_edge.audio.read import duration_s, load
from ced_edge.audio.tables import Row, Table, audio_roots, read_table
from ced_edge.errors import InputError
from ced_edge.files import sha256_file, sha256_json, valid_text

log = logging.getLogger(__name__)

_MARGIN_S = 1.0
"""A file may be this much longer than a segment and still be the segment alone: encoders pad, cutting is rough."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A file or a part of it. `id` is its name in the manifest. `labels` are class indices, or None if unknown."""

    id: str
    path: Path
    labels: tuple[int, ...] | None = None
    group: str | None = None
    start_s: float = 0.0
    stop_s: float | None = None
    """End of the part in seconds. None is the end of the file."""
    may_be_cut: bool = False
    """Whether the file may hold the part alone. Its decoded length decides, when the clip is read: see `located`."""


def read_manifest(
    path: Path, split: str | None = None, audio_root: Path | None = None, labels_needed: bool = True
) -> list[Clip]:
    """Clips of a folder, of a table (see `tables`), or of an AudioSet segments CSV.

    Labels are indices, mids or names joined by `;` or `,`. With `split` only the rows of that split are read, or of
    that fold. File names are relative to `audio_root`, by default the folder of the manifest. The files need not exist.

    A label that no data set knows is an error where `labels_needed`: an evaluation with a misspelt label would be
    wrong. Otherwise it is left out. Known labels that are no class of the 527, such as FSD50K's `Human_voice`, are
    always left out, and the other labels of the row count. A clip without any label left has unknown labels (None).
    One warning counts what was left out. Raises InputError, which names the line and the fix.
    """
    if os.path.isdir(path):
        if split is not None:
            raise InputError(f"{path} is a folder and has no splits: leave the split out, or give a manifest")
        return _folder(path)
    table = read_table(path, split)
    if not table.rows:
        raise InputError(f"{path} lists no clips")
    places = _Places(path, table, audio_root)
    left_out = collections.Counter[str]()
    clips = [places.place(row, _labels(path, row, table.numbers, labels_needed, left_out)) for row in table.rows]
    if places.elsewhere:
        log.info("%s: %d files are in another folder or format than it says", path, places.elsewhere)
    if left_out:
        names = ", ".join(f"{' '.join(name.split())[:60]} ({n})" for name, n in left_out.most_common(5))
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        total = left_out.total()
        log.warning("%s: left out labels that are no AudioSet class, %d in all: %s%s", path, total, names, more)
    return clips


def _folder(folder: Path) -> list[Clip]:
    files = sorted(p.relative_to(folder).as_posix() for p in audio_files(folder))
    if not files:
        raise InputError(f"no audio in {folder}: searched for {', '.join(sorted(AUDIO_SUFFIXES))}")
    # An id is written into CSV and JSON files, which hold valid text only. A name on the disk may be any bytes.
    return [Clip(valid_text(name), folder / name) for name in files]


def _labels(
    path: Path, row: Row, numbers: bool, needed: bool, left_out: collections.Counter[str]
) -> tuple[int, ...] | None:
    """The labels of a row, or None without any; counts those that are left out."""
    found: set[int] = set()
    for field in row.labels:
        read = labels.read_field(field, numbers)
        if needed and read.unknown:
            try:
                labels.index_of(read.unknown[0], numbers)
            except InputError as e:
                raise InputError(f"{path} line {row.line}: {e}") from e
        found.update(read.indices)
        left_out.update((*read.outside, *read.unknown))
    return tuple(sorted(found)) or None


def read_clips(data: Sequence[Path], split: str | None, root: Path | None, labels_needed: bool = True) -> list[Clip]:
    """The clips of several manifests or folders. If names repeat, each gets its manifest's name in front."""
    parts = [read_manifest(path, split, root, labels_needed) for path in data]
    names = [clip.id for part in parts for clip in part]
    if len(set(names)) == len(names):
        return [clip for part in parts for clip in part]
    stems = [valid_text(path.stem) for path in data]
    if len(set(stems)) < len(stems):
        raise InputError("two of the manifests hold the same file names and have the same name: rename one of them")
    return [dataclasses.replace(c, id=f"{stem}/{c.id}") for stem, part in zip(stems, parts, strict=True) for c in part]


def data_hash(clips: Sequence[Clip]) -> str:
    """SHA-256 of the names, labels, groups and file contents of the clips. Their order does not matter."""
    files: dict[Path, str] = {}
    for clip in clips:
        if clip.path not in files:
            files[clip.path] = sha256_file(clip.path)
    rows = [[c.id, files[c.path], c.start_s, c.stop_s, c.labels, c.group] for c in clips]
    return sha256_json(sorted(rows, key=lambda row: str(row[0])))


class _Places:
    """Finds the file of each row of a table. No file is opened."""

    def __init__(self, path: Path, table: Table, audio_root: Path | None) -> None:
        self.elsewhere = 0
        """Files found by their name without folder and suffix alone."""
        self._loose = table.foreign
        self._root = audio_root if audio_root is not None else path.parent
        if audio_root is None and table.foreign:
            self._root = self._published_root(path, table.rows)
        # Only the segments of AudioSet are always searched for. Other names mostly are the file.
        self._by_stem: dict[str, Path] | None = None
        self._stems: list[str] = []

    def _published_root(self, path: Path, rows: Sequence[Row]) -> Path:
        """The first of the data set's usual folders with one of the first files; else the folder of the table."""
        for root in audio_roots(path)[1:]:
            if any(os.path.exists(root / row.folder / _file_name(row.name)) for row in rows[:100]):
                log.info("%s: the audio is in %s", path, root)
                return root
        return path.parent

    def place(self, row: Row, tags: tuple[int, ...] | None) -> Clip:
        """The clip of a row."""
        if row.segment is not None:
            return self._segment(row, tags, *row.segment)
        file = self._root / row.folder / row.name
        if self._loose and not os.path.exists(file):
            full = _file_name(row.name)
            file = self._root / row.folder / full
            if (full == row.name or not os.path.exists(file)) and (other := self._files().get(Path(full).stem)):
                self.elsewhere += 1
                file = other
        return Clip(row.name, file, tags, row.group)

    def _files(self) -> dict[str, Path]:
        if self._by_stem is None:
            self._by_stem = by_stem(self._root)
            self._stems = sorted(self._by_stem)
        return self._by_stem

    def _segment(self, row: Row, tags: tuple[int, ...] | None, video: str, start_s: float, stop_s: float) -> Clip:
        """A segment of AudioSet: the file `YTID_milliseconds...` is the segment, a file `YTID` may be the video."""
        files = self._files()
        start = f"{video}_{round(start_s * 1000)}"
        if cut := self._starting(start) or self._starting(f"Y{start}"):
            return Clip(row.name, files[cut], tags)
        whole = next((stem for stem in (video, f"Y{video}") if stem in files), None)
        if whole is None:
            return Clip(row.name, self._root / f"{video}.wav", tags)
        return Clip(row.name, files[whole], tags, None, start_s, stop_s, may_be_cut=True)

    def _starting(self, start: str) -> str | None:
        """The first of the sorted stems that equals `start`, or continues with `_` (such as an end time)."""
        # By index: AudioSet has two million stems, and a slice would copy them for every row.
        for i in range(bisect.bisect_left(self._stems, start), len(self._stems)):
            stem = self._stems[i]
            if not stem.startswith(start):
                return None
            if stem == start or stem[len(start)] == "_":
                return stem
        return None


def _file_name(name: str) -> str:
    """FSD50K lists `64760` for the file `64760.wav`."""
    return name if is_audio_name(name) else f"{name}.wav"


def located(clip: Clip, file_s: float) -> Clip:
    """The clip with its place in its file decided, where `file_s` is the file's decoded length in seconds.

    A file that is longer than the segment by at most 1 s is the segment alone, and is taken as a whole. A file that
    ends at most 1 s before the segment's end, or later, is the whole recording. Any other length fits neither, and
    raises AudioError.
    """
    if not clip.may_be_cut or clip.stop_s is None:
        return clip
    length_s = clip.stop_s - clip.start_s
    if file_s <= length_s + _MARGIN_S:
        return dataclasses.replace(clip, start_s=0.0, stop_s=None, may_be_cut=False)
    if file_s >= clip.stop_s - _MARGIN_S:
        return dataclasses.replace(clip, may_be_cut=False)
    reason = f"its {file_s:.1f} s are neither the segment of {length_s:g} s alone nor a recording with second "
    raise AudioError(str(clip.path), f"{reason}{clip.stop_s:g}")


def load_clip(clip: Clip, rate_hz: int, longest_s: float | None = None) -> Float32:
    """The samples of a clip: (samples,) mono float32 at `rate_hz`, at most the first `longest_s` seconds.

    Only that part is decoded. Raises AudioError without samples, and on NaN or infinite samples.
    """
    if clip.may_be_cut:
        clip = located(clip, duration_s(clip.path))
    stop_s, most = clip.stop_s, None
    if longest_s is not None:
        most = round(longest_s * rate_hz)
        # A little more, because the resampler needs samples on both sides of each output sample.
        cut_s = clip.start_s + longest_s + 0.1
        stop_s = cut_s if stop_s is None else min(cut_s, stop_s)
    wave = load(clip.path, rate_hz, clip.start_s, stop_s)
    if not len(wave) or not np.isfinite(wave).all():
        raise AudioError(str(clip.path), "NaN or infinite samples" if len(wave) else "no samples")
    return wave[:most]
