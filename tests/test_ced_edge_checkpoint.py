"""Checkpoints: every published form loads to the same outputs, and what does not fit is refused in one line."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_forms import (
    HUB,
    PLAIN,
    SMALL,
    WAVE,
    State,
    half_precision,
    hugging_face,
    plain_safetensors,
    published_pt,
    small_model,
    state_of,
)
from safetensors.torch import load_file, save_file

from ced_edge import __version__
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.labels import labels_hash
from ced_edge.network import checkpoint
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import find_checkpoint, git_revision, load_model, read_metadata, save_model
from ced_edge.spec import FrontendSpec, ModelSpec, size


@pytest.fixture(scope="module")
def model() -> CED:
    return small_model()


@pytest.fixture
def state(model: CED) -> State:
    return state_of(model)


def test_expected_keys_are_the_published(shared: Path, state: State) -> None:
    theirs = load_file(shared / "golden" / "ced_official_small.safetensors")
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize("form", ["ced_official_small.pt", "ced_official_small.safetensors", "hub"])
def test_golden_forms(shared: Path, tmp_path: Path, form: str) -> None:
    source = shared / "golden" / form
    if form == "hub":
        source = tmp_path
        save_file(
            hugging_face(load_file(shared / "golden" / "ced_official_small.safetensors")),
            tmp_path / "model.safetensors",
        )
        (tmp_path / "config.json").write_text('{"num_heads": 3}')
    with np.load(shared / "golden" / "ced_official_small.npz") as golden, torch.inference_mode():
        model = load_model(source, heads=3 if form != "hub" else None)
        for clip in "ab":
            wave = torch.from_numpy(golden[f"{clip}_wave"]).float()[None] / 32768
            torch.testing.assert_close(model(wave)[0], torch.from_numpy(golden[f"{clip}_logits"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("write", [*PLAIN, *HUB, half_precision])
def test_every_form_gives_the_same_outputs(
    model: CED, state: State, tmp_path: Path, write: Callable[[State, Path], Path]
) -> None:
    loaded = load_model(write(state, tmp_path), heads=None if write in HUB else 3)
    assert loaded.spec == SMALL
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    atol = 0.1 if write is half_precision else 0.0
    with torch.inference_mode():
        torch.testing.assert_close(loaded(WAVE), model(WAVE), rtol=0, atol=atol)


def test_a_saved_model_describes_itself(model: CED, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "new" / "model.safetensors"
    save_model(path, model, {"recipe": {"lr": 1e-3}, "note": "two words", "step": 7})
    for source in (path, path.parent, str(path)):
        loaded = load_model(source)
        assert loaded.spec == SMALL
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not caplog.records  # nothing was guessed
    metadata = read_metadata(path.parent)
    assert metadata == {
        "format": "ced-edge",
        "spec": SMALL.to_dict(),
        "recipe": {"lr": 1e-3},
        "note": "two words",
        "step": "7",
        "labels_hash": labels_hash(),
        "version": __version__,
        "git_revision": git_revision(),
    }
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert read_metadata(published_pt(model.state_dict(), tmp_path)) == {}


def test_the_same_model_is_the_same_bytes(model: CED, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, model, {"recipe": {"b": 1, "a": 2}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_full_disk_keeps_the_last_good_checkpoint(
    model: CED, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model, {"step": "1"})

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as f:
            f.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CedEdgeError, match=r"disk full while writing .*model\.safetensors"):
        save_model(path, model, {"step": "2"})
    assert read_metadata(path)["step"] == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_published_sizes_need_no_help(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(CED(size("tiny")).state_dict(), tmp_path / "tiny.pt")
    assert load_model(tmp_path / "tiny.pt").spec == size("tiny")
    assert not caplog.records


@pytest.mark.parametrize(("width", "heads"), [(48, 3), (128, 2)])
def test_guessed_heads_are_said_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture, width: int, heads: int) -> None:
    torch.save(CED(ModelSpec(width=width, heads=1, depth=1)).state_dict(), tmp_path / "odd.pt")
    assert load_model(tmp_path / "odd.pt").spec.heads == heads
    assert f"assuming {heads} heads" in caplog.text


def test_heads_that_cannot_be_guessed_are_an_error(tmp_path: Path) -> None:
    torch.save(CED(ModelSpec(width=40, heads=5, depth=1)).state_dict(), tmp_path / "odd.pt")
    with pytest.raises(InputError, match="the number of heads for width 40 is unknown"):
        load_model(tmp_path / "odd.pt")
    assert load_model(tmp_path / "odd.pt", heads=5).spec.heads == 5
    (tmp_path / "config.json").write_text('{"num_heads": 10}')
    assert load_model(tmp_path / "odd.pt").spec.heads == 10


def test_other_heads_than_those_of_the_file_are_refused(model: CED, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model, {})
    with pytest.raises(InputError, match="is a 48x2 with 3 heads; requested is a 48x2 with 6 heads"):
        load_model(tmp_path / "m.safetensors", ModelSpec(width=48, heads=6, depth=2))
    other = ModelSpec(width=48, heads=3, depth=2, frontend=FrontendSpec(top_db=80.0))
    with pytest.raises(InputError, match=r"requested is a 48x2 with 3 heads and another front end$"):
        load_model(tmp_path / "m.safetensors", other)


def test_a_long_time_embedding_is_cut_aloud(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = ModelSpec(width=48, heads=3, depth=2, max_frames=320)
    with caplog.at_level(logging.WARNING):
        loaded = load_model(plain_safetensors(state, tmp_path), short)
    torch.testing.assert_close(loaded.time_pos_embed.data, state["time_pos_embed"][..., :20])
    assert "the time embedding has 63 columns, cut to the 20 of this model" in caplog.text


def test_a_short_time_embedding_is_stretched_aloud(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ramp = torch.arange(20.0).expand(1, 48, 1, 20)
    path = plain_safetensors({**state, "time_pos_embed": ramp.contiguous()}, tmp_path)
    loaded = load_model(path, SMALL)
    stretched = loaded.time_pos_embed.data[0, 0, 0]
    assert stretched.shape == (63,)
    assert (stretched.diff() >= 0).all()
    assert (stretched[0], stretched[-1]) == (0.0, 19.0)
    assert "the time embedding has 20 columns, stretched to the 63 of this model" in caplog.text
    # Asked for nothing in particular, the file decides.
    assert load_model(path, heads=3).spec.grid_time == 20


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for source in (tmp_path / "no.pt", "no/such.safetensors", str(tmp_path / "a" / "b"), "plain", "a/b/c"):
        with pytest.raises(InputError, match="no such checkpoint"):
            find_checkpoint(source)
    with pytest.raises(InputError, match=r"no checkpoint in the folder .*model.safetensors, pytorch_model.bin"):
        find_checkpoint(tmp_path)


def test_git_revision_is_of_this_repository_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    assert git_revision() == "unknown" or len(git_revision().rstrip("+")) == 40
    # As if installed into a virtual environment inside another repository.
    monkeypatch.setattr(checkpoint, "__file__", str(Path(__file__).parent / "package" / "network" / "checkpoint.py"))
    assert git_revision.__wrapped__() == "unknown"
