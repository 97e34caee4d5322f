"""Known teachers: the table is sound, and only a file of the right hash is kept."""

from __future__ import annotations

import hashlib
import http.server
import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
from distill.cli import teachers
from distill.teachers import registry
from distill.teachers.registry import KnownTeacher, download, fetch, known_teachers

BODY = bytes(range(256)) * 4_000
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serves BODY at /ok and half of it, though it promises all, at /short; anything else is a 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            self.send_response(200 if name in ("ok.pt", "short.pt", "nolength.pt") else 404)
            if name != "nolength.pt":
                self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[: len(BODY) // 2] if name == "short.pt" else BODY)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}/"
        httpd.shutdown()


def test_table() -> None:
    names = [t.name for t in known_teachers()]
    assert len(set(names)) == len(names)
    for teacher in known_teachers():
        assert teacher.url.startswith("https://")
        assert teacher.licence in ("MIT", "Apache-2.0", "BSD-3-Clause")
        assert teacher.mean_ap is None or 20 < teacher.mean_ap < 60
        assert teacher.sha256 is None or len(teacher.sha256) == 64
    assert registry.by_name("mn10_as").file == "mn10_as_mAP_471.pt"
    assert registry.by_name("ced-tiny").hub_id == "mispeech/ced-tiny"
    assert registry.by_name("mn10_as").hub_id is None


def test_pinned_hashes_are_those_of_the_files_here(shared: Path) -> None:
    for name, file in [("mn04_as", "mn04_as_mAP_432.pt"), ("yamnet_spectra_in", "yamnet_spectra_in.tflite")]:
        assert registry.by_name(name).file == file
        assert registry.by_name(name).sha256 == sha256_file(shared / "teachers" / file)
    assert sha256_file(shared / "teachers" / "yamnet_class_map.csv") == registry.YAMNET_CLASS_MAP_SHA256


def test_fetch(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = KnownTeacher("pinned", "", server + "ok.pt", "MIT", None, DIGEST)
    loose = KnownTeacher("loose", "", server + "nolength.pt", "MIT", None)
    mapped = KnownTeacher("mapped", "", server + "ok.pt", "MIT", None, DIGEST, class_map=True)
    monkeypatch.setattr(registry, "_KNOWN", (pinned, loose, mapped, registry.by_name("ced-tiny")))
    seen: list[tuple[int, int | None]] = []
    path = fetch("pinned", tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "ok.pt"
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert len(seen) > 2
    # A second time nothing is fetched, but a damaged file is replaced.
    seen.clear()
    fetch("pinned", tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert not seen
    path.write_bytes(b"x")
    assert fetch("pinned", tmp_path / "new").read_bytes() == BODY
    # Without a hash on record the user must vouch for the file.
    with pytest.raises(InputError, match="no hash of loose is on record"):
        fetch("loose", tmp_path)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        fetch("loose", tmp_path, "abc")
    with pytest.raises(CedEdgeError, match=f"gave {len(BODY)} bytes of sha256 {DIGEST}, not 0000"):
        fetch("loose", tmp_path, "0" * 64)
    assert fetch("loose", tmp_path, DIGEST.upper()).read_bytes() == BODY
    with pytest.raises(InputError, match="not the hash on record"):
        fetch("pinned", tmp_path, "0" * 64)
    with pytest.raises(InputError, match="--teacher mispeech/ced-tiny"):
        fetch("ced-tiny", tmp_path)
    with pytest.raises(InputError, match="unknown teacher 'x': choose one of pinned, loose"):
        fetch("x", tmp_path)
    monkeypatch.setattr(registry, "YAMNET_CLASS_MAP", server + "ok.pt")
    monkeypatch.setattr(registry, "YAMNET_CLASS_MAP_SHA256", DIGEST)
    fetch("mapped", tmp_path / "mapped")
    assert sorted(p.name for p in (tmp_path / "mapped").iterdir()) == ["ok.pt", "ok_class_map.csv"]


def test_a_terminal_sees_how_far_it_is(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(registry, "_KNOWN", (KnownTeacher("pinned", "", server + "ok.pt", "MIT", None, DIGEST),))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    assert teachers.callback is not None
    teachers.callback("pinned", tmp_path, None, False)
    assert "1.0/1.0 MB" in shown.getvalue()


@pytest.mark.parametrize(("name", "message"), [("short.pt", "not"), ("none.pt", "cannot fetch .*Not Found")])
def test_nothing_half_written(tmp_path: Path, server: str, name: str, message: str) -> None:
    with pytest.raises(CedEdgeError, match=message):
        download(server + name, tmp_path / "f.pt", DIGEST)
    assert not list(tmp_path.iterdir())


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(CedEdgeError, match=r"cannot fetch http://127\.0\.0\.1:9/") as e:
        download("http://127.0.0.1:9/f.pt", tmp_path / "f.pt", DIGEST)
    assert "\n" not in str(e.value)
