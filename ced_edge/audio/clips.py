"""Lists of clips: a folder of audio, a CSV or TSV manifest, or a published list of AudioSet segments."""

from __future__ import annotations

import bisect
import collections
import csv
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ced_edge import labels
from ced_edge.arrays import Float32
from ced_edge.audio.base import AUDIO_SUFFIXES, AudioError
from ced_edge.audio.read import duration_s, load
from ced_edge.errors import InputError
from ced_edge.files import read_bounded, sha256_file, sha256_json

_MAX_MANIFEST_BYTES = 1 << 30
"""All of AudioSet, 2 million clips, takes 0.2 GB."""


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


def read_manifest(path: Path, split: str | None = None, audio_root: Path | None = None) -> list[Clip]:
    """Clips of a folder, of a CSV/TSV with a `filename` column, or of an AudioSet segments CSV.

    Optional columns: `labels` (indices, mids or names joined by `;` or `,`), `group`, `split`; others are
    ignored. With `split` only the rows of that split are read. File names are relative to `audio_root`, by default
    the folder of the manifest. The files need not exist. Raises InputError, which names the line and the fix.
    """
    if os.path.isdir(path):
        if split is not None:
            raise InputError(f"{path} is a folder and has no splits: leave the split out, or give a manifest")
        return _folder(path)
    lines = _lines(path)
    root = path.parent if audio_root is None else audio_root
    comments = [line for _, line in lines[:8] if line.startswith("#")]
    if any("YTID" in line for line in comments):
        if split is not None:
            raise InputError(f"{path} is a list of AudioSet segments and has no splits: leave the split out")
        clips = _segments(path, lines, root)
    else:
        clips = _table(path, lines, split, root)
    if not clips:
        raise InputError(f"{path} lists no clips")
    return clips


def _refuse(error: OSError) -> None:
    raise InputError(
        f"cannot read the folder {error.filename}: {error.strerror}: give the right to read it, or move it away"
    ) from error


