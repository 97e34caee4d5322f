"""The 527 AudioSet classes: index, machine id and name.

The table `class_labels_indices.csv` is from AudioSet (J. F. Gemmeke et al., Google), CC BY 4.0.
"""

from __future__ import annotations

import csv
import difflib
import functools
import importlib.resources
import re
from dataclasses import dataclass

from ced_edge.aliases import ALIASES, OUTSIDE
from ced_edge.errors import InputError
from ced_edge.files import sha256_json
from ced_edge.spec import N_CLASSES

TABLE_NAME = "class_labels_indices.csv"
_MID = re.compile(r"/[a-z]/[0-9a-z_]+")


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


def _key(name: str) -> str:
    """A name in the form in which the spellings of data sets are compared.

    FSD50K writes `_` for a space and `_and_` for a comma; older sets of Freesound write `_or_`.
    """
    words = name.casefold().replace("_", " ").replace(",", " and ").split()
    words = ["and" if word == "or" else word for word in words]
    # "Dishes, pots, and pans" has a comma and an "and" in one place.
    return " ".join(word for i, word in enumerate(words) if not (word == "and" and words[i - 1 : i] == ["and"]))


@functools.lru_cache(maxsize=1)
def _index_by_key() -> dict[str, int]:
    by_name = {label.name: label.index for label in labels()}
    # AudioSet's own names win.
    return {_key(k): by_name[name] for k, name in ALIASES.items()} | {_key(k): i for k, i in by_name.items()}


@functools.lru_cache(maxsize=1)
def _outside() -> frozenset[str]:
    return frozenset(map(_key, OUTSIDE))


def find(text: str) -> int | None:
    """Index of a class by mid or (in any case) name; None when there is no such class."""
    text = text.strip()
    return _index_by_text().get(text, _index_by_text().get(text.casefold()))


@functools.lru_cache(maxsize=4096)  # manifests repeat few labels very often
def _find_any(text: str, numbers: bool) -> int | None:
    """As `find`, and by index with `numbers`, and by the names of data sets: `Male_speech_and_man_speaking`."""
    if numbers and text.isdecimal() and len(text) < 10:  # `int` fails on thousands of digits
        return int(text) if int(text) < N_CLASSES else None
    index = find(text)
    # A text with commas may be several labels, so only AudioSet's own spelling joins them to one.
    return _index_by_key().get(_key(text)) if index is None and "," not in text else index


def index_of(text: str, numbers: bool = True) -> int:
    """Index of a class by mid, by name in any case, by the name that a data set uses, or with `numbers` by index.

    Raises InputError, which names the nearest classes.
    """
    text = text.strip()
    index = _find_any(text, numbers)
    if index is not None:
        return index
    if numbers and text.removeprefix("-").isdecimal():
        raise InputError(f"label {text:.20} is out of range: the indices are 0 to {N_CLASSES - 1}")
    given = "give an index, a mid or a name" if numbers else "give a mid or a name"
    keys = difflib.get_close_matches(_key(text[:100]), _index_by_key(), 3)
    nearest = "; ".join(dict.fromkeys(labels()[_index_by_key()[key]].name for key in keys))
    near = f" (the nearest: {nearest})" if nearest else ""
    raise InputError(f"unknown label {text[:100]!r}: {given} of the {N_CLASSES} AudioSet classes{near}")


@dataclass(frozen=True, slots=True)
class LabelField:
    """What a field of labels holds."""

    indices: tuple[int, ...]
    """Sorted indices of its classes."""
    outside: tuple[str, ...]
    """Labels that are no class of the 527: names in `aliases.OUTSIDE`, and mids of the larger ontology."""
    unknown: tuple[str, ...]
    """Labels that nobody knows, such as misspelt ones."""


def read_field(field: str, numbers: bool = True) -> LabelField:
    """Labels joined by `;` or `,`. Names may contain commas. Without `numbers`, an index is an unknown label."""
    found: set[int] = set()
    outside: list[str] = []
    unknown: list[str] = []
    for part in field.split(";"):
        words = part.split(",")
        i = 0
        while i < len(words):
            # Try the longest run of words first: "Male speech, man speaking" is one label, not two.
            runs = ((j, find(",".join(words[i:j]))) for j in range(min(len(words), i + _most_parts()), i + 1, -1))
            j, index = next(((j, k) for j, k in runs if k is not None), (i + 1, None))
            word = words[i].strip()
            if index is None and word:
                index = _find_any(word, numbers)
            if index is not None:
                found.add(index)
            elif word:
                (outside if _MID.fullmatch(word) or _key(word) in _outside() else unknown).append(word)
            i = j
    return LabelField(tuple(sorted(found)), tuple(outside), tuple(unknown))


def parse(field: str) -> tuple[int, ...]:
    """Labels joined by `;` or `,` -> sorted indices. Raises InputError for a label that is no class of the 527."""
    read = read_field(field)
    if wrong := (*read.unknown, *read.outside):
        index_of(wrong[0])  # raises
    return read.indices


@functools.lru_cache(maxsize=1)
def labels_hash() -> str:
    """SHA-256 of the mids and names in order. Files with the same hash mean the same class by output `i`."""
    return sha256_json([[label.mid, label.name] for label in labels()])
