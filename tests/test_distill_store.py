"""The store: its size, its precision, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import distill.teaching.store
from ced_edge.errors import CedEdgeError, InputError
from distill.teaching.store import CLEAN_EPOCH, Store, TopK, dequantise, quantise
from distill.teaching.views import ViewRecipe

N = 527
SHARD = "shard-000000.tar"
RECIPE = ViewRecipe(windows=((2, 1.0),))
TEACHERS = [{"name": "t", "sha256": "0" * 64, "rate_hz": 16_000, "n_known": N}]

quick = settings(deadline=None, max_examples=60)


def store_at(path: Path, **changes: Any) -> Store:
    return dataclasses.replace(Store(path, RECIPE, TEACHERS, 20, "f" * 64), **changes)


def realistic(clips: int, seed: int = 0) -> NDArray[np.float32]:
    """Probabilities such as taggers give: two or three classes near 1, a slope of some tens, and a long, low tail."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-8.0, 1.5, N) + rng.normal(0.0, 1.5, (clips, N))
    for row in logits:
        row[rng.choice(N, 3, replace=False)] += rng.uniform(4.0, 10.0, 3)
    return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# Numbers


@given(hnp.arrays(np.float32, 50, elements=st.floats(0, 1, width=32)))
@quick
def test_rounding_stays_within_its_bound(p: NDArray[np.float32]) -> None:
    """Half a step of sqrt(p), 1/510, is at most sqrt(p)/255 + 1/510^2 of p."""
    kept = dequantise(quantise(p))
    assert kept.dtype == np.float32
    assert (np.abs(kept - p) <= np.sqrt(p) / 255 + 1 / 510**2 + 1e-7).all()
    order = np.argsort(p)
    assert (np.diff(kept[order]) >= 0).all()


def test_rounding_by_hand() -> None:
    p = np.array([0.0, 1.0, 0.25, 1 / 255**2, 0.2 / 255**2, -0.1, 1.1], np.float32)
    assert quantise(p).tolist() == [0, 255, 128, 1, 0, 0, 255]  # sqrt(0.25) * 255 = 127.5, to even
    assert dequantise(np.array([0, 51, 255], np.uint8)).tolist() == [0.0, pytest.approx(0.04), 1.0]
    every = np.arange(256, dtype=np.uint8)
    assert (quantise(dequantise(every)) == every).all()


def test_equal_probabilities_are_kept_in_class_order() -> None:
    p = np.zeros((2, N), np.float32)
    p[0, [500, 30, 7]] = 0.5
    p[1, 526] = 0.1
    top_k = TopK.top_k(p, 5)
    assert top_k.index.tolist() == [[7, 30, 500, 0, 1], [526, 0, 1, 2, 3]]
    assert top_k.value.tolist() == [[0.5, 0.5, 0.5, 0.0, 0.0], [pytest.approx(0.1), 0.0, 0.0, 0.0, 0.0]]
    assert top_k.tail.tolist() == [0.0, 0.0]


@given(
    hnp.arrays(np.float32, (3, N), elements=st.integers(0, 8).map(lambda i: i / 8)),
    st.integers(1, N),
)
@settings(deadline=None, max_examples=25)
def test_top_k_against_sorting_in_python(p: NDArray[np.float32], k: int) -> None:
    top_k = TopK.top_k(p, k)
    for row, index, value, tail in zip(p.tolist(), top_k.index, top_k.value, top_k.tail, strict=True):
        want = sorted(range(N), key=lambda c: (-row[c], c))
        assert index.tolist() == want[:k]
        assert value.tolist() == [row[c] for c in want[:k]]
        assert tail == sum(row[c] for c in want[k:])


def test_fill_rules_by_hand() -> None:
    top_k = TopK(
        np.array([[3, 1], [0, 526]], np.uint16),
        np.array([[0.9, 0.5], [0.2, 0.001]], np.float32),
        np.array([10.5, 52.5], np.float32),
    )
    # 525 classes share the tail: 10.5 / 525 = 0.02; 52.5 / 525 = 0.1 is more than a class outside can have.
    for rule, rest in (("tail", [0.02, 0.001]), ("smallest", [0.5 / 525, 0.001 / 525]), ("zero", [0.0, 0.0])):
        dense, kept = top_k.dense(rule)
        assert dense.dtype == np.float32
        want = np.repeat(np.array(rest)[:, None], N, axis=1)
        want[0, [3, 1]], want[1, [0, 526]] = (0.9, 0.5), (0.2, 0.001)
        np.testing.assert_allclose(dense, want, rtol=1e-6)
        assert np.argwhere(kept).tolist() == [[0, 1], [0, 3], [1, 0], [1, 526]]
    with pytest.raises(InputError, match=r"'none'.*tail, smallest or zero"):
        top_k.dense("none")


