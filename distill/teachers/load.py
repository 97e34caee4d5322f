"""Loading a teacher: what kind it is follows from what its file or folder holds."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ced_edge.errors import InputError
from ced_edge.files import sha256_file
from ced_edge.network.checkpoint import ANCHORS
from ced_edge.network.weights import read_weights
from distill.devices import find_device
from distill.teachers import mobilenet
from distill.teachers.base import Teacher
from distill.teachers.spec import CHECKPOINTS, MODEL_FILES, TeacherSpec, default_name

log = logging.getLogger(__name__)

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
    state, note = read_weights(path, mobilenet.ANCHOR, *ANCHORS)
    if mobilenet.is_mobilenet(state):
        if note:
            log.info("%s", note)
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
