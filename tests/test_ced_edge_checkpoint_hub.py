"""Checkpoints from the Hugging Face hub, with a hub that is simulated: online, offline, and without the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from checkpoint_forms import (
    HUB,
    WAVE,
    State,
    hub_folder,
    small_model,
    state_of,
)
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ced_edge.errors import InputError
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import find_checkpoint, load_model


@pytest.fixture(scope="module")
def model() -> CED:
    return small_model()


@pytest.fixture
def state(model: CED) -> State:
    return state_of(model)


def fake_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, online: bool = True) -> list[str]:
    """A hub whose every repository is `folder`; offline, only what is in it counts as cached."""
    requests: list[str] = []

    def download(repo_id: str, filename: str, *, local_files_only: bool = False) -> str:
        requests.append(f"{repo_id}:{filename}")
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
    return requests


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("write", HUB)
def test_a_hub_name_is_fetched(
    model: CED, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], online: bool
) -> None:
    requests = fake_hub(write(state, tmp_path), monkeypatch, online)
    loaded = load_model("mispeech/ced-tiny")
    assert requests[:2] == ["mispeech/ced-tiny:config.json", "mispeech/ced-tiny:model.safetensors"]
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


def test_a_hub_out_of_reach_is_reported_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_a_local_typo_does_not_reach_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = fake_hub(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no such checkpoint: runs/tinny"):
        load_model("runs/tinny")
    assert not requests
