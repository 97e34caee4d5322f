"""Packs on servers that fail now and then, in the middle of a file too, and on servers that stay away."""

from __future__ import annotations

import contextlib
import functools
import http.server
import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny_run import RATE_HZ
from tiny_teach import files, job_for, make_pack, make_teacher

from ced_edge.errors import InputError
from distill.packing import location
from distill.packing.shards import Pack, read_shard
from distill.teaching.store import Store
from distill.teaching.teach import teach
from distill.training.batches import TrainingData, loader


class Failing(http.server.SimpleHTTPRequestHandler):
    """One request in ten has an error as its answer, and one in ten is cut off in the middle of the file."""

    chance: random.Random
    counts: dict[str, int]
    status = 503

    def do_GET(self) -> None:
        draw = self.chance.random()
        if draw < 0.1:
            self.counts["refused"] += 1
            self.send_error(self.status)
        elif draw < 0.2 and (file := Path(self.translate_path(self.path))).is_file():
            self.counts["cut"] += 1
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.counts["whole"] += 1
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path, **changes: object) -> Iterator[tuple[str, dict[str, int]]]:
    """A failing server over a folder: its address, and how often it did what."""
    counts = {"refused": 0, "cut": 0, "whole": 0}
    kind = type("Handler", (Failing,), {"chance": random.Random(1), "counts": counts, **changes})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", counts
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return make_pack(tmp_path_factory.mktemp("audio"))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "WAITS_S", (0.001,) * 5)


def test_a_failing_server_changes_nothing(packed: Pack, tmp_path: Path) -> None:
    """Teaching and training from it give the bytes that a local folder gives."""
    teacher = make_teacher(tmp_path)
    here = job_for(packed, teacher, tmp_path / "here")
    teach(here)
    with serve(Path(packed.location)) as (url, counts):
        fetched = Pack.open(url)
        assert fetched.hash == packed.hash
        there = job_for(fetched, teacher, tmp_path / "there")
        teach(there)
        assert files(there.store.path) == files(here.store.path)
        for _ in range(10):
            for shard in fetched.shards:
                assert [c.id for c in read_shard(fetched, shard)] == [c.id for c in read_shard(packed, shard)]
        pairs = [TrainingData(p, here.store, here.store.recipe, 4, RATE_HZ) for p in (packed, fetched)]
        local, remote = (loader(data, workers=0) for data in pairs)
        for _ in range(18):
            np.testing.assert_array_equal(next(local).wave, next(remote).wave)
    assert min(counts.values()) > 2, counts


def test_training_from_a_store_on_a_failing_server(packed: Pack, tmp_path: Path) -> None:
    """The batches are those of the local store, and the run's recipe is the same."""
    here = job_for(packed, make_teacher(tmp_path), tmp_path / "here").store
    teach(job_for(packed, make_teacher(tmp_path), tmp_path / "here"))
    with serve(here.path) as (url, counts):
        there = Store.open(url)
        assert (there.to_dict(), there.recipe, there.place) == (here.to_dict(), here.recipe, url)
        local, remote = (loader(TrainingData(packed, s, s.recipe, 4, RATE_HZ), workers=0) for s in (here, there))
        with contextlib.closing(local), contextlib.closing(remote):
            for _ in range(18):
                for a, b in zip(next(local), next(remote), strict=True):
                    np.testing.assert_array_equal(a, b)
        assert min(counts.values()) > 0, counts
        name = packed.shards[0].name
        file = here.file(0, name)
        whole = file.read_bytes()
        for damaged, words in (
            (whole[:-9], "no footer"),
            (here.file(1, name).read_bytes(), "other clips, views or teachers"),
            (whole + bytes(1 << 20), "is larger than"),
        ):
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=words) as e:
                there.read(0, name, packed.shards[0].clips)
            assert url in str(e.value)
        file.unlink()
        with pytest.raises(InputError, match=r"http.*e000/shard-000000.*copy the whole folder"):
            there.read(0, name, packed.shards[0].clips)
    for wrong in ("pipe:cat store", "ftp://somewhere/store"):
        with pytest.raises(InputError, match="give a folder, or an address"):
            Store.open(wrong)


def test_a_server_that_stays_away_is_one_line(packed: Pack, caplog: pytest.LogCaptureFixture) -> None:
    with serve(Path(packed.location), chance=random.Random(3)) as (url, _):
        fetched = Pack.open(url)
    with caplog.at_level(logging.INFO), pytest.raises(InputError, match=r"cannot read http.*fetch it again") as e:
        read_shard(fetched, fetched.shards[0])
    assert "\n" not in str(e.value)
    assert [r.getMessage().endswith("trying again in 0.001 s") for r in caplog.records] == [True] * 5


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (429, 6), (500, 6)])
def test_only_what_may_pass_is_tried_again(packed: Pack, status: int, tries: int) -> None:
    always = type("Always", (), {"random": lambda self: 0.0})()
    with serve(Path(packed.location), chance=always, status=status) as (url, counts):
        with pytest.raises(InputError, match=r"index\.json"):
            Pack.open(url)
        assert counts["refused"] == tries
