"""A pack in a bucket of a local S3 server (moto). CI leaves it out: it needs `pip install moto[server] s3fs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_teach import files, job_for, make_pack, make_teacher

from ced_edge.errors import InputError
from distill.packing import location
from distill.packing.shards import Pack, read_shard
from distill.teaching.teach import teach

moto_server = pytest.importorskip("moto.server", reason="no moto: pip install 'moto[server]' to test a bucket")
s3fs = pytest.importorskip("s3fs", reason="no s3fs: pip install '.[cloud]' to test a bucket")
# The clients of AWS warn of Python's own changes, and leave closing their sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of S3, at which the environment points."""
    threaded = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    threaded.start()
    host, port = threaded.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(location, "WAITS_S", (0.01,) * 2)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    threaded.stop()


def test_teaching_from_a_bucket(server: None, tmp_path: Path) -> None:
    packed, teacher = make_pack(tmp_path), make_teacher(tmp_path)
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("sounds")
    bucket.put(f"{packed.location}/", "s3://sounds/pack/", recursive=True)
    fetched = Pack.open("s3://sounds/pack")
    assert fetched.hash == packed.hash
    for shard in packed.shards:
        assert [c.id for c in read_shard(fetched, shard)] == [c.id for c in read_shard(packed, shard)]
    here, there = (job_for(p, teacher, tmp_path / name) for p, name in ((packed, "here"), (fetched, "there")))
    teach(here)
    teach(there)
    assert files(there.store.path) == files(here.store.path)
    with pytest.raises(InputError, match=r"no such file: s3://sounds/nowhere/index.json"):
        Pack.open("s3://sounds/nowhere")
