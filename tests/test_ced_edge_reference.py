"""The reference files: what is written is read, and what does not belong together is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.proof import reference
from ced_edge.proof.reference import JSON_NAME, NPZ_NAME, Reference, read_reference


def make(seed: int = 0) -> Reference:
    rng = np.random.default_rng(seed)
    ap = rng.random(527)
    ap[3] = np.nan
    return Reference(
        ids=("a.wav", "folder/ü.ogg"),
        probs=rng.random((2, 527), np.float32),
        per_class_ap=ap,
        metrics={"mean_ap": 0.5, "top1_by_group": None, "clips": 2},
        device="a processor",
        dtype="fp32",
        versions={"torch": "2"},
        data_hash="d",
        weights_hash="w",
    )


def test_round_trip(tmp_path: Path) -> None:
    written = make()
    written.write(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / JSON_NAME):
        read = read_reference(path)
        np.testing.assert_array_equal(read.probs, written.probs)
        np.testing.assert_array_equal(read.per_class_ap, written.per_class_ap)
        for field in dataclasses.fields(Reference):
            if field.name not in ("probs", "per_class_ap"):
                assert getattr(read, field.name) == getattr(written, field.name)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [JSON_NAME, NPZ_NAME]


def test_the_same_reference_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make().write(tmp_path / name)
    for file in (JSON_NAME, NPZ_NAME):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_full_disk_leaves_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(0).write(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("np.savez_compressed", "sha256_file", "json.dumps"):
        with monkeypatch.context() as m:
            m.setattr(f"ced_edge.proof.reference.{name}", full)
            with pytest.raises(CedEdgeError, match="disk full while writing"):
                make(1).write(tmp_path)
        np.testing.assert_array_equal(read_reference(tmp_path).probs, make(0).probs)
        assert len(list(tmp_path.iterdir())) == 2


def test_a_pair_of_two_runs_is_refused(tmp_path: Path) -> None:
    make(0).write(tmp_path / "a")
    make(1).write(tmp_path / "b")
    (tmp_path / "a" / NPZ_NAME).replace(tmp_path / "b" / NPZ_NAME)
    with pytest.raises(InputError, match="does not belong"):
        read_reference(tmp_path / "b")
    with pytest.raises(InputError, match="no such file"):
        read_reference(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "no reference of format 1"),
        ({"labels_hash": "other"}, "another list of classes"),
        ({"device": None}, "lack 'device'"),
    ],
)
def test_a_changed_json_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    make().write(tmp_path)
    text = json.loads((tmp_path / JSON_NAME).read_text()) | change
    (tmp_path / JSON_NAME).write_text(json.dumps({k: v for k, v in text.items() if v is not None}))
    with pytest.raises(InputError, match=message):
        read_reference(tmp_path)


def test_a_missing_or_broken_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_reference(tmp_path)
    (tmp_path / JSON_NAME).write_text("[1, 2")
    with pytest.raises(InputError, match="not readable JSON"):
        read_reference(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ("a.wav",)},
        {"ids": ("a.wav", "a.wav")},
        {"probs": np.full((2, 527), np.nan, np.float32)},
        {"probs": np.full((2, 527), 1.5, np.float32)},
        {"probs": np.zeros((2, 526), np.float32)},
        {"per_class_ap": np.zeros((1, 527))},
    ],
)
def test_what_does_not_fit_is_no_reference(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="reference"):
        dataclasses.replace(make(), **change)  # type: ignore[arg-type]


def test_format_is_written() -> None:
    assert reference.FORMAT == 1
