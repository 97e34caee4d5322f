"""Tables of clips as text: our own manifests, those of known data sets, and AudioSet's lists of segments.

Which column has what follows from the header. `clips.py` makes clips of the rows.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ced_edge.errors import InputError
from ced_edge.files import read_bounded

NAME_COLUMNS = ("filename", "fname", "slice_file_name", "segment_id")
"""Our own and ESC-50's and DCASE's; FSD50K's; UrbanSound8K's; AudioSet strong's."""
LABEL_COLUMNS = ("mids", "labels", "event_labels", "event_label", "label", "category", "class")
"""The first of them that exists is read. FSD50K has two: `mids` needs no comparison of names."""
_GROUP_COLUMNS = ("group", "category", "class")
_SPLIT_COLUMNS = ("split", "fold")
_EVENT_COLUMNS = ("onset", "start_time_seconds")
"""A table with one of them lists events: several rows may be about one clip."""
_MAX_BYTES = 1 << 30
"""All of AudioSet, 2 million clips, takes 0.2 GB."""
_STRONG_S = 10.0
"""AudioSet's segments have 10 s. The names of AudioSet strong have no end."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, or the rows of a list of events that are about one clip."""

    line: int
    """Number of its first line in the table."""
    name: str
    """As the table writes it."""
    labels: tuple[str, ...]
    """A field of labels from each of the rows."""
    group: str | None = None
    folder: str = ""
    """Folder that the table does not write in front of the name: `fold3` of UrbanSound8K."""
    segment: tuple[str, float, float] | None = None
    """For a segment of AudioSet: YTID, start and end in seconds."""


@dataclass(frozen=True)
class Table:
    """All rows of a table, or those of the wanted split."""

    rows: Sequence[Row]
    numbers: bool = True
    """Whether labels may be indices of AudioSet. In a foreign column, a number is an index of that data set."""
    foreign: bool = False
    """Whether it is a data set's own table, whose audio may lie in another folder, or be converted since."""


def read_table(path: Path, split: str | None) -> Table:
    """Read a table of clips; with `split` only the rows of that split.

    The delimiter is a comma, a semicolon or a tab. Fields may be quoted, and a quoted field may hold line breaks.
    Spaces around a field do not count. Raises InputError, which names the line and the mend.
    """
    try:
        text = read_bounded(path, _MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as e:
        raise InputError(f"no such manifest or folder: {path}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no manifest: give a UTF-8 CSV or TSV file, or a folder of audio") from e
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}") from e
    first = [line for line in text[:4096].splitlines() if line.strip()][:8]
    if any(line.startswith("#") and "YTID" in line for line in first):
        if split is not None:
            raise InputError(f"{path} is a list of AudioSet segments and has no splits: leave the split out")
        # Comments become empty lines, so that the lines keep their numbers.
        records = _records(path, re.sub(r"(?m)^#.*$", "", text), ",")
        rows: dict[str, Row] = {}
        for line, fields in records:
            _check_name(path, line, fields[0], rows)
            rows[fields[0]] = _segment(path, line, fields)
        return Table(list(rows.values()), numbers=False)
    return _clips(path, text, split)


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, fields) of each record that is not blank."""
    # newline="" leaves line breaks inside of fields as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = [field.strip(" \t") for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as e:
            raise InputError(f"{path} line {line}: not readable as a table ({e})") from e
        if fields not in ([], [""]):
            yield line, fields


def _segment(path: Path, line: int, fields: Sequence[str]) -> Row:
    """A row of AudioSet's own lists: `YTID, start_seconds, end_seconds, positive_labels`."""
    times = re.fullmatch(r"(\d{1,9}(?:\.\d+)?) (\d{1,9}(?:\.\d+)?)", " ".join(fields[1:3]))
    if len(fields) != 4 or times is None or float(times[2]) <= float(times[1]):
        raise InputError(f"{path} line {line}: expected YTID, start_seconds, end_seconds, positive_labels")
    return Row(line, fields[0], (fields[3],), segment=(fields[0], float(times[1]), float(times[2])))


def _check_name(path: Path, line: int, name: str, rows: Mapping[str, Row]) -> None:
    if not name:
        raise InputError(f"{path} line {line}: the file name is empty")
    if name in rows:
        raise InputError(f"{path} line {line}: {name!r} is already on line {rows[name].line}; names must differ")


