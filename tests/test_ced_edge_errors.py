"""The text of an error is one line that a terminal only prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Call, refused
from hypothesis import given
from hypothesis import strategies as st

from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import read_manifest
from ced_edge.errors import CedEdgeError, InputError, printable


@given(st.text())
def test_any_text_is_one_printable_line(text: str) -> None:
    for error in (CedEdgeError(text), InputError(text), AudioError(text, text)):
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Vögel, 鳥: 3 %", "Vögel, 鳥: 3 %"),
        ("a\nb\r\n\n  c", "a b c"),
        ("\x1b[2Jx", r"\x1b[2Jx"),  # clears the screen
        ("a\tb\0", r"a\tb\x00"),
        ("a\u2028b", "a b"),
        ("\u202egnp.wav", r"\u202egnp.wav"),  # shows what follows from right to left
        ("caf\udce9.wav", r"caf\udce9.wav"),  # a file name that is not UTF-8
    ],
)
def test_line_breaks_and_control_characters(text: str, line: str) -> None:
    assert printable(text) == line == str(CedEdgeError(text))


def test_a_column_of_a_table_cannot_clear_the_screen(tmp_path: Path, call: Call) -> None:
    (tmp_path / "a.csv").write_text("\x1b[2Jfile,b\nx,y\n")
    with pytest.raises(InputError, match=r"\\x1b\[2Jfile"):
        read_manifest(tmp_path / "a.csv")
    refused(call("pack", tmp_path / "a.csv", "--out", tmp_path / "pack"), 2, r"\x1b[2Jfile")
