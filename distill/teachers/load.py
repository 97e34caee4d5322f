"""Finding out what a teacher file is, and reading teacher lists: `name=path` options and TOML files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ced_edge.errors import InputError, first_line
from ced_edge.files import read_toml, sha256_file
from distill.devices import teacher_device
from distill.teachers import mobilenet
from distill.teachers.base import Teacher

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
MODEL_FILES = (".tflite", ".onnx")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class TeacherSpec:
    """One teacher as the user names it."""

    name: str
    source: str
    """A file, a folder with config.json, a run's folder, or a Hugging Face id (owner/name)."""
    sha256: str | None = None
    """Refuse the file unless it has this hash."""
    class_map: Path | None = None
    """TFLite and ONNX: CSV with columns index and mid. None: look beside the model."""
    rate_hz: int | None = None
    """TFLite and ONNX: sample rate of the waveform the file takes; 16 kHz where not said."""
    output: str | None = None
    """TFLite and ONNX: `prob` (default) or `logits`."""


def load_teacher(source: str | Path | TeacherSpec, name: str | None = None, device: str = "cpu") -> Teacher:
    """Load a teacher of any kind, by what its file holds.

    Raises InputError in one line: no such file, a corrupted file, an unknown architecture, another hash.
    """
    spec = source if isinstance(source, TeacherSpec) else TeacherSpec(name or _default_name(str(source)), str(source))
    torch_device = teacher_device(device)
    path = _find(spec.source)
    if path is None or path.is_dir():
        from distill.teachers.hf import load_hf

        return load_hf(spec.source, spec.name, torch_device, spec.sha256)
    digest = sha256_file(path)
    if spec.sha256 and digest != spec.sha256.lower():
        raise InputError(f"{path} has sha256 {digest}, not {spec.sha256}: it is another file, or damaged")
    if path.suffix in MODEL_FILES:
        return _load_model_file(path, spec, digest, torch_device)
    for option in ("class_map", "rate_hz", "output"):
        if getattr(spec, option) is not None:
            raise InputError(f"teacher {spec.name}: {option} is for .tflite and .onnx files, not for {path.name}")
    if path.suffix not in CHECKPOINTS:
        raise InputError(f"{path} is no teacher: its name must end in {', '.join((*CHECKPOINTS, *MODEL_FILES))}")
    state = read_state(path)
    if mobilenet.is_mobilenet(state):
        return mobilenet.MobileNetTeacher(mobilenet.load_mobilenet(state, path.name), spec.name, digest, torch_device)
    if any(key.endswith("time_pos_embed") for key in state):
        from distill.teachers.ced import load_ced

        return load_ced(path, spec.name, digest, torch_device)
    raise InputError(f"{path} is neither a CED nor an EfficientAT MobileNet checkpoint: its first key is {min(state)}")


def load_teachers(specs: Sequence[TeacherSpec], device: str = "cpu") -> list[Teacher]:
    """Load every teacher of a list, in order."""
    return [load_teacher(spec, device=device) for spec in specs]


def _load_model_file(path: Path, spec: TeacherSpec, digest: str, device: torch.device) -> Teacher:
    from distill.teachers.modelfile import ModelFileOptions, ModelFileTeacher

    chosen = {k: v for k in ("class_map", "rate_hz", "output") if (v := getattr(spec, k)) is not None}
    return ModelFileTeacher(path, spec.name, digest, device, ModelFileOptions(**chosen))


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file or of a pickled state dict (weights only, perhaps under `model`)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # pickle, zip and safetensors each raise their own
        raise InputError(f"{path} is corrupted or no checkpoint: {first_line(e)}") from e
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} is no checkpoint: it holds no tensors by name")
    return {str(k): v for k, v in state.items() if isinstance(v, Tensor)}


def _default_name(source: str) -> str:
    path = Path(source)
    return path.stem if path.suffix in (*CHECKPOINTS, *MODEL_FILES) else path.name


def _find(source: str) -> Path | None:
    """The file or folder of that name; None for the id of a model on the Hugging Face hub."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    # owner/name, but not a path whose folder is there: that is a misspelt file.
    if HUB_ID.fullmatch(source) and path.suffix not in (*CHECKPOINTS, *MODEL_FILES) and not path.parent.is_dir():
        return None
    raise InputError(f"no such teacher: {source}: give a file, a folder or a Hugging Face id (owner/name)")


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
        raise InputError("no teacher: give --teacher name=path, once or more, or --teachers file.toml")
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two teachers are named {name}: write --teacher other-name=path")
    return specs


def _parse_option(option: str) -> TeacherSpec:
    name, equals, source = option.partition("=")
    if not equals or "/" in name:
        name, source = "", option
    if not source:
        raise InputError(f"--teacher {option!r} names no file: write name=path")
    return TeacherSpec(name or _default_name(source), source)


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
    if beside.exists():
        fields["source"] = str(beside)
    if "class_map" in fields:
        fields["class_map"] = path.parent / fields["class_map"]
    return TeacherSpec(name, **fields)