def test_all_classes_kept() -> None:
    p = realistic(4)
    dense, kept = TopK.top_k(p, N).dense("tail")
    np.testing.assert_array_equal(dense, p)
    assert kept.all()


def test_tail_rule_keeps_the_sum() -> None:
    p = realistic(50)
    dense, _ = TopK.top_k(p, 20).dense("tail")
    np.testing.assert_allclose(dense.sum(axis=1), p.sum(axis=1), rtol=1e-5)


# Files


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, clips: int, k: int, seed: int) -> None:
    store = store_at(tmp_path_factory.mktemp("store"), k=k)
    top_k = TopK.top_k(realistic(clips, seed), k)
    assert not store.done(1, SHARD)
    store.write(1, SHARD, top_k)
    assert store.done(1, SHARD)
    got = store.read(1, SHARD, clips)
    np.testing.assert_array_equal(got.index, top_k.index)
    np.testing.assert_array_equal(got.value, dequantise(quantise(top_k.value)))
    np.testing.assert_allclose(got.tail, top_k.tail, rtol=2**-11)
    again = store_at(tmp_path_factory.mktemp("again"), k=k)
    again.write(1, SHARD, top_k)
    assert files(store.path) == files(again.path)


@pytest.mark.parametrize("clips", [512, 1_024])
def test_bytes_per_view(tmp_path: Path, clips: int) -> None:
    """All files counted. 84 bytes and a file name are the published cost."""
    store = store_at(tmp_path)
    store.create()
    for epoch in store.epochs:
        store.write(epoch, SHARD, TopK.top_k(realistic(clips, epoch), 20))
    assert store.bytes() == sum(len(content) for content in files(tmp_path).values())
    assert store.bytes() / (2 * clips) <= 48


def test_bytes_per_view_at_worst(tmp_path: Path) -> None:
    """Predictions without any structure, such as no teacher gives."""
    store = store_at(tmp_path)
    store.create()
    rng = np.random.default_rng(0)
    for epoch in store.epochs:
        store.write(epoch, SHARD, TopK.top_k(rng.random((1_024, N), np.float32) ** 200, 20))
    assert store.bytes() / (2 * 1_024) <= 48


def test_store_survives_reopening(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.create()
    assert Store.open(tmp_path) == store
    before = files(tmp_path)
    store.create()
    assert files(tmp_path) == before


# Refusals


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pack": "e" * 64}, "pack"),
        ({"recipe": dataclasses.replace(RECIPE, seed=1)}, "recipe"),
        ({"recipe": dataclasses.replace(RECIPE, windows=((2, 2.0),))}, "windows"),
        ({"recipe": dataclasses.replace(RECIPE, windows=((1, 1.0), (5, 3.0)))}, "windows"),
        ({"teachers": [{**TEACHERS[0], "sha256": "1" * 64}]}, "teachers"),
        ({"teachers": [*TEACHERS, {**TEACHERS[0], "name": "u"}]}, "teachers"),
        ({"k": 19}, "k"),
        ({"clean": True}, "recipe and clean"),
        ({"pack": "e" * 64, "k": 3}, "pack and k"),
    ],
)
def test_another_store_is_refused_by_name_and_left_alone(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    store = store_at(tmp_path)
    store.create()
    store.write(0, SHARD, TopK.top_k(realistic(4), 20))
    before = files(tmp_path)
    other = store_at(tmp_path, **changes)
    for refused in (other.create, other.check):
        with pytest.raises(InputError, match=rf"{tmp_path} is a store of (another|other) {named}: .*delete it"):
            refused()
    epoch = CLEAN_EPOCH if other.clean else 0
    assert files(tmp_path) == before
    if not other.clean and other.recipe.windows != ((1, 1.0), (5, 3.0)):  # its first epoch is the same
        with pytest.raises(InputError, match="other clips, views or teachers"):
            other.done(epoch, SHARD)


def test_epochs_can_be_added_and_are_never_lost(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.create()
    store.write(0, SHARD, TopK.top_k(realistic(4), 20))
    longer = store_at(tmp_path, recipe=dataclasses.replace(RECIPE, windows=((2, 1.0), (3, 5.0))))
    assert not longer.check()
    longer.create()
    assert longer.check()
    assert longer.done(0, SHARD)
    assert Store.open(tmp_path) == longer
    store.create()
    assert Store.open(tmp_path) == longer


def test_files_of_other_epochs_and_shards_are_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.write(0, SHARD, TopK.top_k(realistic(4), 20))
    for epoch, shard in ((1, SHARD), (0, "shard-000001.tar")):
        store.file(epoch, shard).parent.mkdir(exist_ok=True)
        shutil.copy(store.file(0, SHARD), store.file(epoch, shard))
        with pytest.raises(InputError, match="other clips, views or teachers"):
            store.read(epoch, shard, 4)


def test_missing_predictions_and_missing_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ced-edge teach"):
        store_at(tmp_path).read(0, SHARD, 4)
    with pytest.raises(InputError, match="no store at"):
        Store.open(tmp_path / "none")


def test_wrong_number_of_clips(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.write(0, SHARD, TopK.top_k(realistic(4), 20))
    with pytest.raises(InputError, match="4 predictions, not 5"):
        store.read(0, SHARD, 5)


@pytest.mark.parametrize("k", [0, N + 1])
def test_k_out_of_range(tmp_path: Path, k: int) -> None:
    with pytest.raises(InputError, match="-k must be within 1 and 527"):
        store_at(tmp_path, k=k)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "recipe": []}', "\x00\xff"],
)
def test_broken_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=str(tmp_path)):
        Store.open(tmp_path)


