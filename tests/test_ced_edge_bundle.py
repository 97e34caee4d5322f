"""The bundle on disk: what is changed, missing or made for something else is told of in one line, at load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import shared_bundle, with_file

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
from ced_edge.labels import TABLE_NAME, labels_hash, table
from ced_edge.runtime import bundle as artifact
from ced_edge.runtime.bundle import BUNDLE_NAME, LABELS_NAME, Bundle, read_bundle
from export.replace import atomic_folder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    shutil.copytree(shared_bundle().folder, tmp_path / "bundle")
    return read_bundle(tmp_path / "bundle")


def refused(folder: Path, told: str) -> None:
    with pytest.raises(InputError, match=told) as e:
        read_bundle(folder)
    assert "\n" not in str(e.value)
    assert str(folder) in str(e.value)


def change(bundle: Bundle, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the manifest as JSON, its hash too."""
    path = bundle.folder / BUNDLE_NAME
    fields = json.loads(path.read_text())
    del fields["sha256"]
    edit(fields)
    fields["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(fields))


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_no_changed_byte_of_the_manifest_goes_unseen(at: int, byte: int) -> None:
    original = shared_bundle()
    text = (original.folder / BUNDLE_NAME).read_bytes()
    changed = bytearray(text)
    changed[at % len(text)] = byte
    with tempfile.TemporaryDirectory() as folder:
        for path in original.folder.iterdir():
            (Path(folder) / path.name).symlink_to(path)
        (Path(folder) / BUNDLE_NAME).unlink()
        (Path(folder) / BUNDLE_NAME).write_bytes(changed)
        try:
            found = read_bundle(Path(folder))
        except InputError:
            return
    # Or it was white space.
    assert dataclasses.replace(found, folder=original.folder) == read_bundle(original.folder)


def test_what_was_written_is_read(bundle: Bundle) -> None:
    original = shared_bundle()
    assert {**bundle.to_dict()} == original.to_dict()
    assert (bundle.window_samples, bundle.window_frames) == (32_000, 201)
    assert bundle.path(bundle.file()).is_file()


def test_a_changed_byte(bundle: Bundle) -> None:
    path = bundle.path(bundle.files[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(bundle.folder, r"24x2-fp32\.onnx is not the file that was exported \(its hash differs\)")


def test_a_file_cut_short(bundle: Bundle) -> None:
    path = bundle.path(bundle.files[0])
    path.write_bytes(path.read_bytes()[:-1])
    refused(bundle.folder, "its hash differs")


@pytest.mark.parametrize("name", ["24x2-fp32.onnx", LABELS_NAME])
def test_a_missing_file(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).unlink()
    refused(bundle.folder, f"lacks {name}.*copy the whole bundle again")


def test_labels_of_another_length(bundle: Bundle) -> None:
    with (bundle.folder / LABELS_NAME).open("a") as f:
        f.write("Purring of a new kind\n")
    refused(bundle.folder, "has 528 labels for a model of 527 classes")


def test_labels_in_another_order(bundle: Bundle) -> None:
    path = bundle.folder / LABELS_NAME
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in [*lines[1:], lines[0]]))
    refused(bundle.folder, r"labels\.txt is not the file that was exported")
    # And with the manifest changed to fit.
    change(bundle, lambda m: m.update(labels_sha256=sha256_file(path)))
    change(bundle, lambda m: m.update(labels_hash="0" * 64))
    refused(bundle.folder, "was exported for another list of classes")
    change(bundle, lambda m: m.update(labels_hash=labels_hash()))
    refused(bundle.folder, r"labels\.txt has other labels than the model, or another order: export the bundle again")


def test_a_table_in_another_order(bundle: Bundle) -> None:
    path = bundle.folder / TABLE_NAME
    path.write_text(table())
    read_bundle(bundle.folder)
    head, first, *rest = table().splitlines(keepends=True)
    path.write_text("".join([head, *rest, first]))
    refused(bundle.folder, r"class_labels_indices\.csv has other labels than the model")


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no such bundle")
    refused(tmp_path, r"is no bundle: it has no manifest\.json")
    (tmp_path / BUNDLE_NAME).write_text("{")
    refused(tmp_path, "is not readable JSON")
    for other in ("[]", "{}", '{"format": 99}'):
        (tmp_path / BUNDLE_NAME).write_text(other)
        refused(tmp_path, "is of another format than 1: export the bundle again")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda m: m.pop("window_s"), "is broken"),
        (lambda m: m.update(colour="red"), "is broken"),
        (lambda m: m["spec"].pop("width"), "not a model spec"),
        (lambda m: m["spec"].update(heads=7), "is not a multiple of its 7 heads"),
        (lambda m: m["files"][0].pop("sha256"), "is broken"),
        (lambda m: m.update(files=[]), "does not know"),
        (lambda m: m.update(input="video"), "does not know"),
        (lambda m: m.update(output="logits"), "does not know"),
        (lambda m: m.update(window_s=0), "does not know"),
        (lambda m: m.update(window_s=60), "does not know"),
        (lambda m: m.update(window_s="long"), "is broken"),
        (lambda m: m["files"][0].update(kind="int4"), "does not know"),
        (lambda m: m["files"][0].update(name="model.pt"), "does not know"),
        (lambda m: m["files"][0].update(name="../../24x2-fp32.onnx"), "does not know"),
    ],
)
def test_a_manifest_that_says_something_else(bundle: Bundle, edit: Callable[[Any], Any], told: str) -> None:
    change(bundle, edit)
    refused(bundle.folder, told)


