"""The reference files: what is written is read, and what does not belong together is refused."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
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


def rewrite(folder: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **fields: object) -> None:
    """Write another npz, and a JSON with the right hash of it, as an attacker can."""
    with zipfile.ZipFile(folder / NPZ_NAME, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    text = json.loads((folder / JSON_NAME).read_text()) | {"npz_sha256": sha256_file(folder / NPZ_NAME)} | fields
    (folder / JSON_NAME).write_text(json.dumps(text))


def npy(array: np.ndarray[Any, Any], **header: object) -> bytes:
    """The array as .npy, where `header` may claim another shape or type."""
    f = io.BytesIO()
    np.lib.format.write_array_header_1_0(f, {**np.lib.format.header_data_from_array_1_0(array), **header})
    return f.getvalue() + array.tobytes()


def header(text: str) -> bytes:
    """A .npy of version 1.0 with this header and no data."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def members(**changed: bytes) -> dict[str, bytes]:
    r = make()
    right = {"ids": npy(np.array(r.ids)), "probs": npy(r.probs), "per_class_ap": npy(r.per_class_ap)}
    return {f"{name}.npy": content for name, content in {**right, **changed}.items()}


def test_what_the_helper_writes_is_read(tmp_path: Path) -> None:
    make().write(tmp_path)
    rewrite(tmp_path, members())
    np.testing.assert_array_equal(read_reference(tmp_path).probs, make().probs)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"probs": b"no array"}, r"reference\.npz is damaged"),
        ({"probs": npy(make().probs, shape=(10**6, 10**6))}, "is damaged"),
        ({"probs": npy(make().probs, shape=(2, 10**30))}, "is damaged"),
        ({"probs": npy(make().probs)[:-4]}, "is damaged"),
        ({"probs": header("{'descr': ( ")}, "is damaged"),
        ({"probs": header("{[]: 1}")}, "is damaged"),
        ({"ids": npy(np.full(2, 0x110000, "<u4"), descr="<U1")}, "is damaged"),
        ({"probs": npy(make().probs.astype(np.float64))}, "probs is of the type float64"),
        ({"ids": npy(np.zeros(0, "U1"), shape=(2,))}, "is damaged"),
        ({"ids": npy(np.arange(2))}, "ids is of the type int64"),
        ({"ids": npy(np.array("a"))}, "a reference of 1 clips does not fit"),
        ({"per_class_ap": npy(np.zeros((527, 1)))}, "does not fit"),
    ],
)
def test_an_npz_that_lies_is_refused(tmp_path: Path, changed: dict[str, bytes], message: str) -> None:
    make().write(tmp_path)
    rewrite(tmp_path, members(**changed))
    with pytest.raises(InputError, match=message):
        read_reference(tmp_path)


def test_no_pickle_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make().write(tmp_path / "run")
    f = io.BytesIO()
    np.lib.format.write_array(f, np.array([Evil()], object), allow_pickle=True)
    rewrite(tmp_path / "run", members(ids=f.getvalue()))
    with pytest.raises(InputError, match="ids is of the type object"):
        read_reference(tmp_path / "run")
    assert not Path("executed").exists()


def test_a_small_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    """100,000 clips whose probabilities are all 0 are 211 MB, packed into 0.2."""
    make().write(tmp_path)
    bomb = npy(np.zeros(100_000 * 527, np.float32), shape=(100_000, 527))
    rewrite(tmp_path, members(probs=bomb))
    assert (tmp_path / NPZ_NAME).stat().st_size < 1_000_000
    tracemalloc.start()
    with pytest.raises(InputError, match=r"reference\.npz would unpack to 211 MB, more than a reference of its size"):
        read_reference(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_what_is_no_archive_or_lacks_an_array(tmp_path: Path) -> None:
    make().write(tmp_path)
    few = members()
    del few["probs.npy"]
    rewrite(tmp_path, few)
    with pytest.raises(InputError, match=r"lack .*probs\.npy"):
        read_reference(tmp_path)
    rewrite(tmp_path, members(), zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match="another method than deflate"):
        read_reference(tmp_path)
    (tmp_path / NPZ_NAME).write_bytes(b"no archive")
    text = json.loads((tmp_path / JSON_NAME).read_text()) | {"npz_sha256": sha256_file(tmp_path / NPZ_NAME)}
    (tmp_path / JSON_NAME).write_text(json.dumps(text))
    with pytest.raises(InputError, match="is damaged"):
        read_reference(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metrics": 3}, "metrics of a reference must be numbers"),
        ({"metrics": {"mean_ap": "high"}}, "metrics of a reference must be numbers"),
        ({"metrics": {"clips": 2}}, "mean_ap among them"),
        ({"metrics": {"mean_ap": 0.5, "rejected": float("nan")}}, "metrics of a reference must be numbers"),
        ({"weights_hash": 7}, "must be texts"),
    ],
)
def test_fields_of_another_type_are_refused(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    make().write(tmp_path)
    rewrite(tmp_path, members(), **fields)
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
