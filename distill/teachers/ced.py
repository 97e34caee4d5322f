"""CED checkpoints as teachers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ced_edge.arrays import Bools
from ced_edge.errors import InputError
from ced_edge.network.ced import CED, predict
from ced_edge.network.checkpoint import load_model
from ced_edge.network.weights import wrong_classes
from ced_edge.spec import N_CLASSES


class CedTeacher:
    """A CED model at 16 kHz. Longer input is predicted in chunks; each counts by its number of samples."""

    def __init__(self, model: CED, name: str, sha256: str, device: torch.device) -> None:
        self.name = name
        self.sha256 = sha256
        self.device = device
        self.rate_hz = model.spec.frontend.rate_hz
        self.min_samples = model.spec.min_samples
        self.known: Bools = np.ones(N_CLASSES, np.bool_)
        self.model = model.eval().to(device)

    @torch.inference_mode()
    def __call__(self, wave: Tensor) -> Tensor:
        return predict(self.model, wave)


def load_ced(source: str | Path, name: str, sha256: str, device: torch.device) -> CedTeacher:
    """A CED teacher from a checkpoint file. Raises InputError for other files and other classes."""
    model = load_model(source)
    if model.spec.n_classes != N_CLASSES:
        raise InputError(f"{source}: {wrong_classes(model.spec.n_classes)}")
    return CedTeacher(model, name, sha256, device)
