"""A short run of `make fuzz`, and tests that the run notices each kind of failure."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import fuzz
import numpy as np
import pytest
from fuzz_kinds import KINDS, Kind
from fuzz_mutations import mutate

from ced_edge.errors import InputError

CASES = 20
KEPT: list[bytearray] = []


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_end_in_a_result_or_in_one_line(name: str, tmp_path: Path) -> None:
    if name in ("m4a", "webm"):
        pytest.importorskip("av", reason="PyAV is not installed")
    kind, cases = KINDS[name], CASES if name != "tflite" else 5  # each of these starts a process
    files = {path: path.read_bytes() for path in kind.make(tmp_path)}
    for i in range(cases):
        path = list(files)[i % len(files)]
        path.write_bytes(mutate(files[path], list(files.values()), np.random.default_rng(i)))
        outcome = fuzz.read(kind, path)
        assert outcome.name != "failure", outcome
        path.write_bytes(files[path])


def test_damage_is_repeatable_and_differs() -> None:
    data = b'{"a": [1, 2, 3], "b": "text"}'
    damaged = [mutate(data, [data], np.random.default_rng(i)) for i in range(50)]
    assert damaged == [mutate(data, [data], np.random.default_rng(i)) for i in range(50)]
    assert len(set(damaged)) > 40


# Files whose text says what their reader does.


def make(folder: Path) -> list[Path]:
    (folder / "good").write_text("good")
    return [folder / "good"]


def behave(path: Path) -> None:
    match path.read_text():
        case "good":
            pass
        case "one line":
            raise InputError("one line")
        case "traceback":
            raise KeyError("x")
        case "warning":
            warnings.warn("overflow", RuntimeWarning, stacklevel=1)
        case "memory":
            KEPT.append(bytearray(600_000_000))
            KEPT.clear()
        case "hang":
            time.sleep(60)
        case "death":
            os._exit(3)


@pytest.mark.parametrize(
    ("behaviour", "name", "text"),
    [
        ("good", "result", ""),
        ("one line", "error", "one line"),
        ("traceback", "failure", "KeyError: 'x'"),
        ("warning", "failure", "RuntimeWarning: overflow"),
        ("memory", "failure", "took 600 MB"),
        ("hang", "failure", "took more than 2 s"),
        ("death", "failure", "died (exit code 3)"),
    ],
)
def test_failures_are_noticed(
    behaviour: str, name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short for what hangs only: on a busy machine the others may take some seconds.
    monkeypatch.setattr(fuzz, "SECONDS_LIMIT", 2.0 if behaviour == "hang" else 60.0)
    monkeypatch.setattr(fuzz, "mutate", lambda *_: behaviour.encode())
    count = fuzz.fuzz("kind", Kind(make, behave), 2, 0, tmp_path)
    assert (count.results, count.errors, len(count.failures)) == (
        2 * (name == "result"), 2 * (name == "error"), 2 * (name == "failure"),
    )  # fmt: skip
    kept = tmp_path / "kind@0@1@good"
    assert kept.exists() == (name == "failure")
    if name == "failure":
        assert all(failure.startswith(text) for failure in count.failures), count.failures
        assert kept.read_text() == behaviour
        assert (tmp_path / f"{kept.name}.txt").read_text().startswith(f"python tests/fuzz.py --repeat '{kept}'")
