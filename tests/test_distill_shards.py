"""Reading packs from a folder, a web server and a bucket; damaged shards by name; WebDataset as a second reader."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from ced_edge.audio.clips import Clip
from ced_edge.errors import InputError
from distill.packing import location, shards
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack, ShardReader, clip_rms, read_shard

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def packed(tmp_path: Path) -> Pack:
    """Nine clips in two shards."""
    clips = []
    for i in range(9):
        wave = np.random.default_rng(i).uniform(-0.5, 0.5, 2_000 + 100 * i)
        soundfile.write(tmp_path / f"{i}.wav", wave, 16_000)
        clips.append(Clip(f"d/{i}.wav", tmp_path / f"{i}.wav", (i, 300) if i % 2 else None, f"g{i}" if i % 3 else None))
    return pack(clips, tmp_path / "pack", PackConfig(workers=1, clips_per_shard=5))


def test_open_gives_what_pack_gave(packed: Pack) -> None:
    assert Pack.open(packed.location) == packed
    assert Pack.open(Path(packed.location)) == packed
    assert [s.name for s in packed.shards] == ["shard-000000.tar", "shard-000001.tar"]
    assert [len(read_shard(packed, s)) for s in packed.shards] == [5, 4]


# WebDataset leaves closing its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards_as_its_own(packed: Pack) -> None:
    webdataset = pytest.importorskip("webdataset")
    for shard in packed.shards:
        ours = read_shard(packed, shard)
        theirs = list(webdataset.WebDataset(f"{packed.location}/{shard.name}", shardshuffle=False))
        assert len(theirs) == len(ours)
        for clip, sample in zip(ours, theirs, strict=True):
            fields = json.loads(sample["json"])
            assert (fields["id"], fields["group"]) == (clip.id, clip.group)
            assert fields["labels"] == (None if clip.labels is None else list(clip.labels))
            wave, rate_hz = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
            assert rate_hz == packed.rate_hz
            np.testing.assert_array_equal(wave, clip.wave)


def test_shards_are_read_front_to_back_without_a_seek(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [c.id for c in read_shard(packed, packed.shards[0])]
    read_end, write_end = os.pipe()
    data = (Path(packed.location) / packed.shards[0].name).read_bytes()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as f:
            f.write(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(read_end, "rb") as pipe:
        monkeypatch.setattr(Path, "open", lambda *_: pipe)
        assert [c.id for c in read_shard(packed, packed.shards[0])] == expected
    feeder.join()


def test_a_web_server_is_a_location(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "WAITS_S", (0.01,))
    with serve(Path(packed.location)) as url:
        fetched = Pack.open(f"{url}/")
        assert (fetched.hash, fetched.shards) == (packed.hash, packed.shards)
        for shard in packed.shards:
            for ours, theirs in zip(read_shard(packed, shard), read_shard(fetched, shard), strict=True):
                assert ours.id == theirs.id
                np.testing.assert_array_equal(ours.wave, theirs.wave)
        with pytest.raises(InputError, match=r"cannot read http.*/nowhere/index.json \(404.*: run `ced-edge pack`"):
            Pack.open(f"{url}/nowhere")
    with pytest.raises(InputError, match=r"cannot read http://127.*shard-000000.tar \(.*fetch it again") as caught:
        read_shard(fetched, fetched.shards[0])  # the server is gone
    assert "\n" not in str(caught.value)


FORKED = """
import os, sys, warnings
from distill.packing.shards import Pack, read_shard
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork beside a thread
pack = Pack.open(sys.argv[1])
read_shard(pack, pack.shards[0])
child = os.fork()
if child == 0:
    os._exit(len(read_shard(pack, pack.shards[1])))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_reads_from_a_web_server_too(packed: Pack) -> None:
    """torch's data loader forks the process that opened the pack."""
    with serve(Path(packed.location)) as url:
        done = subprocess.run([sys.executable, "-c", FORKED, url], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr


class Bucket(MemoryFileSystem):
    """A cloud bucket, in memory."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")


def test_a_bucket_is_a_location(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry, "s3", Bucket)
    Bucket().put(f"{packed.location}/", "s3://sounds/pack/", recursive=True)
    fetched = Pack.open("s3://sounds/pack")
    assert fetched.hash == packed.hash
    assert [len(read_shard(fetched, shard)) for shard in fetched.shards] == [5, 4]
    with pytest.raises(InputError, match=r"no such file: s3://sounds/nowhere/index.json"):
        Pack.open("s3://sounds/nowhere")


@pytest.mark.parametrize(
    ("location", "missing", "message"),
    [
        ("s3://sounds/pack", "s3fs", "reading s3:// needs s3fs: pip install '.[cloud]'"),
        ("gs://sounds/pack", "gcsfs", "reading gs:// needs gcsfs: pip install '.[cloud]'"),
        ("s3://sounds/pack", "fsspec", "reading s3:// needs s3fs: pip install '.[cloud]'"),
        ("https://sounds.invalid/pack", "fsspec", "reading https:// needs fsspec: pip install '.[train]'"),
        ("https://sounds.invalid/pack", "aiohttp", "reading https:// needs aiohttp: pip install '.[train]'"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, location: str, missing: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    for protocol in ("s3", "gs"):
        monkeypatch.delitem(_registry, protocol, raising=False)  # where fsspec keeps what it imported before
    with pytest.raises(InputError) as caught:
        Pack.open(location)
    assert str(caught.value) == message


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A web server over a folder."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_bit_of_the_audio(data: bytes) -> bytes:
    return data[:2_000] + bytes([data[2_000] ^ 1]) + data[2_001:]


def one_clip_less(data: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return data[: tar.getmembers()[-2].offset] + bytes(10_240)


def a_zero_at_the_end(data: bytes) -> bytes:
    return data + b"\0"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: b"", "damaged or cut short"),
        (lambda _: b"no tar, but something as long as a header" * 100, "damaged or cut short"),
        (cut_in_half, "damaged or cut short"),
        (flip_a_bit_of_the_audio, "damaged or cut short|does not have the SHA-256"),
        (one_clip_less, "holds 4 clips, .* where the index says 5 clips"),
        (a_zero_at_the_end, "does not have the SHA-256 of the index"),
    ],
)
def test_a_damaged_shard_is_named_with_the_mend(packed: Pack, damage: Callable[[bytes], bytes], message: str) -> None:
    path = Path(packed.location) / packed.shards[0].name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        read_shard(packed, packed.shards[0])
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(": fetch it again, or pack into a new folder")
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(packed: Pack) -> None:
    (Path(packed.location) / packed.shards[1].name).unlink()
    with pytest.raises(InputError, match=r"no such file: .*shard-000001.tar; fetch it again, or pack"):
        read_shard(packed, packed.shards[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no index of a pack"),
        ("[1]", "is no index of a pack"),
        ('{"format": 1}', "is no index of a pack"),
        ('{"format": 2}', "is a pack of format 2, this program reads 1"),
        ("\udcff", "is no index of a pack"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        Pack.open(tmp_path)


def test_an_index_with_a_number_that_no_float_holds_is_named(packed: Pack) -> None:
    path = Path(packed.location) / shards.INDEX_NAME
    index = json.loads(path.read_text())
    index["shards"][0]["seconds"] = 10**400
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match="is no index of a pack"):
        Pack.open(packed.location)


def test_the_hash_of_a_pack_depends_on_every_shard_and_their_order(packed: Pack) -> None:
    index = json.loads((Path(packed.location) / shards.INDEX_NAME).read_text())
    index["shards"].reverse()
    (Path(packed.location) / shards.INDEX_NAME).write_text(json.dumps(index))
    assert Pack.open(packed.location).hash != packed.hash


def test_a_shard_is_read_once_for_all_its_epochs(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def read(pack: Pack, shard: shards.Shard) -> list[shards.PackedClip]:
        names.append(shard.name)
        return read_shard(pack, shard)

    monkeypatch.setattr(shards, "read_shard", read)
    reader = ShardReader(packed)
    first, again = reader.load(packed.shards[0]), reader.load(packed.shards[0])
    assert first is again
    clips = read_shard(packed, packed.shards[0])
    assert first.ids == [clip.id for clip in clips]
    assert first.rms == [clip_rms(clip.wave) for clip in clips]
    assert first.rms[0] == pytest.approx(np.sqrt(np.mean((clips[0].wave / 32_768.0) ** 2)), rel=1e-12)
    reader.load(packed.shards[1])
    reader.load(packed.shards[0])
    assert names == ["shard-000000.tar", "shard-000001.tar", "shard-000000.tar"]
