"""Hugging Face audio classifiers as teachers, on small random models saved to a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from ced_edge.errors import InputError
from ced_edge.labels import labels
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import save_model
from ced_edge.spec import ModelSpec
from distill.teachers.hf import label_indices
from distill.teachers.load import load_teacher
from distill.teachers.spec import TeacherSpec, parse_teachers

SMALL = ModelSpec(width=48, heads=3, depth=2)


def save_ast(folder: Path, names: list[str]) -> Path:
    transformers = pytest.importorskip("transformers", reason="no transformers: pip install transformers")
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_mel_bins=32,
        max_length=128,
        frequency_stride=16,
        time_stride=16,
        initializer_range=0.5,
        id2label=dict(enumerate(names)),
    )
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=128).save_pretrained(folder)
    return folder


def save_hf_ced(folder: Path) -> Path:
    """A CED in the Hugging Face key style, with the config.json it comes with."""
    torch.manual_seed(0)
    folder.mkdir()
    save_model(folder / "own.safetensors", CED(SMALL), {})
    state = load_file(folder / "own.safetensors")
    (folder / "own.safetensors").unlink()
    renamed = {k.replace("init_bn.1.", "init_bn."): v for k, v in state.items()}
    save_file(
        {k if k.startswith("outputlayer") else f"encoder.{k}": v for k, v in renamed.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "ced", "num_heads": 3, "embed_dim": 48}))
    return folder


def noise(clips: int, samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(0))


def test_ast(tmp_path: Path) -> None:
    names = [label.name for label in labels()][::-1][:40]
    folder = save_ast(tmp_path / "ast", ["No such class", *names])
    teacher = load_teacher(folder)
    assert (teacher.name, teacher.rate_hz) == ("ast", 16_000)
    assert teacher.known.nonzero()[0].tolist() == list(range(487, 527))
    wave = noise(3, 20_000)
    probs = teacher(wave)
    assert probs.shape == (3, 527)
    assert not probs[:, ~teacher.known].any()
    # Against transformers itself: output 1 is the last class of AudioSet.
    import transformers

    model = transformers.ASTForAudioClassification.from_pretrained(folder).eval()
    features = transformers.ASTFeatureExtractor.from_pretrained(folder)
    with torch.inference_mode():
        inputs = features([w.numpy() for w in wave], sampling_rate=16_000, return_tensors="pt")
        expected = torch.sigmoid(model(**inputs).logits)
    torch.testing.assert_close(probs[:, 487:], expected[:, 1:].flip(1), atol=1e-6, rtol=0)
    assert probs[:, 487:].std() > 0.01
    # Neighbours do not matter; short clips are padded; long ones are used to the end.
    torch.testing.assert_close(teacher(torch.cat([wave[:1], 20 * wave[1:]]))[0], probs[0], atol=1e-6, rtol=0)
    assert teacher(wave[:, :3_000]).isfinite().all()
    ends = noise(1, 40_960)
    torch.testing.assert_close(teacher(ends), (teacher(ends[:, :20_480]) + teacher(ends[:, 20_480:])) / 2)


def test_ast_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"knows no AudioSet class: its labels are yes, no"):
        load_teacher(save_ast(tmp_path / "ast", ["yes", "no", "up"]))


def test_labels() -> None:
    assert label_indices({0: "speech", 1: "/m/05zppz", 2: "?"}, "t").tolist() == [0, 1, -1]
    assert label_indices({i: f"LABEL_{i}" for i in range(527)}, "t").tolist() == list(range(527))
    with pytest.raises(InputError, match="two outputs for one"):
        label_indices({0: "Speech", 1: "/m/09x0r"}, "t")
    with pytest.raises(InputError, match="teacher t: its id2label must number the labels 0, 1, 2"):
        label_indices({0: "Speech", 2: "Music"}, "t")


def test_ced_folder_and_run_folder(tmp_path: Path) -> None:
    folder = save_hf_ced(tmp_path / "ced-small")
    teacher = load_teacher(folder)
    assert (teacher.name, teacher.rate_hz, int(teacher.known.sum())) == ("ced-small", 16_000, 527)
    wave = noise(2, 32_000)
    torch.manual_seed(0)
    expected = torch.sigmoid(CED(SMALL).eval()(wave))
    torch.testing.assert_close(teacher(wave), expected, atol=1e-6, rtol=0)
    run = tmp_path / "run"
    torch.manual_seed(0)
    save_model(run / "latest.safetensors", CED(SMALL), {})
    torch.testing.assert_close(load_teacher(run)(wave), expected, atol=1e-6, rtol=0)


def test_hash_of_a_folder(tmp_path: Path) -> None:
    folder = save_hf_ced(tmp_path / "ced")
    digest = load_teacher(folder).sha256
    (folder / "README.md").write_text("not part of the model")
    assert load_teacher(TeacherSpec("a", str(folder), sha256=digest)).sha256 == digest
    (folder / "config.json").write_text(json.dumps({"model_type": "ced", "num_heads": 3}))
    with pytest.raises(InputError, match="another model, or damaged"):
        load_teacher(TeacherSpec("a", str(folder), sha256=digest))


def test_by_name_through_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_hf_ced(tmp_path / "cache")
    requests: list[Any] = []

    def snapshot(hub_id: str, allow_patterns: list[str]) -> str:
        requests.append((hub_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_teacher("mispeech/ced-tiny").name == "ced-tiny"
    assert requests == [("mispeech/ced-tiny", ["*.json", "model.safetensors"])]

    def offline(hub_id: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match=r"no file mispeech/ced-tiny here, .* did not give it: no route$"):
        load_teacher("mispeech/ced-tiny")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install huggingface-hub"):
        load_teacher("mispeech/ced-tiny")


def test_what_looks_like_a_path_is_never_taken_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(hub_id: str, allow_patterns: list[str]) -> str:
        raise AssertionError(hub_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teachers").mkdir()
    for source, path in (
        ("teachers/mn40", "teachers/mn40"),  # the folder is there: a misspelt file
        ("~/mn40", f"{tmp_path}/mn40"),
        ("~/teachers/mn40", f"{tmp_path}/teachers/mn40"),
        ("/mn40/x", "/mn40/x"),
        ("./mn40", "mn40"),
        ("../x/mn40", "../x/mn40"),
        (".cache/mn40", ".cache/mn40"),
        ("~nobody-here/mn40", "~nobody-here/mn40"),
        ("a" * 300 + "/mn40.pt", "a" * 300 + "/mn40.pt"),  # longer than a name may be
    ):
        with pytest.raises(InputError, match=f"no such teacher: {path}: ") as caught:
            load_teacher(source)
        assert "\n" not in str(caught.value)
    teacher = load_teacher(save_hf_ced(tmp_path / "teachers" / "ced"))
    (spec,) = parse_teachers(["own=~/teachers/ced"])
    assert (load_teacher(spec).name, load_teacher(spec).sha256) == ("own", teacher.sha256)


def test_code_of_a_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither run nor offered to be run, be it for the features or for the model."""
    questions: list[object] = []
    monkeypatch.setattr("builtins.input", questions.append)
    for file, key in (
        ("preprocessor_config.json", "AutoFeatureExtractor"),
        ("config.json", "AutoModelForAudioClassification"),
        ("config.json", "AutoConfig"),
    ):
        folder = save_ast(tmp_path / key, ["Speech", "Dog"])
        (folder / "harm.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Harm: pass\n")
        config = json.loads((folder / file).read_text())
        changed = {**config, "auto_map": {key: "harm.Harm"}, "model_type": "harm", "feature_extractor_type": "Harm"}
        (folder / file).write_text(json.dumps(changed))
        with pytest.raises(InputError, match="is no usable Hugging Face audio classifier"):
            load_teacher(folder)
    assert questions == []
    assert not (tmp_path / "harm").exists()


def test_broken_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no checkpoint in the folder"):
        load_teacher(tmp_path / "empty")
    folder = save_ast(tmp_path / "ast", ["Speech", "Dog"])
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "classifier.dense.bias"},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=r"its weights lack classifier\.dense\.bias"):
        load_teacher(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="no usable Hugging Face audio classifier") as e:
        load_teacher(folder)
    assert "\n" not in str(e.value)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="no usable Hugging Face audio classifier") as e:
        load_teacher(folder)
    assert "\n" not in str(e.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        load_teacher(folder)
    (folder / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="pip install transformers"):
        load_teacher(folder)
