"""Evaluation: the same figures for any batch size and order, unreadable clips counted aloud, plain errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_forms import small_model
from sklearn.metrics import average_precision_score
from torch import Tensor

from ced_edge.audio.clips import Clip, data_hash
from ced_edge.audio.read import load
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
from ced_edge.network.ced import CED, predict
from ced_edge.network.checkpoint import save_model
from ced_edge.proof.reference import read_reference
from ced_edge.spec import ModelSpec
from distill.devices import find_device
from distill.evaluation import evaluate as evaluate_module
from distill.evaluation.comparison import evaluate_ensemble
from distill.evaluation.evaluate import Evaluation, evaluate, evaluate_together
from distill.teachers.ensemble import Ensemble

SMALL = ModelSpec(width=48, heads=3, depth=1)
TONES = {"low": (250.0, (3, 5)), "high": (2_000.0, (7,))}
"""Group -> (hertz, class indices)."""


def evaluate_predictor(
    predictor: Callable[[Tensor], Tensor], clips: list[Clip], rate_hz: int, batch_size: int = 32
) -> Evaluation:
    """Evaluate one model: `predictor` returns (B, C)."""
    name = "model"
    return evaluate_together(lambda wave: predictor(wave)[None], [name], clips, rate_hz, batch_size=batch_size)[name]


@pytest.fixture(scope="module")
def model() -> CED:
    return small_model(SMALL)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Tones of two groups in noise: mixed lengths, rates and channels, one of them longer than a chunk."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    clips = []
    for i in range(13):
        group = "low" if i % 2 else "high"
        hertz, classes = TONES[group]
        rate = (16_000, 32_000)[i % 3 == 0]
        samples = int(rate * (11.5 if i == 5 else (0.5, 0.8)[i % 4 == 0]))
        wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate) + 0.1 * rng.standard_normal(samples)
        path = folder / f"{i}.wav"
        soundfile.write(path, np.stack([wave] * (1 + i % 2), axis=1).clip(-1, 1), rate)
        clips.append(Clip(path.name, path, classes, group))
    return clips


def by_pitch(wave: Tensor) -> Tensor:
    """A tagger of the two groups: where in the spectrum the energy is."""
    spectrum = torch.fft.rfft(wave).abs().square()
    split = int(spectrum.shape[1] * 1_000 / 8_000)
    low = spectrum[:, :split].sum(1) / spectrum.sum(1)
    probs = torch.zeros(len(wave), 527)
    probs[:, [3, 5]] = low[:, None]
    probs[:, 7] = 1 - low
    return probs


def test_a_perfect_tagger_scores_one(clips: list[Clip]) -> None:
    evaluation = evaluate_predictor(by_pitch, clips, 16_000)
    assert evaluation.ids == tuple(c.id for c in clips)
    assert evaluation.metrics() == {
        "mean_ap": 1.0,
        "top1_by_group": 1.0,
        "classes_present": 3,
        "clips": 13,
        "rejected": 0,
    }


def test_figures_are_scikit_learns(model: CED, clips: list[Clip]) -> None:
    evaluation = evaluate(model, clips)
    expected = {}
    for c in (3, 5, 7):
        targets = [c in (clip.labels or ()) for clip in clips]
        expected[c] = average_precision_score(targets, evaluation.probs[:, c])
        assert evaluation.per_class_ap[c] == pytest.approx(expected[c])
    assert evaluation.mean_ap == pytest.approx(np.mean(list(expected.values())))
    assert np.isnan(evaluation.per_class_ap).sum() == 527 - 3
    right = [max(p[3], p[5]) > p[7] if c.group == "low" else p[7] >= max(p[3], p[5])
             for p, c in zip(evaluation.probs, clips, strict=True)]  # fmt: skip
    assert evaluation.top1_by_group == pytest.approx(np.mean(right))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_batch_size_changes_nothing(model: CED, clips: list[Clip], batch_size: int) -> None:
    done: list[int] = []
    evaluation = evaluate(model, clips, batch_size=batch_size, progress=done.append)
    with torch.inference_mode():
        alone = torch.cat([predict(model, torch.from_numpy(load(c.path, 16_000))[None]) for c in clips])
    np.testing.assert_allclose(evaluation.probs, alone.numpy(), rtol=0, atol=1e-5)
    assert evaluation.probs.dtype == np.float32
    assert sum(done) == len(clips)
    assert max(done) <= batch_size


def test_clips_of_one_length_are_predicted_together(clips: list[Clip]) -> None:
    shapes: list[tuple[int, ...]] = []

    def tagger(wave: Tensor) -> Tensor:
        shapes.append(tuple(wave.shape))
        return by_pitch(wave)

    evaluate_predictor(tagger, clips, 16_000)
    assert sorted(shapes) == [(1, 184_000), (4, 12_800), (8, 8_000)]


def test_memory_does_not_grow_with_clips_of_many_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [Clip(str(i), tmp_path / str(i), (0,)) for i in range(100)]
    predicted = 0
    loaded = 0

    def fake_load(clip: Clip, rate_hz: int) -> np.ndarray:  # type: ignore[type-arg]
        nonlocal loaded
        loaded += 1
        assert loaded - predicted <= 3 * 4
        return np.zeros(1_000 + int(clip.id), np.float32)

    def tagger(wave: Tensor) -> Tensor:
        nonlocal predicted
        predicted += len(wave)
        return torch.zeros(len(wave), 527)

    monkeypatch.setattr(evaluate_module, "_load", fake_load)
    monkeypatch.setattr(evaluate_module, "data_hash", lambda clips: "")
    assert len(evaluate_predictor(tagger, clips, 16_000, batch_size=4).ids) == 100


class ByPitch:
    """A teacher at a rate of its own that knows some of the classes; counts the clips that it predicts."""

    device, sha256, min_samples = torch.device("cpu"), "0", 1

    def __init__(self, name: str, rate_hz: int, *classes: int) -> None:
        self.name, self.rate_hz, self.clips = name, rate_hz, 0
        self.known = np.isin(np.arange(527), classes)

    def __call__(self, wave: Tensor) -> Tensor:
        self.clips += len(wave)
        return by_pitch(wave) * torch.from_numpy(self.known)


def test_teachers_and_their_ensemble_are_evaluated_in_one_pass(clips: list[Clip]) -> None:
    teachers = [ByPitch("a", 16_000, 3, 5, 7), ByPitch("b", 8_000, 7), ByPitch("c", 32_000, 5, 9)]
    together = evaluate_ensemble(Ensemble(teachers, 16_000), clips)
    assert [teacher.clips for teacher in teachers] == [13, 13, 13]
    assert list(together) == ["a", "b", "c", "ensemble"]
    groups = {**{teacher.name: [teacher] for teacher in teachers}, "ensemble": teachers}
    for name, members in groups.items():
        alone = evaluate_predictor(Ensemble(members, 16_000), clips, 16_000)
        np.testing.assert_allclose(together[name].probs, alone.probs, rtol=0, atol=1e-6)
        assert together[name].to_dict() == alone.to_dict()


def test_other_rates_and_segments(clips: list[Clip]) -> None:
    lengths: list[int] = []

    def tagger(wave: Tensor) -> Tensor:
        lengths.append(wave.shape[1])
        return by_pitch(wave)

    segment = dataclasses.replace(clips[5], start_s=2.0, stop_s=3.0)
    evaluate_predictor(tagger, [segment], 32_000)
    assert lengths == [32_000]


def test_unreadable_clips_are_counted_aloud(
    clips: list[Clip], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    bad = [Clip(n, tmp_path / n, (3,), "low") for n in ("text.wav", "nan.wav", "missing.wav")]
    evaluation = evaluate_predictor(by_pitch, [bad[0], *clips, *bad[1:]], 16_000)
    assert evaluation.ids == tuple(c.id for c in clips)
    reasons = dict(evaluation.rejected)
    assert list(reasons) == ["text.wav", "nan.wav", "missing.wav"]
    assert reasons["text.wav"].startswith("not audio")
    assert reasons["nan.wav"].startswith("unusable samples: the sample at 0.000 s (index 0) is NaN")
    assert reasons["missing.wav"] == "no such file"
    assert "3 of 16 clips left out, the first is text.wav: not audio" in caplog.text
    assert evaluation.data_hash == data_hash(clips)


def test_no_clip_that_can_be_read(clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clip with labels could be read"):
        evaluate_predictor(by_pitch, [Clip("x", tmp_path / "x.wav", (1,))], 16_000)
    unlabelled = dataclasses.replace(clips[0], labels=None)
    with pytest.raises(InputError, match="no clip with labels could be read"):
        evaluate_predictor(by_pitch, [Clip("x", tmp_path / "x.wav", (1,)), unlabelled], 16_000)


def test_no_labels(clips: list[Clip]) -> None:
    with pytest.raises(InputError, match="no clip has labels"):
        evaluate_predictor(by_pitch, [dataclasses.replace(c, labels=None) for c in clips], 16_000)
    with pytest.raises(InputError, match="no clip has labels"):
        evaluate_predictor(by_pitch, [], 16_000)


def test_unlabelled_clips_are_predicted_but_not_counted(clips: list[Clip]) -> None:
    extra = dataclasses.replace(clips[0], id="extra", labels=None, group=None)
    evaluation = evaluate_predictor(by_pitch, [*clips, extra], 16_000)
    assert len(evaluation.probs) == 14
    # Its high tone would count as a miss of class 7.
    assert evaluation.mean_ap == 1.0


def test_without_groups_there_is_no_top1(clips: list[Clip]) -> None:
    evaluation = evaluate_predictor(by_pitch, [dataclasses.replace(c, group=None) for c in clips], 16_000)
    assert evaluation.top1_by_group is None


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1])
def test_an_answer_that_is_no_probability_is_an_error(clips: list[Clip], value: float) -> None:
    with pytest.raises(CedEdgeError, match="no probability: the model is broken"):
        evaluate_predictor(lambda wave: torch.full((len(wave), 527), value), clips, 16_000)


def test_out_of_memory_is_one_line(clips: list[Clip]) -> None:
    def tagger(wave: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CedEdgeError, match="out of memory on cpu: use a batch size below"):
        evaluate_predictor(tagger, clips, 16_000)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta"])
def test_unknown_device(name: str) -> None:
    with pytest.raises(InputError, match="unknown device"):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:97", "mps", "xpu"])
def test_a_device_that_is_not_there(model: CED, clips: list[Clip], name: str) -> None:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if available.get(name.removesuffix(":0")):
        pytest.skip(f"this machine has a {name}")
    with pytest.raises(InputError, match=f"--device {name}: torch finds no such device") as e:
        evaluate(model, clips, device=name)
    assert "\n" not in str(e.value)


def test_cuda_gives_the_cpus_figures(model: CED, clips: list[Clip]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    on_cpu, on_gpu = evaluate(model, clips), evaluate(model, clips, device="cuda")
    model.cpu()
    np.testing.assert_allclose(on_gpu.probs, on_cpu.probs, rtol=0, atol=1e-4)
    assert on_gpu.device == torch.cuda.get_device_name()


def test_bf16_is_near_fp32_and_not_it(model: CED, clips: list[Clip]) -> None:
    full, half = evaluate(model, clips), evaluate(model, clips, dtype="bf16")
    assert half.dtype == "bf16"
    assert half.probs.dtype == np.float32
    difference = np.abs(half.probs - full.probs)
    assert 0 < difference.max() < 0.1  # bfloat16 keeps 8 bits: 0.4 % of each logit


def test_unknown_dtype(model: CED, clips: list[Clip]) -> None:
    with pytest.raises(InputError, match="unknown dtype 'int8': choose one of fp32, bf16"):
        evaluate(model, clips, dtype="int8")


def test_a_reference_never_runs_in_tf32(clips: list[Clip]) -> None:
    seen: set[tuple[bool, bool]] = set()

    def tagger(wave: Tensor) -> Tensor:
        seen.add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return by_pitch(wave)

    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        evaluate_predictor(tagger, clips[:2], 16_000)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[1])
    assert seen == {(False, False)}
    assert torch.backends.cudnn.allow_tf32 == before[0]


def test_the_model_is_left_in_eval_mode(model: CED, clips: list[Clip]) -> None:
    evaluate(model.train(), clips[:1])
    assert not model.training


def test_the_data_hash_is_of_names_labels_and_bytes(clips: list[Clip], tmp_path: Path) -> None:
    whole = data_hash(clips)
    assert data_hash(clips[::-1]) == whole
    assert data_hash(clips[1:]) != whole
    assert data_hash([dataclasses.replace(clips[0], labels=(9,)), *clips[1:]]) != whole
    moved = tmp_path / "elsewhere.wav"
    moved.write_bytes(clips[0].path.read_bytes())
    assert data_hash([dataclasses.replace(clips[0], path=moved), *clips[1:]]) == whole
    moved.write_bytes(clips[0].path.read_bytes()[:-2])
    assert data_hash([dataclasses.replace(clips[0], path=moved), *clips[1:]]) != whole


def test_the_reference_holds_it_all(model: CED, clips: list[Clip], tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_model(weights, model, {})
    evaluation = evaluate(model, clips)
    evaluation.reference(weights).write(tmp_path)
    reference = read_reference(tmp_path)
    np.testing.assert_array_equal(reference.probs, evaluation.probs)
    assert reference.ids == evaluation.ids
    assert reference.metrics == evaluation.metrics()
    assert reference.weights_hash == sha256_file(weights)
    assert reference.data_hash == data_hash(clips)
    assert reference.dtype == "fp32"
    assert reference.device
    assert reference.versions["torch"] == torch.__version__


def test_json_names_the_classes(clips: list[Clip]) -> None:
    evaluation: Evaluation = evaluate_predictor(by_pitch, clips, 16_000)
    text = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert text["mean_ap"] == 1.0
    assert text["per_class_ap"] == {
        "Child speech, kid speaking": 1.0,
        "Narration, monologue": 1.0,
        "Speech synthesizer": 1.0,
    }
