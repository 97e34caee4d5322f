"""The bundle on disk: what is changed, missing or made for something else is told of in one line, at load."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import edit_bundle, shared_bundle, with_file

from ced_edge.errors import InputError
from ced_edge.files import sha256_file
from ced_edge.labels import TABLE_NAME, labels_hash, table
from ced_edge.runtime.bundle import BUNDLE_NAME, LABELS_NAME, Bundle, read_bundle


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
    edit_bundle(bundle.folder, lambda m: m.update(labels_sha256=sha256_file(path)))
    edit_bundle(bundle.folder, lambda m: m.update(labels_hash="0" * 64))
    refused(bundle.folder, "was exported for another list of classes")
    edit_bundle(bundle.folder, lambda m: m.update(labels_hash=labels_hash()))
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
    refused(tmp_path, r"is no bundle: it has no bundle\.json")
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
    edit_bundle(bundle.folder, edit)
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
