"""A small CED with random weights, exported as fp32 ONNX, for tests that run a bundle."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ced_edge.files import sha256_file
from ced_edge.network.ced import CED
from ced_edge.runtime.bundle import BUNDLE_NAME, LABELS_NAME, Bundle, ModelFile, labels_text
from ced_edge.spec import ModelSpec

SPEC = ModelSpec(width=24, heads=3, depth=2, max_frames=201)
"""Its longest input is 2 s, so torch's `predict` cuts the same windows as the bundle."""
WINDOW_S = 2.0


def tiny_model(seed: int = 0, spec: ModelSpec = SPEC) -> CED:
    """Random weights, large enough that predictions differ between clips and spread over (0, 1)."""
    torch.manual_seed(seed)
    model = CED(spec).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        norm: Any = model.init_bn[1]
        norm.running_mean.fill_(-30.0)
        norm.running_var.fill_(400.0)
    return model


def random_model() -> CED:
    """Of 48 features, with weights near those of a new model."""
    torch.manual_seed(1)
    model = CED(ModelSpec(width=48, heads=3, depth=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
        norm: Any = model.init_bn[1]
        norm.running_mean.fill_(-40)
        norm.running_var.fill_(100)
    return model


class Probabilities(nn.Module):
    """Waveform (B, samples), or log-mel (B, n_mels, T), -> probabilities (B, n_classes)."""

    def __init__(self, model: CED, mel: bool) -> None:
        super().__init__()
        self.model, self.mel = model, mel

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_mel(x) if self.mel else self.model(x)
        return torch.sigmoid(logits)


def export_onnx(path: Path, model: CED, input: str, window_s: float, free: bool = True) -> None:
    """Write a .onnx file with a free batch, and a free time axis or one of exactly the window."""
    front, samples = model.spec.frontend, round(window_s * model.spec.frontend.rate_hz)
    x = torch.randn(2, front.n_mels, front.frames(samples)) if input == "mel" else torch.randn(2, samples)
    shape = {0: torch.export.Dim.DYNAMIC, x.ndim - 1: torch.export.Dim.DYNAMIC if free else torch.export.Dim.STATIC}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), quiet:
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            Probabilities(model, input == "mel"),
            (x,),
            path,
            dynamo=True,
            input_names=[input],
            output_names=["prob"],
            dynamic_shapes=(shape,),
            external_data=False,
            verbose=False,
        )


def write_bundle(
    folder: Path, input: str = "waveform", window_s: float = WINDOW_S, seed: int = 0, free: bool = True
) -> Bundle:
    """Export `tiny_model(seed)` as fp32 ONNX into `folder`, with labels.txt and bundle.json."""
    model = tiny_model(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{SPEC.name}-fp32.onnx"
    export_onnx(path, model, input, window_s, free)
    (folder / LABELS_NAME).write_text(labels_text(), encoding="utf-8")
    bundle = Bundle(
        folder=folder,
        spec=SPEC,
        window_s=window_s,
        input=input,
        files=(model_file(path, "fp32"),),
        checkpoint_sha256="0" * 64,
        labels_sha256=sha256_file(folder / LABELS_NAME),
        reference={"metrics": {"mean_ap": 0.5}},
        versions={"torch": torch.__version__},
    )
    bundle.write()
    return bundle


def model_file(path: Path, kind: str) -> ModelFile:
    """The entry of a file in bundle.json."""
    return ModelFile(path.name, kind, "none" if kind == "fp32" else "made up", path.stat().st_size, sha256_file(path))


def with_file(bundle: Bundle, path: Path, kind: str) -> Bundle:
    """The bundle with one more file, which is in its folder already. Its bundle.json is written again."""
    more = dataclasses.replace(bundle, files=(*bundle.files, model_file(path, kind)))
    more.write()
    return more


def edit_bundle(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the fields of a bundle.json, and make its hash match."""
    path = folder / BUNDLE_NAME
    fields = json.loads(path.read_text())
    del fields["sha256"]
    edit(fields)
    fields["sha256"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(fields))


def shared_bundle(input: str = "waveform") -> Bundle:
    """A bundle that all tests of this process share. Read it only; a test that changes it makes a copy."""
    return _made_once(input)


@functools.cache
def _made_once(input: str) -> Bundle:
    folder = Path(tempfile.mkdtemp(prefix="tiny-bundle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_bundle(folder / "bundle", input)
