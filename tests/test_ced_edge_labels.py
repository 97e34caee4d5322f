"""The class table, and the ways to write a label."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ced_edge import labels
from ced_edge.errors import InputError


def test_the_table_is_the_published_one(shared: Path) -> None:
    with (shared / "meta" / "class_labels_indices.csv").open(newline="") as f:
        published = [(int(r["index"]), r["mid"], r["display_name"]) for r in csv.DictReader(f)]
    assert [(x.index, x.mid, x.name) for x in labels.labels()] == published


def test_the_table_is_complete_and_without_doubles() -> None:
    table = labels.labels()
    assert [x.index for x in table] == list(range(527))
    assert len({x.mid for x in table}) == len({x.name.casefold() for x in table}) == 527
    assert (table[0].mid, table[0].name, table[500].name, table[526].name) == (
        "/m/09x0r",
        "Speech",
        "Silence",
        "Field recording",
    )


@pytest.mark.parametrize("text", ["1", " 1 ", "/m/05zppz", "Male speech, man speaking", "male SPEECH, man speaking "])
def test_index_mid_and_name_mean_the_same(text: str) -> None:
    assert labels.index_of(text) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("527", "label 527 is out of range: the indices are 0 to 526"),
        ("-1", "label -1 is out of range: the indices are 0 to 526"),
        ("Spech", "unknown label 'Spech': give an index, a mid or a name of the 527 AudioSet classes"),
        ("", "unknown label ''"),
        ("1.5", "unknown label '1.5'"),
        ("--1", "unknown label '--1'"),
    ],
)
def test_a_wrong_label_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        labels.index_of(text)
    assert message in str(caught.value)


@given(
    indices=st.sets(st.integers(0, 526), max_size=8),
    separator=st.sampled_from([";", ",", "; ", " ; "]),
    form=st.sampled_from(["index", "mid", "name"]),
)
def test_joined_labels_come_apart_again(indices: set[int], separator: str, form: str) -> None:
    table = labels.labels()
    words = [str(i) if form == "index" else table[i].mid if form == "mid" else table[i].name for i in indices]
    assert labels.parse(separator.join(words)) == tuple(sorted(indices))


def test_mixed_and_repeated_labels() -> None:
    assert labels.parse("Dog, /m/09x0r; 74;Male speech, man speaking, Music") == (0, 1, 74, 137)
    assert labels.parse("74;75;") == (74, 75)
    assert labels.parse("") == ()
    with pytest.raises(InputError, match="unknown label 'man'"):
        labels.parse("Music, man")


def test_the_hash_is_over_mids_and_names_in_order() -> None:
    text = json.dumps([[x.mid, x.name] for x in labels.labels()], separators=(",", ":"))
    assert labels.labels_hash() == hashlib.sha256(text.encode()).hexdigest()


def test_a_long_field_is_parsed_or_refused_at_once() -> None:
    """Each part is compared with names of a few parts only, not with all that follows."""
    assert labels.parse(",".join(["1", "2"] * 20_000)) == (1, 2)
    with pytest.raises(InputError, match="label 99999999999999999999 is out of range"):
        labels.index_of("9" * 10_000)
