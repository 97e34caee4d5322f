"""Weights as training programs wrap them: DataParallel, torch.compile, Lightning, and their keys in any order."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from checkpoint_forms import SMALL, WAVE, State, hugging_face, small_model, state_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ced_edge.errors import InputError
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import load_model
from ced_edge.spec import ModelSpec
from distill.teachers.load import load_teacher
from distill.teachers.mobilenet import MobileNet


@pytest.fixture(scope="module")
def model() -> CED:
    return small_model()


def save(folder: Path, content: object, name: str = "x.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "student"]), max_size=4),
    under=st.lists(st.sampled_from(["state_dict", "model_state_dict", "model"]), max_size=2, unique=True),
    form=st.sampled_from([dict, hugging_face]),
)
def test_every_nesting_loads(
    model: CED,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    parts: list[str],
    under: list[str],
    form: type[dict[str, object]],
) -> None:
    caplog.set_level(logging.INFO)
    caplog.clear()
    prefix = "".join(f"{part}." for part in parts)
    content: object = {prefix + key: tensor for key, tensor in form(state_of(model)).items()}
    for key in reversed(under):
        content = {"epoch": 3, key: content, "optimizer_states": [{"lr": 0.1}]}
    loaded = load_model(save(tmp_path, content), heads=3)
    with torch.inference_mode():
        assert torch.equal(loaded(WAVE), model(WAVE))
    wrapped = bool(prefix or under not in ([], ["model"]))
    assert len(caplog.messages) == wrapped
    assert not prefix or f"the prefix {prefix!r} is removed from their names" in caplog.messages[0]


def test_real_wrappers(model: CED, tmp_path: Path) -> None:
    """The names that PyTorch itself gives."""
    torch.save(torch.nn.DataParallel(torch.compile(model)).state_dict(), tmp_path / "x.pt")
    assert "module._orig_mod.norm.weight" in torch.load(tmp_path / "x.pt", weights_only=True)
    assert load_model(tmp_path / "x.pt", heads=3).spec == SMALL
    part = small_model()
    part.blocks[0] = torch.compile(part.blocks[0])
    torch.save(part.state_dict(), tmp_path / "x.pt")
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "x.pt", heads=3)(WAVE), model(WAVE))


def test_a_lightning_module_with_other_parts(model: CED, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = {f"net.{k}": v for k, v in state_of(model).items()} | {"mel.window": torch.ones(512)}
    path = save(tmp_path, {"state_dict": state, "hyper_parameters": {"lr": 1e-3}, "loops": {}}, "last.ckpt")
    assert load_model(path, heads=3).spec == SMALL
    assert caplog.messages == [
        f"{path}: the weights are under 'state_dict'; the prefix 'net.' is removed from their names; "
        "1 other tensors are ignored"
    ]
    state |= {f"student.{k}": v for k, v in state_of(model).items()}
    with pytest.raises(
        InputError, match=r"holds several models, under 'net\.' and 'student\.': save the state dict of"
    ):
        load_model(save(tmp_path, {"state_dict": state}), heads=3)


def test_a_prefix_makes_nothing_less_strict(model: CED, tmp_path: Path) -> None:
    def wrapped(state: State) -> Path:
        return save(tmp_path, {"state_dict": {f"module.{k}": v for k, v in state.items()}})

    good = state_of(model)
    fifty = {"outputlayer.1.weight": torch.zeros(50, 48), "outputlayer.1.bias": torch.zeros(50)}
    cases = {
        "no norm.bias": {k: v for k, v in good.items() if k != "norm.bias"},
        "unknown key extra.weight": good | {"extra.weight": torch.zeros(1)},
        r"norm.weight has the shape \(47,\)": good | {"norm.weight": torch.zeros(47)},
        "AudioSet's 527 classes are what this version knows; this head has 50": good | fifty,
        "its tensors are larger than the file": good | {"norm.weight": torch.zeros(1).expand(1 << 40)},
    }
    for message, state in cases.items():
        with pytest.raises(InputError, match=message) as e:
            load_model(wrapped(state), heads=3)
        assert "\n" not in str(e.value)
    twice = {"module.norm.weight": good["norm.weight"], "norm.weight": good["norm.weight"]}
    with pytest.raises(InputError, match=r"unknown key module\.norm\.weight"):
        load_model(save(tmp_path, good | twice), heads=3)


def test_teachers_of_both_kinds(model: CED, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wave = torch.rand(1, 32_000) - 0.5
    for network in (MobileNet(0.1), model):
        state = network.state_dict()
        plain = load_teacher(save(tmp_path, state))
        caplog.clear()
        path = save(tmp_path, {"model_state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}, "y.pt")
        assert torch.equal(load_teacher(path)(wave), plain(wave))
        notes = [message for message in caplog.messages if "y.pt" in message and "prefix" in message]
        assert notes == [
            f"{path}: the weights are under 'model_state_dict'; the prefix 'module._orig_mod.' is removed from "
            "their names"
        ]
    spec = ModelSpec(width=48, heads=3, depth=2, n_classes=50)
    with pytest.raises(InputError, match="this head has 50"):
        load_teacher(save(tmp_path, CED(spec).state_dict()))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code ran",)


def test_no_code_of_a_wrapped_file_is_run(model: CED, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, {"state_dict": state_of(model), "hyper_parameters": Evil()})
    for load in (load_model, load_teacher):
        with pytest.raises(InputError, match="it holds more than tensors, save the state dict alone"):
            load(path)
    assert "code ran" not in capsys.readouterr().out
