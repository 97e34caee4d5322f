"""A small CED, and every form in which a checkpoint is published, for the tests of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ced_edge.network.ced import CED
from ced_edge.spec import ModelSpec

SMALL = ModelSpec(width=48, heads=3, depth=2)
WAVE = torch.rand(2, 8_000, generator=torch.Generator().manual_seed(0)) - 0.5
State = dict[str, Tensor]


def small_model(spec: ModelSpec = SMALL) -> CED:
    torch.manual_seed(0)
    model = CED(spec).eval().requires_grad_(False)
    # Of the size of trained weights: the initial ones answer nearly the same to everything.
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
    return model


def state_of(model: CED) -> State:
    """Published key style, without front-end buffers; a copy that a test may change."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def hugging_face(state: State) -> State:
    """The key style of mispeech/ced-* on the hub."""
    keys = {k: k if k.startswith("outputlayer.") else "encoder." + k.replace("init_bn.1.", "init_bn.") for k in state}
    return {keys[k]: v for k, v in state.items()}


def published(state: State) -> State:
    front_end = {"front_end.0.spectrogram.window": torch.ones(512), "front_end.0.mel_scale.fb": torch.ones(257, 64)}
    return {**front_end, **state}


def published_pt(state: State, folder: Path) -> Path:
    torch.save(published(state), folder / "ced.pt")
    return folder / "ced.pt"


def published_under_model(state: State, folder: Path) -> Path:
    torch.save({"model": published(state), "epoch": 3}, folder / "ced.pt")
    return folder / "ced.pt"


def plain_safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "ced.safetensors")
    return folder / "ced.safetensors"


def safetensors_of_another_suffix(state: State, folder: Path) -> Path:
    save_file(state, folder / "weights.bin")
    return folder / "weights.bin"


def half_precision(state: State, folder: Path) -> Path:
    torch.save({k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}, folder / "half.pt")
    return folder / "half.pt"


def hub_folder(state: State, folder: Path) -> Path:
    save_file(hugging_face(state), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_heads": 3, "model_type": "ced"}))
    return folder


def old_hub_folder(state: State, folder: Path) -> Path:
    torch.save(hugging_face(state), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"num_heads": 3}))
    return folder


def run_folder(state: State, folder: Path) -> Path:
    save_file(state, folder / "latest.safetensors")
    return folder


PLAIN = (published_pt, published_under_model, plain_safetensors, safetensors_of_another_suffix, run_folder)
HUB = (hub_folder, old_hub_folder)
