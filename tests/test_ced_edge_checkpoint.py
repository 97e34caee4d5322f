"""Checkpoints: every published form loads to the same outputs, and what does not fit is refused in one line."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from ced_edge import __version__
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.labels import labels_hash
from ced_edge.network import checkpoint
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import find_checkpoint, git_revision, load_model, read_metadata, save_model
from ced_edge.spec import ModelSpec, size

SMALL = ModelSpec(width=48, heads=3, depth=2)
WAVE = torch.rand(2, 8_000, generator=torch.Generator().manual_seed(0)) - 0.5
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> CED:
    torch.manual_seed(0)
    model = CED(SMALL).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
    return model


@pytest.fixture
def state(model: CED) -> State:
    """Published key style, without front-end buffers; a copy that a test may change."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def hugging_face(state: State) -> State:
    """The key style of mispeech/ced-* on the hub."""
    keys = {k: k if k.startswith("outputlayer.") else "encoder." + k.replace("init_bn.1.", "init_bn.") for k in state}
    return {keys[k]: v for k, v in state.items()}


def published(state: State) -> State:
    front_end = {"front_end.0.spectrogram.window": torch.ones(512), "front_end.0.mel_scale.fb": torch.ones(257, 64)}
    return {**front_end, **state}


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
    assert f"taking it to have {heads} heads" in caplog.text


def test_heads_that_cannot_be_guessed_are_asked_for(tmp_path: Path) -> None:
    torch.save(CED(ModelSpec(width=40, heads=5, depth=1)).state_dict(), tmp_path / "odd.pt")
    with pytest.raises(InputError, match="how many heads a model 40 wide has is unknown"):
        load_model(tmp_path / "odd.pt")
    assert load_model(tmp_path / "odd.pt", heads=5).spec.heads == 5
    (tmp_path / "config.json").write_text('{"num_heads": 10}')
    assert load_model(tmp_path / "odd.pt").spec.heads == 10


def test_other_heads_than_the_file_says_are_refused(model: CED, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model, {})
    with pytest.raises(InputError, match="is a 48x2 of 3 heads; asked for was a 48x2 of 6 heads"):
        load_model(tmp_path / "m.safetensors", ModelSpec(width=48, heads=6, depth=2))


def test_a_long_time_embedding_is_cut_aloud(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = ModelSpec(width=48, heads=3, depth=2, max_frames=320)
    with caplog.at_level(logging.WARNING):
        loaded = load_model(plain_safetensors(state, tmp_path), short)
    torch.testing.assert_close(loaded.time_pos_embed.data, state["time_pos_embed"][..., :20])
    assert "the time embedding has 63 columns, cut to the first 20 of this model" in caplog.text


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
    assert "the time embedding has 20 columns, stretched to 63 of this model" in caplog.text
    # Asked for nothing in particular, the file decides.
    assert load_model(path, heads=3).spec.grid_time == 20


def change(state: State, key: str, tensor: Tensor | None) -> State:
    return {k: v for k, v in {**state, key: tensor}.items() if v is not None}


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        ("norm.weight", torch.zeros(47), r"norm.weight has the shape \(47,\), this model's is \(48,\)"),
        ("outputlayer.1.weight", torch.zeros(50, 48), r"outputlayer.1.weight has the shape \(50, 48\).*\(527, 48\)"),
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
    with pytest.raises(InputError, match=r"outputlayer.1.* has the shape \(50"):
        load_model(path, heads=3)
    asked = ModelSpec(width=48, heads=3, depth=2, n_classes=50)
    assert load_model(path, asked).spec.n_classes == 50


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
    __reduce__ = lambda self: (print, ("code ran",))  # noqa: E731


@pytest.mark.parametrize("content", [{"x": Evil()}, [1, 2], {"a": 1, "b": torch.zeros(1)}, torch.zeros(3)])
def test_a_pickle_without_a_state_dict_is_refused(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt (holds no state dict|is not a readable checkpoint)"):
        load_model(tmp_path / "x.pt")
    assert "code ran" not in capsys.readouterr().out


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for source in (tmp_path / "no.pt", "no/such.safetensors", str(tmp_path / "a" / "b"), "plain", "a/b/c"):
        with pytest.raises(InputError, match="no such checkpoint"):
            find_checkpoint(source)
    with pytest.raises(InputError, match=r"no checkpoint in the folder .*model.safetensors, pytorch_model.bin"):
        find_checkpoint(tmp_path)


def fake_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, online: bool = True) -> list[str]:
    """A hub whose every repository is `folder`; offline, only what is in it counts as cached."""
    asked: list[str] = []

    def download(repo_id: str, filename: str, *, local_files_only: bool = False) -> str:
        asked.append(f"{repo_id}:{filename}")
        if (folder / filename).is_file():
            return str(folder / filename)
        if online and not local_files_only:
            raise EntryNotFoundError(f"404: {filename}")
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache\nmore lines")

    def metadata(url: str, timeout: float) -> None:
        if not online:
            raise OSError("[Errno -2] Name or service not known\nmore lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    return asked


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("write", HUB)
def test_a_hub_name_is_fetched(
    model: CED, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], online: bool
) -> None:
    asked = fake_hub(write(state, tmp_path), monkeypatch, online)
    loaded = load_model("mispeech/ced-tiny")
    assert asked[:2] == ["mispeech/ced-tiny:config.json", "mispeech/ced-tiny:model.safetensors"]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(WAVE), model(WAVE), rtol=0, atol=0)


def test_weights_in_the_cache_are_enough(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub_folder(state, tmp_path) / "config.json").unlink()
    fake_hub(tmp_path, monkeypatch, online=False)
    assert find_checkpoint("someone/ced").weights == tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("online", "message"),
    [
        (True, "has neither model.safetensors nor"),
        (False, r"no file or folder someone/nothing, and .* out of reach: \[Errno -2\] Name or service not known$"),
    ],
)
def test_a_hub_without_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool, message: str) -> None:
    fake_hub(tmp_path, monkeypatch, online)
    with pytest.raises(InputError, match=message) as e:
        load_model("someone/nothing")
    assert "\n" not in str(e.value)


def test_a_hub_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("401 Client Error\nRepository Not Found")

    fake_hub(Path(), monkeypatch)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=r"the Hugging Face hub did not give it: 401 Client Error$"):
        load_model("someone/private")


def test_a_hub_out_of_reach_is_told_at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The real client, to a port where nobody answers."""
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_: "http://127.0.0.1:9/model/config.json")
    real, local = huggingface_hub.hf_hub_download, []

    def download(*args: str, local_files_only: bool) -> str:
        local.append(local_files_only)
        return str(real(*args, local_files_only=local_files_only))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError, match="no file or folder someone/nothing-of-this-name, and"):
        load_model("someone/nothing-of-this-name")
    assert local == [True] * 3  # it is not asked again
    assert not caplog.records


def test_a_local_typo_does_not_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_hub(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no such checkpoint: runs/tinny"):
        load_model("runs/tinny")
    assert not asked


def test_git_revision_is_of_this_repository_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    assert git_revision() == "unknown" or len(git_revision().rstrip("+")) == 40
    # As if installed into a virtual environment inside another repository.
    monkeypatch.setattr(checkpoint, "__file__", str(Path(__file__).parent / "package" / "network" / "checkpoint.py"))
    assert git_revision.__wrapped__() == "unknown"