def _strong_segment(path: Path, line: int, name: str) -> tuple[str, float, float]:
    """`YTID_30000` of AudioSet strong -> YTID, 30.0, 40.0."""
    parts = re.fullmatch(r"(.+)_(\d{1,12})", name)
    if parts is None:
        raise InputError(f"{path} line {line}: {name!r} is no segment_id: expected YTID_milliseconds")
    return parts[1], int(parts[2]) / 1000, int(parts[2]) / 1000 + _STRONG_S


def _header(path: Path, text: str) -> tuple[str, list[str]]:
    """Delimiter and columns: the delimiter is the one that yields a column of file names."""
    if not text.strip():
        raise InputError(f"{path} is empty: a manifest starts with a header that has a `filename` column")
    found: list[tuple[str, list[str]]] = []
    problems: list[InputError] = []
    for delimiter in (",", ";", "\t"):
        try:
            found.append((delimiter, next(_records(path, text, delimiter), (1, []))[1]))
        except InputError as e:  # quoted columns are an error for the delimiters that do not separate them
            problems.append(e)
    if not found:
        raise problems[0]
    delimiter, columns = max(found, key=lambda f: (any(name in f[1] for name in NAME_COLUMNS), len(f[1])))
    listed = ", ".join(columns)
    if not any(name in columns for name in NAME_COLUMNS):
        also = ", ".join(NAME_COLUMNS[1:])
        raise InputError(f"{path} has no `filename` column: its columns are {listed} (also known: {also})")
    if len(set(columns)) < len(columns):
        raise InputError(f"{path} has two columns of one name: its columns are {listed}")
    return delimiter, columns


def _first(columns: Sequence[str], wanted: Sequence[str]) -> str:
    return next((name for name in wanted if name in columns), "")


def _clips(path: Path, text: str, split: str | None) -> Table:
    delimiter, columns = _header(path, text)
    names, labels = _first(columns, NAME_COLUMNS), _first(columns, LABEL_COLUMNS)
    groups, splits = _first(columns, _GROUP_COLUMNS), _first(columns, _SPLIT_COLUMNS)
    has_events = bool(_first(columns, _EVENT_COLUMNS))
    if split is not None and not splits:
        listed = ", ".join(columns)
        raise InputError(f"{path} has no `split` column to take {split!r} from: its columns are {listed}")
    rows: dict[str, Row] = {}
    there: set[str] = set()
    for line, row in _dicts(path, text, delimiter, columns):
        there.add(row.get(splits, ""))
        if split is not None and row[splits] not in (split, *split.split(",")):
            continue
        name, field = row[names], row.get(labels, "")
        if has_events and name in rows:
            rows[name] = dataclasses.replace(rows[name], labels=(*rows[name].labels, field))
            continue
        _check_name(path, line, name, rows)
        folder = f"fold{row['fold']}" if names == "slice_file_name" and row.get("fold") else ""
        segment = _strong_segment(path, line, name) if names == "segment_id" else None
        rows[name] = Row(line, name, (field,), row.get(groups) or None, folder, segment)
    if split is not None and there and split not in there and (missing := set(split.split(",")) - there):
        known = ", ".join(sorted(there))
        raise InputError(f"{path} has no row of {splits} {min(missing)!r}: its {splits}s are {known}")
    is_own = names == "filename" and labels in ("", "labels")
    # The lists that CED published name files in an archive. The user may keep them in other folders and formats.
    foreign = (not is_own and names != "segment_id") or "hdf5path" in columns
    return Table(list(rows.values()), numbers=labels == "labels", foreign=foreign)


def _dicts(path: Path, text: str, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, fields by column) of each record below the header."""
    records = _records(path, text, delimiter)
    next(records)
    for line, fields in records:
        if len(fields) != len(columns):
            raise InputError(f"{path} line {line}: {len(fields)} fields where the header has {len(columns)}")
        yield line, dict(zip(columns, fields, strict=True))


def audio_roots(path: Path) -> list[Path]:
    """The folders where a data set that is unpacked as published keeps the audio of its table `path`."""
    above = path.absolute().parent.parent
    parts = path.absolute().with_suffix("").parts
    # DCASE: metadata/train/weak.tsv lists the files in audio/train/weak.
    mirrored = [Path(*("audio" if part == "metadata" else part for part in parts))] if "metadata" in parts else []
    # ESC-50, UrbanSound8K: audio beside meta and metadata. FSD50K: FSD50K.dev_audio beside FSD50K.ground_truth.
    roots = [*mirrored, above / "audio", above / f"FSD50K.{path.stem}_audio"]
    return [path.parent, *(root for root in roots if os.path.isdir(root))]
