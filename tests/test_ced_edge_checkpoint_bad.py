"""Checkpoints that are broken, hostile or of another model: refused in one line, and without filling the memory."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_forms import (
    SMALL,
    State,
    hugging_face,
    plain_safetensors,
    published,
    published_pt,
    small_model,
    state_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from ced_edge.errors import InputError
from ced_edge.network import checkpoint
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model, read_metadata, save_model
from ced_edge.spec import ModelSpec


@pytest.fixture(scope="module")
def model() -> CED:
    return small_model()


@pytest.fixture
def state(model: CED) -> State:
    return state_of(model)


def change(state: State, key: str, tensor: Tensor | None) -> State:
    return {k: v for k, v in {**state, key: tensor}.items() if v is not None}


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("norm.weight", torch.zeros(47), r"norm.weight has the shape \(47,\), this model's is \(48,\)"),
        (
            "outputlayer.1.weight",
            torch.zeros(50, 48),
            "AudioSet's 527 classes are what this version knows; this head has 50",
        ),
        ("outputlayer.1.weight", torch.zeros(527, 50), r"outputlayer.1.weight has the shape \(527, 50\).*\(527, 48\)"),
        ("init_bn.1.weight", torch.zeros(128), r"init_bn.1.weight has the shape \(128,\).*\(64,\)"),
        ("time_pos_embed", torch.zeros(1, 47, 1, 63), r"time_pos_embed has the shape \(1, 47, 1, 63\)"),
        ("freq_pos_embed", torch.zeros(1, 48, 8, 1), r"freq_pos_embed has the shape \(1, 48, 8, 1\)"),
        ("norm.bias", None, "no norm.bias"),
        ("blocks.1.norm1.bias", None, "no blocks.1.norm1.bias"),
        ("blocks.0.mlp.fc1.weight", torch.zeros(50, 48), "odd shapes"),
        ("time_pos_embed", torch.zeros(48, 63), "odd shapes"),
        ("patch_embed.proj.weight", None, "is no CED checkpoint: it has no patch_embed.proj.weight"),
        ("extra.weight", torch.zeros(1), "unknown key extra.weight"),
        ("norm.weight", torch.full((48,), torch.nan), "norm.weight holds NaN"),
        ("norm.weight", torch.full((48,), torch.nan).to(torch.float8_e4m3fn), "norm.weight holds NaN"),
        ("patch_embed.proj.weight", torch.zeros(0, 1, 16, 16), "odd shapes"),
    ],
)
@pytest.mark.parametrize("style", [published, hugging_face])
def test_what_does_not_fit_is_named(
    state: State, tmp_path: Path, key: str, tensor: Tensor | None, message: str, style: Callable[[State], State]
) -> None:
    torch.save(style(change(state, key, tensor)), tmp_path / "bad.pt")
    with pytest.raises(InputError, match=message) as e:
        load_model(tmp_path / "bad.pt", heads=3)
    assert "bad.pt" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_wrong_class_count_is_never_silent(state: State, tmp_path: Path) -> None:
    fifty = {**state, "outputlayer.1.weight": torch.zeros(50, 48), "outputlayer.1.bias": torch.zeros(50)}
    path = plain_safetensors(fifty, tmp_path)
    with pytest.raises(InputError, match="AudioSet's 527 classes are what this version knows; this head has 50"):
        load_model(path, heads=3)
    wanted = ModelSpec(width=48, heads=3, depth=2, n_classes=50)
    assert load_model(path, wanted).spec.n_classes == 50


def test_another_list_of_classes_is_refused(model: CED, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "labels_hash", lambda: "of another list")
        save_model(tmp_path / "m.safetensors", model, {})
    with pytest.raises(InputError, match="was made for another list of classes"):
        load_model(tmp_path / "m.safetensors")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.99), suffix=st.sampled_from([".pt", ".safetensors"]))
def test_a_truncated_file_is_refused(state: State, tmp_path: Path, share: float, suffix: str) -> None:
    whole = (published_pt if suffix == ".pt" else plain_safetensors)(state, tmp_path).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="is not a readable checkpoint") as e:
        load_model(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x00" * 100, b"{}" * 50, b"PK\x03\x04" * 20])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    for read in (load_model, read_metadata):
        if read is read_metadata and suffix != ".safetensors" and content[8:9] != b"{":
            continue
        with pytest.raises(InputError, match="is not a readable checkpoint") as e:
            read(path)
        assert "\n" not in str(e.value)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code ran",)


@pytest.mark.parametrize(
    "content", [{"x": Evil()}, [1, 2], {"a": 1, "b": torch.zeros(1)}, torch.zeros(3), {0: torch.zeros(1)}]
)
def test_a_pickle_without_a_state_dict_is_refused(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt (holds no state dict|is not a readable checkpoint)"):
        load_model(tmp_path / "x.pt")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_compressed_file_is_refused_before_it_is_unpacked(state: State, tmp_path: Path, suffix: str) -> None:
    """PyTorch reads compressed archives, which it never writes: 1 MB can become 1 GB."""
    plain = published_pt({**state, "extra": torch.zeros(1 << 22)}, tmp_path)
    small = tmp_path / f"small{suffix}"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert small.stat().st_size < plain.stat().st_size / 2
    with pytest.raises(InputError, match=r"is not a readable checkpoint .*: it is compressed, which torch.save never"):
        load_model(small, heads=3)


def test_tensors_larger_than_the_file_are_refused(state: State, tmp_path: Path) -> None:
    """A stride of 0 makes a tensor of any size from one number."""
    state["norm.weight"] = torch.zeros(1).expand(1 << 40)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match="its tensors are larger than the file"):
        load_model(tmp_path / "x.pt", heads=3)


def test_tensors_that_are_not_plain_are_refused(state: State, tmp_path: Path) -> None:
    for odd in (torch.zeros(48, dtype=torch.complex64), torch.zeros(48, device="meta"), torch.eye(7).to_sparse()):
        torch.save({**state, "norm.weight": odd}, tmp_path / "x.pt")
        with pytest.raises(InputError, match=r"x\.pt(: norm.weight is not a plain| is not a readable)"):
            load_model(tmp_path / "x.pt", heads=3)


def test_a_block_number_makes_no_blocks(state: State, tmp_path: Path) -> None:
    path = plain_safetensors({**state, "blocks.999999999.norm1.bias": torch.zeros(48)}, tmp_path)
    with pytest.raises(InputError, match=r"ced\.safetensors: "):
        load_model(path, heads=3)


@pytest.mark.parametrize(
    "fields", [{"width": 8_184, "depth": 256}, {"depth": 0}, {"max_frames": 1 << 40}, {"heads": 0}]
)
def test_a_spec_in_a_file_allocates_nothing(model: CED, tmp_path: Path, fields: dict[str, int]) -> None:
    """The network of the first spec would take 800 GB."""
    save_model(tmp_path / "m.safetensors", model, {})
    tensors = load_file(tmp_path / "m.safetensors")
    spec = json.dumps({**SMALL.to_dict(), **fields})
    save_file(tensors, tmp_path / "m.safetensors", {"spec": spec})
    with pytest.raises(InputError, match=r"m\.safetensors: (no |not a possible model|.* has the shape)") as e:
        load_model(tmp_path / "m.safetensors")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("key", ["patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "time_pos_embed"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 48), (1, 48, 1, 0)])
def test_odd_shapes_are_refused(state: State, tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    path = plain_safetensors({**state, key: torch.zeros(shape)}, tmp_path)
    with pytest.raises(InputError, match=r"ced\.safetensors"):
        load_model(path, heads=3)