def test_files_in_order_of_choice(bundle: Bundle) -> None:
    for name, kind in [("a.tflite", "fp32"), ("b.onnx", "int8-static"), ("c.tflite", "int8"), ("d.onnx", "int8")]:
        (bundle.folder / name).write_bytes(name.encode())
        bundle = with_file(bundle, bundle.folder / name, kind)
    bundle = read_bundle(bundle.folder)
    order = ["d.onnx", "c.tflite", "b.onnx", "24x2-fp32.onnx", "a.tflite"]
    assert [f.name for f in bundle.fitting()] == order
    assert [f.name for f in bundle.fitting(format="tflite")] == ["c.tflite", "a.tflite"]
    assert bundle.file(kind="fp32").name == "24x2-fp32.onnx"
    with pytest.raises(InputError, match="has no int8-static tflite file: it holds"):
        bundle.file(kind="int8-static", format="tflite")


def mark_old(bundle: Bundle) -> None:
    """Tell a bundle from the one that takes its place."""
    change(bundle, lambda m: m.update(versions={"torch": "old"}))


def is_old(folder: Path) -> bool:
    return read_bundle(folder).versions == {"torch": "old"}


def test_a_bundle_is_swapped_in_as_a_whole_or_not_at_all(bundle: Bundle) -> None:
    def fill(fail: bool) -> None:
        with atomic_folder(bundle.folder) as folder:
            shutil.copytree(shared_bundle().folder, folder, dirs_exist_ok=True)
            if fail:
                raise RuntimeError("half-way")

    mark_old(bundle)
    with pytest.raises(RuntimeError, match="half-way"):
        fill(fail=True)
    assert is_old(bundle.folder)
    killed = bundle.folder.with_name(".bundle.1.tmp")  # what a killed export leaves
    killed.mkdir()
    fill(fail=False)
    assert not is_old(bundle.folder)
    read_bundle(bundle.folder)
    assert [p.name for p in bundle.folder.parent.iterdir()] == ["bundle"]


def test_of_a_link_what_it_leads_to_is_replaced(bundle: Bundle) -> None:
    link = bundle.folder.with_name("current")
    link.symlink_to(bundle.folder.name)
    mark_old(bundle)
    for _ in range(2):
        with atomic_folder(link) as folder:
            shutil.copytree(shared_bundle().folder, folder, dirs_exist_ok=True)
    assert link.is_symlink()
    assert not is_old(bundle.folder)
    assert sorted(p.name for p in bundle.folder.parent.iterdir()) == ["bundle", "current"]


