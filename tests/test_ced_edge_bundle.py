"""A bundle that was changed, is incomplete or belongs to something else is refused at load, in one line."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import edit_bundle, shared_bundle, with_file

from ced_edge.errors import InputError
from ced_edge.files import sha256_file
from ced_edge.labels import TABLE_NAME, labels_hash, table
from ced_edge.runtime.bundle import BUNDLE_NAME, LABELS_NAME, Bundle, read_bundle
from ced_edge.runtime.tagger import Tagger


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    shutil.copytree(shared_bundle().folder, tmp_path / "bundle")
    return read_bundle(tmp_path / "bundle")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as e:
        read_bundle(folder)
    assert "\n" not in str(e.value)
    assert str(folder) in str(e.value)


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_every_changed_byte_of_bundle_json_is_found(at: int, byte: int) -> None:
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
    # The byte was white space, which changes no value.
    assert dataclasses.replace(found, folder=original.folder) == read_bundle(original.folder)


def test_a_bundle_is_read_as_it_was_written(bundle: Bundle) -> None:
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
    refused(bundle.folder, r"is not the file that was exported \(it has \d+ bytes, not \d+\): copy the bundle again")


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
    # The hash in bundle.json may have been changed to match.
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
        refused(tmp_path, "is not of format 1: export the bundle again")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.pop("window_s"), "is broken"),
        (lambda m: m.update(colour="red"), "is broken"),
        (lambda m: m["spec"].pop("width"), "not a model spec"),
        (lambda m: m["spec"].update(heads=7), "is not a multiple of its 7 heads"),
        (lambda m: m["files"][0].pop("sha256"), "is broken"),
        (lambda m: m.update(files=[]), "has no model file, which"),
        (lambda m: m.update(input="video"), "has the input 'video', which"),
        (lambda m: m.update(output="logits"), "has the output 'logits', which"),
        (lambda m: m.update(window_s="long"), "has a window of 'long' s, which"),
        (lambda m: m.update(thresholds={"Dogg": 0.5}), "has thresholds of other classes, which"),
        (lambda m: m.update(thresholds=[0.5]), "has thresholds of other classes, which"),
        (lambda m: m.update(thresholds={"Dog": "high"}), "has a threshold that is no probability, which"),
        (lambda m: m.update(thresholds={"Dog": 1.0}), "has a threshold that is no probability, which"),
        (lambda m: m.update(thresholds={"Dog": True}), "has a threshold that is no probability, which"),
        (lambda m: m.update(reference=[1]), "has a reference or versions that are no JSON objects"),
        (lambda m: m.update(reference={"metrics": [1]}), "has metrics that are no JSON object"),
        (lambda m: m.update(checkpoint_sha256=5), "has the checkpoint hash 5, which"),
        (lambda m: m["files"][0].update(kind="int4"), "has a file of the kind 'int4', which"),
        (lambda m: m["files"][0].update(bytes=10**30), f"it has [0-9]+ bytes, not {10**30}"),
    ],
)
def test_a_bundle_json_with_other_values(bundle: Bundle, edit: Callable[[Any], Any], message: str) -> None:
    edit_bundle(bundle.folder, edit)
    refused(bundle.folder, message)


@pytest.mark.parametrize("value", [0, 60, 1e6, 1e300, 10**400, -2.0, float("nan"), float("inf"), True, None, [2.0]])
def test_an_impossible_window(bundle: Bundle, value: Any) -> None:
    edit_bundle(bundle.folder, lambda m: m.update(window_s=value))
    refused(bundle.folder, r"bundle\.json (has a window of|is broken)")


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**400, 0.5, float("nan"), float("inf"), True, "16", None])
@pytest.mark.parametrize("name", ["width", "heads", "depth", "mlp_ratio", "patch", "max_frames", "n_classes",
                                  "rate_hz", "n_fft", "hop", "n_mels"])  # fmt: skip
def test_an_impossible_size(bundle: Bundle, name: str, value: Any) -> None:
    def edit(fields: dict[str, Any]) -> None:
        spec = fields["spec"]
        (spec["frontend"] if name in spec["frontend"] else spec)[name] = value

    edit_bundle(bundle.folder, edit)
    refused(bundle.folder, r"bundle\.json (has|is broken)")


@pytest.mark.parametrize("value", [-1.0, 1e9, 10**400, float("nan"), float("inf"), "8000", None])
@pytest.mark.parametrize("name", ["f_min_hz", "f_max_hz", "top_db", "min_power"])
def test_an_impossible_frequency_or_level(bundle: Bundle, name: str, value: Any) -> None:
    edit_bundle(bundle.folder, lambda m: m["spec"]["frontend"].update({name: value}))
    refused(bundle.folder, rf"bundle\.json (has {name}|is broken)")


@pytest.mark.parametrize(
    "name",
    ["../24x2-fp32.onnx", "/etc/passwd", "sub/24x2-fp32.onnx", "..", "", ".onnx", ".hidden.onnx", "model.pt",
     "a\0.onnx", "a\n.onnx", "a.onnx\n", "C:24x2-fp32.onnx", "a\\b.onnx", "x" * 300 + ".onnx", "-rf.onnx"],
)  # fmt: skip
def test_a_file_name_that_is_not_plain(bundle: Bundle, name: str) -> None:
    shutil.copy(bundle.path(bundle.files[0]), bundle.folder.parent)
    edit_bundle(bundle.folder, lambda m: m["files"][0].update(name=name))
    refused(bundle.folder, "has a file with the name '")


def test_files_may_be_links(bundle: Bundle, tmp_path: Path) -> None:
    """Hugging Face's cache keeps the content elsewhere."""
    for path in list(bundle.folder.iterdir()):
        path.rename(tmp_path / f"{path.name}-content")
        path.symlink_to(tmp_path / f"{path.name}-content")
    assert read_bundle(str(bundle.folder)) == bundle


