"""Torch devices by name."""

from __future__ import annotations

import torch

from ced_edge.errors import InputError
from ced_edge.machine import cpu_name
from distill.processes import local_rank


def local_device(device: str) -> str:
    """`cuda` as this process's own GPU under torchrun; any other device unchanged."""
    rank = local_rank()
    return device if device != "cuda" or rank is None else f"cuda:{rank}"


def find_device(name: str) -> torch.device:
    """The device of that name (cpu, cuda, cuda:1, mps). Raises InputError when this machine has no such device."""
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda", "mps", "xpu")
    except RuntimeError:
        known = False
    if not known:
        raise InputError(f"unknown device {name!r}: choose cpu or cuda")
    try:
        torch.empty(1, device=device)
    except Exception as e:  # each backend raises its own
        raise InputError(f"--device {name}: torch finds no such device on this machine: use --device cpu") from e
    return device


def device_name(device: torch.device) -> str:
    """The name of the hardware, or the kind of device where the system has no name for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return cpu_name()
    return device.type


def has_fast_bf16(kind: str) -> bool:
    """Whether the hardware multiplies faster in bfloat16 than in float32: Ampere and later, AMX, AMD's AVX-512 BF16."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    amx, avx512 = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("amx_tile", "avx512_bf16"))
    # Intel has AVX-512 BF16, too, but there a product of matrices takes 1.8 times as long as in float32.
    return bool(amx or (avx512 and "AMD" in cpu_name()))
