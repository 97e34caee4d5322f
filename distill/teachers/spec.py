"""Which teachers the user names: `name=path` options and TOML files. Needs no torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError
from ced_edge.files import read_toml

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
MODEL_FILES = (".tflite", ".onnx")


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher as the user names it."""

    name: str
    source: str
    """A file, a folder with config.json, a run's folder, or a Hugging Face id (owner/name)."""
    sha256: str | None = None
    """The hash that the file must have. None: any."""
    class_map: Path | None = None
    """TFLite and ONNX: CSV with the columns index and mid. None: a file beside the model."""
    rate_hz: int | None = None
    """TFLite and ONNX: sample rate of the waveform that the model takes. None: 16 kHz."""
    output: str | None = None
    """TFLite and ONNX: what the model returns, `prob` or `logits`. None: `prob`."""


def default_name(source: str) -> str:
    """A teacher's name where the user gives none: that of its file or folder."""
    path = Path(source)
    return path.stem if path.suffix in (*CHECKPOINTS, *MODEL_FILES) else path.name


def parse_teachers(options: Sequence[str], toml: Path | None = None) -> list[TeacherSpec]:
    """Teachers of `--teacher name=path` (or just `path`) options and of a `--teachers file.toml`, in that order.

    The TOML file has one table per teacher; relative paths in it are relative to the file:

        [teachers.yamnet]
        source = "yamnet.tflite"
        class_map = "yamnet_class_map.csv"

    Raises InputError: no teacher at all, a name twice, an unknown key, a wrong type.
    """
    specs = [_parse_option(option) for option in options]
    if toml is not None:
        specs += _toml_teachers(toml)
    if not specs:
        raise InputError(f"no teacher: give --teacher name=path, once or more, or --teachers file.toml; {suggestion()}")
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two teachers are named {name}: write --teacher other-name=path")
    return specs


def suggestion() -> str:
    """How to get two small public teachers, and how to name them on the command line."""
    from distill.teachers.registry import by_name

    chosen = {"mn04": by_name("mn04_as"), "yamnet": by_name("yamnet_spectra_in")}
    fetch = " and ".join(f"`ced-edge teachers --fetch {teacher.name}`" for teacher in chosen.values())
    flags = " ".join(f"--teacher {name}=teachers/{teacher.file}" for name, teacher in chosen.items())
    return f"for two small public ones, run {fetch}, and add {flags} (`ced-edge teachers` lists all)"


def _parse_option(option: str) -> TeacherSpec:
    name, equals, source = option.partition("=")
    if not equals or "/" in name:
        name, source = "", option
    if not source:
        raise InputError(f"--teacher {option!r} names no file: write name=path")
    return TeacherSpec(name or default_name(source), source)


def _toml_teachers(path: Path) -> list[TeacherSpec]:
    tables = read_toml(path)
    teachers = tables.pop("teachers", None)
    if tables or not isinstance(teachers, dict) or not all(isinstance(t, dict) for t in teachers.values()):
        raise InputError(f"{path} must hold tables [teachers.<name>] and nothing else")
    return [_toml_teacher(path, name, table) for name, table in teachers.items()]


def _toml_teacher(path: Path, name: str, table: dict[str, Any]) -> TeacherSpec:
    types = {f.name: int if f.name == "rate_hz" else str for f in dataclasses.fields(TeacherSpec) if f.name != "name"}
    for key, value in table.items():
        if key not in types:
            raise InputError(f"{path}: teacher {name} has an unknown key {key!r}: choose from {', '.join(types)}")
        if type(value) is not types[key]:
            raise InputError(f"{path}: teacher {name}: {key} must be {types[key].__name__}, not {value!r}")
    if "source" not in table:
        raise InputError(f"{path}: teacher {name} has no source")
    fields = dict(table)
    beside = path.parent / fields["source"]
    # Not Path.exists and Path.expanduser: these raise an error on a name that is too long, or of an unknown user.
    if os.path.exists(beside):
        fields["source"] = str(beside)
    if "class_map" in fields:
        fields["class_map"] = path.parent / os.path.expanduser(fields["class_map"])
    return TeacherSpec(name, **fields)