@pytest.mark.parametrize(
    "files",
    [
        {"mine.txt": "dear"},
        {BUNDLE_NAME: '{"name": "My app", "icons": []}', "index.html": "<p>"},
        {BUNDLE_NAME: '{"format": "a", "files": []}'},
        {BUNDLE_NAME: '{"format": 1, "files": ["index.html"]}'},
        {BUNDLE_NAME: "[]"},
        {BUNDLE_NAME: "{"},
    ],
)
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, files: dict[str, str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(InputError, match="is there and is no bundle: choose another --out"), atomic_folder(folder):
        pass
    assert {p.name: p.read_text() for p in folder.iterdir()} == files


def test_files_beside_the_bundles_own_are_not_lost(bundle: Bundle) -> None:
    mark_old(bundle)
    (bundle.folder / TABLE_NAME).write_text(table())
    (bundle.folder / "notes").mkdir()
    (bundle.folder / "thesis.txt").write_text("years")

    def replace(late: bool = False) -> None:
        with atomic_folder(bundle.folder) as folder:
            (folder / "new").touch()
            if late:
                (bundle.folder / "late.txt").touch()

    with pytest.raises(InputError, match=r"besides its bundle: notes, thesis\.txt; move them"):
        replace()
    (bundle.folder / "notes").rmdir()
    (bundle.folder / "thesis.txt").unlink()
    with pytest.raises(InputError, match=r"besides its bundle: late\.txt"):
        replace(late=True)
    assert is_old(bundle.folder)
    (bundle.folder / "late.txt").unlink()
    change(bundle, lambda m: m.update(format=0))  # of an older version
    replace()
    assert [p.name for p in bundle.folder.iterdir()] == ["new"]


def test_an_empty_folder_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as folder:
        (folder / "new").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["empty", "new"]


@pytest.mark.parametrize("place", ["/proc/nope/x", "file/x", "file/x/y", "x" * 300])
def test_a_place_that_cannot_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CedEdgeError, match="cannot write") as e, atomic_folder(tmp_path / place):
        pass
    assert "\n" not in str(e.value)


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", deny)  # root may write anywhere
    with pytest.raises(CedEdgeError, match=r"cannot write .*: Permission denied"), atomic_folder(tmp_path / "bundle"):
        pass


def test_a_killed_export_leaves_the_old_bundle_and_is_cleared_away(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from ced_edge.runtime.bundle import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1])) as f:\n"
        "    (f / 'bundle.json').write_text('{}')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    bundle = tmp_path / "bundle"
    with atomic_folder(bundle) as folder:
        write_marked(folder, "old")
    done = subprocess.run([sys.executable, "-c", script, bundle], check=False)
    assert done.returncode == -signal.SIGKILL
    assert mark(bundle) == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_folder(bundle) as folder:
        write_marked(folder, "newer")
        # A second one at the same time takes nothing from the first.
        with atomic_folder(tmp_path / "bundle") as other:
            write_marked(other, "between")
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert mark(bundle) == "newer"


def write_marked(folder: Path, text: str) -> None:
    """What passes for a bundle when it is replaced."""
    (folder / BUNDLE_NAME).write_text(json.dumps({"format": 1, "files": [], "mark": text}))


def mark(folder: Path) -> Any:
    return json.loads((folder / BUNDLE_NAME).read_text())["mark"]


@pytest.fixture
def other_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without renameat2, where there is no C library to ask either."""
    monkeypatch.setattr(artifact, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(artifact.ctypes, "CDLL", None)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_killed_between_the_renames(tmp_path: Path, other_system: None, step: int) -> None:
    """Before each of the three: the old bundle, or the new one, is there when the next export begins, and stays."""
    bundle = tmp_path / "bundle"
    with atomic_folder(bundle) as folder:
        write_marked(folder, "old")
    script = (
        "import os, pathlib, sys, types; from ced_edge import artifact\n"
        "artifact.sys = types.SimpleNamespace(platform='darwin')\n"
        "real, count = pathlib.Path.rename, 0\n"
        "def rename(self, target):\n"
        "    global count\n"
        "    count += 1\n"
        f"    os.kill(os.getpid(), 9) if count == {step} else real(self, target)\n"
        "pathlib.Path.rename = rename\n"
        "with artifact.atomic_folder(pathlib.Path(sys.argv[1])) as f:\n"
        """    (f / 'bundle.json').write_text('{"format": 1, "files": [], "mark": "new"}')\n"""
    )
    assert subprocess.run([sys.executable, "-c", script, bundle], check=False).returncode == -signal.SIGKILL
    assert bundle.exists() == (step != 2)
    with pytest.raises(RuntimeError, match="half-way"), atomic_folder(bundle):
        raise RuntimeError("half-way")
    assert mark(bundle) == ("new" if step == 3 else "old")
    with atomic_folder(bundle) as folder:
        write_marked(folder, "newer")
    assert mark(bundle) == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_rename_that_fails_leaves_the_old_bundle(
    tmp_path: Path, other_system: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    with atomic_folder(bundle) as folder:
        write_marked(folder, "old")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CedEdgeError, match="cannot write"), atomic_folder(bundle) as folder:
        write_marked(folder, "new")
    assert mark(bundle) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
