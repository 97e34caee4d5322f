"""Tensors of checkpoint files, unwrapped. Nothing in a file is trusted, and no code in it is run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ced_edge.errors import InputError, first_line
from ced_edge.spec import N_CLASSES

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs keep the weights, beside the epoch and the optimizer."""
_PREFIX = re.compile(r"(?:(?:module|_orig_mod|model|net|student)\.)*")
"""What wrappers put in front of each name: DataParallel, torch.compile, and the attribute of a Lightning module."""


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the format of safetensors."""
    with path.open("rb") as f:
        return path.suffix == ".safetensors" or f.read(9)[8:] == b"{"


def unreadable(path: Path, e: Exception) -> InputError:
    """The error for a file that cannot be loaded."""
    # Not torch's own text: it advises to load the file unsafely.
    reason = "it holds more than tensors, save the state dict alone" if "weights_only" in str(e) else first_line(e)
    return InputError(f"{path} is not a readable checkpoint (broken or of another kind): {reason}")


def wrong_classes(classes: int) -> str:
    """The message for a head with another number of classes."""
    return f"AudioSet's {N_CLASSES} classes are what this version knows; this head has {classes}"


def load_torch(path: Path) -> Any:
    """What a .pt or .bin file holds, loaded without running its code. Raises almost anything on a broken file.

    PyTorch would unpack a small compressed file to any size: such a file is refused before it is loaded.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch.save never compresses, so all parts together are smaller than the file.
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed, which torch.save never does")
    return torch.load(path, map_location="cpu", weights_only=True)


class Weights(NamedTuple):
    """Tensors by name, and what was removed around them, in words; empty if nothing was."""

    tensors: dict[str, Tensor]
    note: str


def read_weights(path: Path, *anchors: str) -> Weights:
    """The tensors of a .safetensors or PyTorch file by name, without what wrappers added to it.

    The tensors may lie under WRAPPERS, and their names may start with `module.`, `_orig_mod.`, `model.`, `net.` or
    `student.`, in any order. Where some names have such a prefix and others have not, the weights are those with the
    prefix in front of one of `anchors`, names of which each network has one. Raises InputError, also for tensors that
    could fill the memory.
    """
    try:
        state = load_file(path) if is_safetensors(path) else load_torch(path)
    except Exception as e:  # pickle, zip and safetensors each raise their own
        raise unreadable(path, e) from e
    under: list[str] = []
    while isinstance(state, Mapping):
        key = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if key is None:
            break
        under.append(key)
        state = state[key]
    tensors = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not tensors or not state:
        wrappers = ", ".join(map(repr, WRAPPERS))
        raise InputError(f"{path} holds no state dict (tensors by name, alone or under one of the keys {wrappers})")
    for key, v in state.items():
        if v.layout is not torch.strided or v.device.type != "cpu" or v.is_quantized or v.is_complex():
            raise InputError(f"{path}: {key} is not a plain tensor of numbers")
    # A view with a stride of 0 repeats one number to any size; a copy of it would fill the memory.
    if sum(v.numel() * v.element_size() for v in state.values()) > path.stat().st_size:
        raise InputError(f"{path} is not a readable checkpoint: its tensors are larger than the file")
    return _without_prefix(state, anchors, path, under)


def _without_prefix(state: Mapping[str, Tensor], anchors: tuple[str, ...], path: Path, under: list[str]) -> Weights:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        found_prefix = _PREFIX.match(key)
        prefix = found_prefix[0] if found_prefix else ""
        # A part of a model may be compiled: `blocks.0._orig_mod.norm1.weight`.
        name = key[len(prefix) :].replace("._orig_mod.", ".")
        if name in groups.setdefault(prefix, {}):
            raise InputError(f"{path} holds {name} twice under {prefix!r}: save the state dict of the model alone")
        groups[prefix][name] = tensor
    found = sorted(prefix for prefix, group in groups.items() if any(name in group for name in anchors))
    if len(found) > 1:
        listed = " and ".join(map(repr, found))
        raise InputError(f"{path} holds several models, under {listed}: save the state dict of one of them alone")
    prefix = found[0] if found else next(iter(groups)) if len(groups) == 1 else ""
    # Names without a prefix beside others with one: nothing is left out, and the caller names what is odd.
    weights = groups[prefix] if prefix or len(groups) == 1 else dict(state)
    others = len(state) - len(weights)
    notes = [f"the weights are under {'.'.join(under)!r}"] if under not in ([], ["model"]) else []
    notes += [f"the prefix {prefix!r} is removed from their names"] if prefix else []
    notes += [f"{others} other tensors are ignored"] if others else []
    return Weights(weights, f"{path}: {'; '.join(notes)}" if notes else "")
