"""The 527 AudioSet classes: index, machine id and name.

The table `class_labels_indices.csv` is from AudioSet (J. F. Gemmeke et al., Google), CC BY 4.0.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from dataclasses import dataclass

from ced_edge.errors import InputError
from ced_edge.files import sha256_json
from ced_edge.spec import N_CLASSES

TABLE_NAME = "class_labels_indices.csv"


@dataclass(frozen=True, slots=True)
class Label:
    """One class. `mid` is its machine id in the AudioSet ontology, such as `/m/09x0r`."""

    index: int
    mid: str
    name: str


def table() -> str:
    """The text of the table, exactly as AudioSet publishes it."""
    return (importlib.resources.files("ced_edge") / TABLE_NAME).read_text(encoding="utf-8")


@functools.lru_cache(maxsize=1)
def labels() -> tuple[Label, ...]:
    """All 527 classes, in the order of the model's outputs."""
    rows = csv.DictReader(table().splitlines())
    return tuple(Label(int(r["index"]), r["mid"], r["display_name"]) for r in rows)


@functools.lru_cache(maxsize=1)
def _most_parts() -> int:
    """Parts of the name with the most commas: "Male singing, ..., song" has to be found whole."""
    return max(label.name.count(",") for label in labels()) + 1


@functools.lru_cache(maxsize=1)
def _index_by_text() -> dict[str, int]:
    return {key: label.index for label in labels() for key in (label.mid, label.name.casefold())}


def find(text: str) -> int | None:
    """Index of a class by mid or (in any case) name; None when there is no such class."""
    text = text.strip()
    return _index_by_text().get(text, _index_by_text().get(text.casefold()))


def index_of(text: str) -> int:
    """Index of a class given as index, mid or (in any case) name. Raises InputError."""
    text = text.strip()
    if text.removeprefix("-").isdecimal():
        # `int` fails on thousands of digits; nine are more than enough.
        if len(text) > 9 or not 0 <= int(text) < N_CLASSES:
            raise InputError(f"label {text:.20} is out of range: the indices are 0 to {N_CLASSES - 1}")
        return int(text)
    if (index := find(text)) is None:
        raise InputError(f"unknown label {text!r}: give an index, a mid or a name of the {N_CLASSES} AudioSet classes")
    return index


def parse(field: str) -> tuple[int, ...]:
    """Labels joined by `;` or `,` -> sorted indices. Names may contain commas. Raises InputError."""
    found: set[int] = set()
    for part in field.split(";"):
        words = part.split(",")
        i = 0
        while i < len(words):
            # Try the longest run of words first: "Male speech, man speaking" is one label, not two.
            runs = ((j, find(",".join(words[i:j]))) for j in range(min(len(words), i + _most_parts()), i + 1, -1))
            j, index = next(((j, k) for j, k in runs if k is not None), (i + 1, None))
            if index is not None or words[i].strip():
                found.add(index_of(words[i]) if index is None else index)
            i = j
    return tuple(sorted(found))


@functools.lru_cache(maxsize=1)
def labels_hash() -> str:
    """SHA-256 of the mids and names in order. Files with the same hash mean the same class by output `i`."""
    return sha256_json([[label.mid, label.name] for label in labels()])
