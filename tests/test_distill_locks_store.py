"""Stores that were made to do harm: nothing is written outside the folder, and memory stays bounded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ced_edge.errors import InputError
from distill.teaching.store import Store, TopK
from distill.teaching.views import ViewRecipe

SHARD = "shard-000000.tar"
ROOT = Path(__file__).resolve().parents[1]
MB = 1 << 20


@pytest.mark.parametrize("name", ["../../harm", "/tmp/ced-edge-harm", "..", "x/../../../harm", "\0"])
def test_a_store_writes_into_its_folder_alone(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store", ViewRecipe(), [], 20, "0" * 64)
    top = TopK(np.zeros((1, 20), np.uint16), np.zeros((1, 20), np.float32), np.zeros(1, np.float32))
    if name == "..":  # with its suffix this is a file's name like any other
        assert store.file(0, name) == tmp_path / "store" / "e000" / "...parquet"
        return
    for use in (lambda: store.write(0, name, top), lambda: store.done(0, name), lambda: store.read(0, name, 1)):
        with pytest.raises(InputError, match="is not the name of a file inside"):
            use()
    assert list(tmp_path.iterdir()) == []


def header(**changes: Any) -> str:
    recipe = dataclasses.asdict(ViewRecipe())
    fields = {"format": 1, "recipe": recipe, "teachers": [], "k": 20, "pack": "0" * 64, "clean": False}
    return json.dumps({**fields, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        " " * (2 * MB) + header(),
        header(k="20"),
        header(k=2.5),
        header(clean="no"),
        header(teachers=7),
        header(pack=None),
        header(recipe={"windows": [[10**12, 2.0]]}),
        header(recipe={"windows": [[1.5, 2.0]]}),
        header(recipe={"windows": [["1", 2.0]]}),
        header(recipe={"seed": 0.5}),
        header(recipe={"shift": "no"}),
    ],
)
def test_a_header_is_bounded_and_of_the_right_types(tmp_path: Path, text: str) -> None:
    (tmp_path / "store.json").write_text(header())
    assert len(Store.open(tmp_path).epochs) == 1
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(InputError) as caught:
        Store.open(tmp_path)
    assert "\n" not in str(caught.value)


def write_parquet(file: Path, rows: int, k: int, digest: str) -> None:
    """Zeros, in the form that a store has, with one page per column."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lists = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * k, kind)), k)
        for name, kind in (("index", np.uint16), ("value", np.uint8))
    }
    numbers = {"clip": pa.array(np.zeros(rows, np.int32)), "tail": pa.array(np.zeros(rows, np.float16))}
    table = pa.table({**numbers, **lists})
    with pq.ParquetWriter(
        file, table.schema, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False,
        data_page_size=1 << 30, write_page_checksum=True,
    ) as writer:  # fmt: skip
        writer.write_table(table, row_group_size=rows)
        writer.add_key_value_metadata({"digest": digest})


def varint(number: int, length: int = 0) -> bytes:
    """A number as Thrift writes it; `length` bytes long, which is more than it needs."""
    out = []
    while number > 127 or len(out) < length - 1:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def lie(file: Path, true: int, claimed: int) -> int:
    """Replace a number in the footer, without moving anything. Returns how often it stood there."""
    data = file.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    wanted = varint(2 * true)
    file.write_bytes(data[:footer] + data[footer:].replace(wanted, varint(2 * claimed, len(wanted))))
    return data[footer:].count(wanted)


READ = """
import sys
from pathlib import Path
import pyarrow as pa
from ced_edge.errors import InputError
from distill.teaching.store import Store
from distill.teaching.views import ViewRecipe
store = Store(Path(sys.argv[1]), ViewRecipe(), [], 20, "0" * 64)
try:
    store.read(0, sys.argv[2], 10)
except InputError as e:
    print(pa.default_memory_pool().max_memory(), e)
"""


@pytest.mark.parametrize("honest", [True, False])
def test_a_table_is_not_unpacked_before_its_size_is_compared(tmp_path: Path, honest: bool) -> None:
    """Whether its footer says what the file holds, or lies and only the headers of the pages say it."""
    store, rows = Store(tmp_path, ViewRecipe(), [], 20, "0" * 64), 500_000
    file = store.file(0, SHARD)
    write_parquet(file, rows, 20, store.digest(0, SHARD))
    assert file.stat().st_size < 100_000
    if not honest:
        metadata = pq.read_metadata(file)
        sizes = {metadata.row_group(0).column(i).total_uncompressed_size for i in range(4)}
        assert lie(file, rows, 10) > 0
        assert max(sizes) > 20 * MB
        assert all(lie(file, size, 100) for size in sizes)
        assert pq.read_metadata(file).num_rows == 10
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), SHARD], cwd=ROOT, capture_output=True, text=True, check=True
    )
    most, message = done.stdout.split(" ", 1)
    assert "is broken (" in message
    assert "predictions" in message
    assert int(most) < MB


def test_a_store_of_this_program_is_within_the_bounds(tmp_path: Path) -> None:
    """The least compressible predictions, of the most classes and of one, in large and small shards."""
    rng = np.random.default_rng(0)
    for k in (1, 20, 527):
        store = Store(tmp_path / str(k), ViewRecipe(), [], k, "0" * 64)
        for rows in (1, 7, 5_000):
            top = TopK.top_k(rng.random((rows, 527), np.float32), k)
            store.write(0, SHARD, top)
            np.testing.assert_array_equal(store.read(0, SHARD, rows).index, top.index)
            store.file(0, SHARD).unlink()
