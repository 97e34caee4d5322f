"""Loading a teacher: what kind it is follows from what its file or folder holds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ced_edge.errors import InputError, first_line
from ced_edge.files import sha256_file
from ced_edge.network.checkpoint import load_torch
from distill.devices import find_device
from distill.teachers import mobilenet
from distill.teachers.base import Teacher
from distill.teachers.spec import CHECKPOINTS, MODEL_FILES, TeacherSpec, default_name

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_teacher(source: str | Path | TeacherSpec, name: str | None = None, device: str = "cpu") -> Teacher:
    """Load a teacher of any kind. The content of its file or folder decides the kind.

    Raises InputError for a missing or damaged file, an unknown architecture, and another hash than the expected one.
    """
    spec = source if isinstance(source, TeacherSpec) else TeacherSpec(name or default_name(str(source)), str(source))
    torch_device = find_device(device)
    path = find_local(spec.source)
    if path is None or path.is_dir():
        from distill.teachers.hf import download, load_hf

        return load_hf(path or download(spec.source), spec.name, torch_device, spec.sha256)
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
    """Load all teachers of a list, in order. Raises InputError as `load_teacher` does."""
    return [load_teacher(spec, device=device) for spec in specs]


def _load_model_file(path: Path, spec: TeacherSpec, digest: str, device: torch.device) -> Teacher:
    from distill.teachers.modelfile import ModelFileOptions, ModelFileTeacher

    chosen = {k: v for k in ("class_map", "rate_hz", "output") if (v := getattr(spec, k)) is not None}
    return ModelFileTeacher(path, spec.name, digest, device, ModelFileOptions(**chosen))


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file (perhaps under `model` or `state_dict`).

    `weights_only`: a pickle could run any code. Raises InputError.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = load_torch(path)
    except Exception as e:  # pickle, zip and safetensors each raise their own
        raise InputError(f"{path} is corrupted or no checkpoint: {first_line(e)}") from e
    for key in ("model", "state_dict"):  # training programs wrap the weights in one of these
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} is no checkpoint: it holds no tensors by name")
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    for key, v in tensors.items():
        if v.layout is not torch.strided or v.device.type != "cpu" or v.is_quantized or v.is_complex():
            raise InputError(f"{path} is no checkpoint: {key} is not a plain tensor of numbers")
    # A stride of 0 repeats one number to any size.
    if sum(v.numel() * v.element_size() for v in tensors.values()) > path.stat().st_size:
        raise InputError(f"{path} is corrupted or no checkpoint: its tensors are larger than the file")
    return tensors


def find_local(source: str) -> Path | None:
    """The file or folder of that name; None for the id of a model on the Hugging Face hub.

    Raises InputError when there is none and the name cannot be an id.
    """
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):  # not Path.exists, which raises an error on a name that is too long
        return path
    is_path = source.startswith(("~", "/", ".")) or path.suffix in (*CHECKPOINTS, *MODEL_FILES)
    # A name whose first part is a folder here is a misspelt path rather than the id of a hub's model.
    if HUB_ID.fullmatch(source) and not is_path and not os.path.isdir(path.parent):
        return None
    raise InputError(f"no such teacher: {path}: give a file, a folder or a Hugging Face id (owner/name)")