def audio_files(folder: Path, failed: Callable[[OSError], None] = _refuse) -> list[Path]:
    """All audio files under `folder`, sorted. The suffix decides; no file is opened.

    Links to folders are followed. A folder with several paths (through a link, or a loop of links) counts once, by
    its own path. `failed` is called for each folder that cannot be read; by default it raises InputError.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    # Links wait until all real folders are done, so that a folder is listed by its own path.
    folders, links = [folder], collections.deque[Path]()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        try:
            stat = here.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(here) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as e:
            failed(e)
            continue
        for entry in listed:
            is_audio = Path(entry.name).suffix.lower() in AUDIO_SUFFIXES
            try:
                is_folder = entry.is_dir()
            except OSError as e:  # unknown; if it is an audio file, its reader will report the reason
                is_folder = False
                if not is_audio:
                    failed(e)
            if is_folder:
                (links if entry.is_symlink() else folders).append(here / entry.name)
            elif is_audio:
                found.append(here / entry.name)
    return sorted(found)


def read_clips(data: Sequence[Path], split: str | None, root: Path | None) -> list[Clip]:
    """The clips of several manifests or folders. If names repeat, each gets its manifest's name in front."""
    parts = [read_manifest(path, split, root) for path in data]
    names = [clip.id for part in parts for clip in part]
    if len(set(names)) == len(names):
        return [clip for part in parts for clip in part]
    stems = [path.stem for path in data]
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


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of all lines that are not blank."""
    try:
        text = read_bounded(path, _MAX_MANIFEST_BYTES).decode("utf-8-sig")
    except FileNotFoundError as e:
        raise InputError(f"no such manifest or folder: {path}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no manifest: give a UTF-8 CSV or TSV file, or a folder of audio") from e
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty: a manifest starts with a header that has a `filename` column")
    return lines


def _folder(folder: Path) -> list[Clip]:
    files = sorted(p.relative_to(folder).as_posix() for p in audio_files(folder))
    if not files:
        raise InputError(f"no audio in {folder}: searched for {', '.join(sorted(AUDIO_SUFFIXES))}")
    return [Clip(name, folder / name) for name in files]


def _rows(path: Path, lines: Sequence[tuple[int, str]], delimiter: str) -> Iterable[tuple[int, list[str]]]:
    """(line number, stripped fields) of each line."""
    for number, line in lines:
        try:
            fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
        except (csv.Error, StopIteration) as e:
            raise InputError(f"{path} line {number}: not readable as a table ({e})") from e
        yield number, [field.strip() for field in fields]


def _labels(path: Path, number: int, field: str | None) -> tuple[int, ...] | None:
    try:
        return labels.parse(field) or None if field else None
    except InputError as e:
        raise InputError(f"{path} line {number}: {e}") from e


def _table(path: Path, lines: Sequence[tuple[int, str]], split: str | None, root: Path) -> list[Clip]:
    rows = iter(_rows(path, lines, "\t" if "\t" in lines[0][1] else ","))
    _, header = next(rows)
    if "filename" not in header:
        raise InputError(f"{path} has no `filename` column: its columns are {', '.join(header)}")
    if len(set(header)) < len(header):
        raise InputError(f"{path} has two columns of one name: its columns are {', '.join(header)}")
    if split is not None and "split" not in header:
        raise InputError(f"{path} has no `split` column to take {split!r} from: its columns are {', '.join(header)}")
    # The lists that CED published name files in an archive. The user may keep them in other folders and formats.
    by_stem = _by_stem(root) if "hdf5path" in header else {}
    clips: list[Clip] = []
    seen: dict[str, int] = {}
    splits: set[str] = set()
    for number, fields in rows:
        if len(fields) != len(header):
            raise InputError(f"{path} line {number}: {len(fields)} fields where the header has {len(header)}")
        row = dict(zip(header, fields, strict=True))
        splits.add(row.get("split", ""))
        if split is not None and row["split"] != split:
            continue
        name = row["filename"]
        _check_name(path, number, name, seen)
        file = root / name
        if by_stem and not os.path.exists(file):
            file = by_stem.get(Path(name).stem, file)
        clips.append(Clip(name, file, _labels(path, number, row.get("labels")), row.get("group") or None))
    if split is not None and splits and not clips:
        raise InputError(f"{path} has no row of split {split!r}: its splits are {', '.join(sorted(splits))}")
    return clips


def _check_name(path: Path, number: int, name: str, seen: dict[str, int]) -> None:
    if not name:
        raise InputError(f"{path} line {number}: the file name is empty")
    if name in seen:
        raise InputError(f"{path} line {number}: {name!r} is already on line {seen[name]}; names must differ")
    seen[name] = number


def _by_stem(root: Path) -> dict[str, Path]:
    """File name without folder and suffix -> audio file. Of several files, the first in sorted order."""
    return {p.stem: p for p in reversed(audio_files(root))}


def _segments(path: Path, lines: Sequence[tuple[int, str]], root: Path) -> list[Clip]:
    """AudioSet's own lists: `YTID, start_seconds, end_seconds, positive_labels` below comment lines."""
    by_stem = _by_stem(root)
    stems = sorted(by_stem)
    clips: list[Clip] = []
    seen: dict[str, int] = {}
    for number, fields in _rows(path, [x for x in lines if not x[1].startswith("#")], ","):
        times = re.fullmatch(r"(\d{1,9}(?:\.\d+)?) (\d{1,9}(?:\.\d+)?)", " ".join(fields[1:3]))
        if len(fields) != 4 or times is None or float(times[2]) <= float(times[1]):
            raise InputError(f"{path} line {number}: expected YTID, start_seconds, end_seconds, positive_labels")
        name, start_s, stop_s = fields[0], float(times[1]), float(times[2])
        _check_name(path, number, name, seen)
        tags = _labels(path, number, fields[3])
        cut = _first(stems, f"{name}_{round(start_s * 1000)}") or _first(stems, f"Y{name}_{round(start_s * 1000)}")
        whole = next((stem for stem in (name, f"Y{name}") if stem in by_stem), None)
        file = by_stem.get(cut or whole or "", root / f"{name}.wav")
        if cut is None and _is_uncut(file, start_s, stop_s):
            clips.append(Clip(name, file, tags, None, start_s, stop_s))
        else:
            clips.append(Clip(name, file, tags))
    return clips


def _first(stems: Sequence[str], start: str) -> str | None:
    """The first of the sorted stems that equals `start`, or continues with `_` (such as an end time)."""
    # By index: AudioSet has two million stems, and a slice would copy them for every row.
    for i in range(bisect.bisect_left(stems, start), len(stems)):
        stem = stems[i]
        if not stem.startswith(start):
            return None
        if stem == start or stem[len(start)] == "_":
            return stem
    return None


def _is_uncut(file: Path, start_s: float, stop_s: float) -> bool:
    """Whether the file is the whole recording, not the segment alone: longer than the segment by over 1 s."""
    try:
        return os.path.exists(file) and duration_s(file) > stop_s - start_s + 1.0
    except AudioError:
        return False  # the error is reported later, when the clip is read


def load_clip(clip: Clip, rate_hz: int, longest_s: float | None = None) -> Float32:
    """The samples of a clip: (samples,) mono float32 at `rate_hz`, at most the first `longest_s` seconds.

    Only that part is decoded. Raises AudioError without samples, and on NaN or infinite samples.
    """
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