@pytest.mark.parametrize("name", [BUNDLE_NAME, LABELS_NAME])
def test_a_huge_file_is_not_read(bundle: Bundle, name: str) -> None:
    with (bundle.folder / name).open("r+b") as f:
        f.truncate(1 << 34)  # its bytes are zeros that take no place on the disk
    tracemalloc.start()
    try:
        refused(bundle.folder, rf"{name} is larger than 1048576 bytes: it is damaged or hostile")
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_a_huge_model_file_or_table_is_neither_hashed_nor_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle.folder / TABLE_NAME).write_text(table())
    hashed: list[Path] = []
    real = sha256_file
    monkeypatch.setattr("ced_edge.runtime.bundle.sha256_file", lambda path: hashed.append(path) or real(path))
    model = bundle.path(bundle.files[0])
    for path, message in [(model, "bytes, not"), (bundle.folder / TABLE_NAME, "has other labels")]:
        with path.open("r+b") as f:
            f.truncate(1 << 34)
        refused(bundle.folder, message)
    assert model not in hashed


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "1" * 10_000 + "}", '{"a": "\\ud800"}', "\xff"])
def test_json_that_python_cannot_parse(bundle: Bundle, text: str) -> None:
    (bundle.folder / BUNDLE_NAME).write_bytes(text.encode("latin-1"))
    refused(bundle.folder, r"bundle\.json is not (readable JSON|of format 1)")


def test_a_bundle_without_fp32(bundle: Bundle) -> None:
    """Nothing in the runtime needs more than the file that it runs."""
    path = bundle.path(bundle.files[0])
    path.rename(path.with_name("24x2-int8.onnx"))
    edit_bundle(bundle.folder, lambda m: m["files"][0].update(name="24x2-int8.onnx", kind="int8"))
    assert [f.kind for f in read_bundle(bundle.folder).files] == ["int8"]
    tags = Tagger(bundle.folder).tag(np.zeros(40_000, np.float32))
    assert [t.end_s for t in tags] == [2.0, 2.5]


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