@pytest.mark.parametrize("field", ["recipe", "k", "pack", "teachers", "clean"])
def test_header_without_a_field(tmp_path: Path, field: str) -> None:
    store_at(tmp_path).create()
    file = tmp_path / "store.json"
    header = json.loads(file.read_text())
    del header[field]
    file.write_text(json.dumps(header))
    with pytest.raises(InputError, match=str(file)):
        Store.open(tmp_path)


# Damage


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = store_at(tmp_path_factory.mktemp("written"))
    store.write(0, SHARD, TopK.top_k(realistic(40), 20))
    return store


def read_damaged(tmp: Path, damaged: bytes) -> TopK:
    store = store_at(tmp)
    store.file(0, SHARD).parent.mkdir(exist_ok=True)
    store.file(0, SHARD).write_bytes(damaged)
    return store.read(0, SHARD, 40)


@given(share=st.floats(0, 1, exclude_max=True))
@quick
def test_truncated_file(written: Store, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    whole = written.file(0, SHARD).read_bytes()
    with pytest.raises(InputError, match=r"is broken .*delete it and run `ced-edge teach` again"):
        read_damaged(tmp_path_factory.mktemp("cut"), whole[: int(share * len(whole))])


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=300)
def test_flipped_bit(written: Store, tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    """Damage is refused or does no harm: never other predictions."""
    whole = bytearray(written.file(0, SHARD).read_bytes())
    whole[int(place * len(whole))] ^= 1 << bit
    try:
        got = read_damaged(tmp_path_factory.mktemp("flip"), bytes(whole))
    except InputError:
        return
    want = written.read(0, SHARD, 40)
    for a, b in zip(dataclasses.astuple(got), dataclasses.astuple(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all, but some text"])
def test_no_parquet(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="is broken"):
        read_damaged(tmp_path, content)


def test_another_table_under_the_right_digest(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    file = store.file(0, SHARD)
    file.parent.mkdir()
    table = pa.table({"index": [1, 2], "value": [1, 2]}).replace_schema_metadata({"digest": store.digest(0, SHARD)})
    pq.write_table(table, file)
    with pytest.raises(InputError, match="is broken"):
        store.read(0, SHARD, 2)


# Writing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here: it is what a full disk is made of")
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = distill.teaching.store.atomic_path

    @contextlib.contextmanager
    def on_full_disk(path: Path) -> Iterator[Path]:
        with real(path) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            yield temporary

    store = store_at(tmp_path)
    store.write(0, SHARD, TopK.top_k(realistic(4), 20))
    before = files(tmp_path)
    monkeypatch.setattr(distill.teaching.store, "atomic_path", on_full_disk)
    with pytest.raises(CedEdgeError, match=r"disk full while writing .*e001.*run again") as e:
        store.write(1, SHARD, TopK.top_k(realistic(600), 20))
    assert e.value.exit_code == 1
    assert files(tmp_path) == before
    assert [f.name for f in store.file(1, SHARD).parent.iterdir()] == []
    monkeypatch.undo()
    store.write(1, SHARD, TopK.top_k(realistic(600), 20))
    assert store.done(1, SHARD)


def test_failing_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(CedEdgeError, match="disk full"):
        store_at(tmp_path).write(0, SHARD, TopK.top_k(realistic(4), 20))
    assert files(tmp_path) == {}


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    file = store.file(0, SHARD)
    file.parent.mkdir()
    for leftover in (tmp_path / ".store.json.123.tmp", file.with_name(f".{file.name}.4567.tmp")):
        leftover.write_bytes(b"half")
    store.create()
    store.write(0, SHARD, TopK.top_k(realistic(4), 20))
    assert sorted(files(tmp_path)) == [f"e000/{SHARD}.parquet", "store.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CedEdgeError, match="cannot write"):
        store_at(tmp_path).write(0, SHARD, TopK.top_k(realistic(4), 20))
