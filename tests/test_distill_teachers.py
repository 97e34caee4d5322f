"""Checkpoint teachers: golden outputs, independence of the batch, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ced_edge.audio import read as audio
from ced_edge.errors import InputError
from ced_edge.network.ced import CED, predict
from ced_edge.network.checkpoint import save_model
from ced_edge.spec import ModelSpec
from distill.teachers.base import Teacher, window_starts
from distill.teachers.ced import CedTeacher
from distill.teachers.ensemble import Ensemble
from distill.teachers.load import load_teacher, load_teachers
from distill.teachers.mobilenet import (
    MobileNet,
    MobileNetTeacher,
    SqueezeExcite,
    kaldi_mel_filters,
    load_mobilenet,
    scaled,
)
from distill.teachers.spec import TeacherSpec, parse_teachers

MN04_SHA256 = "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"


def noise(clips: int, samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))


def save_mobilenet(path: Path, width: float = 0.1) -> Path:
    """A random MobileNet with lively statistics, so that a wrong fold or layer shows."""
    g = torch.Generator().manual_seed(0)
    state = MobileNet(width).state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=g)
        elif value.is_floating_point():
            value.normal_(0.0, 0.3 if value.ndim > 1 else 0.1, generator=g)
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(save_mobilenet(tmp_path_factory.mktemp("mn") / "mn01.pt"))


@pytest.fixture(scope="module")
def ced(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ced") / "ced.safetensors"
    save_model(path, CED(ModelSpec(width=48, heads=3, depth=2)), {})
    return load_teacher(path, name="ced")


@pytest.fixture(scope="session")
def mn04(shared: Path) -> MobileNetTeacher:
    teacher = load_teacher(shared / "teachers" / "mn04_as_mAP_432.pt", name="mn04")
    assert isinstance(teacher, MobileNetTeacher)
    return teacher


def test_mn04_golden(mn04: MobileNetTeacher, shared: Path) -> None:
    golden = np.load(shared / "golden" / "mn04.npz")
    wave = torch.from_numpy(golden["wave_32k"].astype(np.float32) / 32_768)[None]
    np.testing.assert_allclose(mn04.front_end(wave)[0].numpy(), golden["mel"], atol=1e-4)
    np.testing.assert_allclose(mn04.logits(wave)[0].numpy(), golden["logits"], atol=1e-3)
    assert (mn04.name, mn04.rate_hz, mn04.sha256) == ("mn04", 32_000, MN04_SHA256)
    assert mn04.known.sum() == 527


def test_mn04_at_16_khz_is_the_same_teacher(mn04: MobileNetTeacher, shared: Path) -> None:
    golden = np.load(shared / "golden" / "mn04.npz")
    wave = golden["wave_32k"].astype(np.float32) / 32_768
    for samples in (len(wave) // 2, 47_999, 48_000, 48_001):
        half = soxr.resample(wave, 32_000, 16_000)[:samples]
        full = soxr.resample(half, 16_000, 32_000, quality="VHQ")[: 2 * samples]
        at_rate = mn04.at_rate(16_000)
        a, b = mn04.front_end(torch.from_numpy(full)[None]), at_rate.front_end(torch.from_numpy(half)[None])
        assert a.shape == b.shape
        # Not at the very ends, where the two ways of making up sound beyond them differ.
        difference = (a - b).abs()[:, :, 2:-2]
        assert difference.mean() < 3e-3  # of a spread of 1
        # Where the sound has its energy; in the last bins below 8 kHz the resampler's own slope counts.
        assert difference[:, :100].max() < 0.15
        probs = mn04(torch.from_numpy(full)[None]), at_rate(torch.from_numpy(half)[None])
        torch.testing.assert_close(*probs, atol=0.02, rtol=0)


def test_at_rate_returns_the_teacher_for_other_rates(mobilenet: MobileNetTeacher) -> None:
    assert mobilenet.at_rate(32_000) is mobilenet
    assert mobilenet.at_rate(44_100) is mobilenet
    other = mobilenet.at_rate(16_000)
    assert (other.rate_hz, other.sha256, mobilenet.rate_hz) == (16_000, mobilenet.sha256, 32_000)
    assert other.at_rate(16_000) is other


def test_kaldi_filters_against_torchaudio() -> None:
    expected, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 1024, 32_000, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    filters = kaldi_mel_filters()
    torch.testing.assert_close(filters[:, :-1], expected, atol=2e-5, rtol=0)
    assert not filters[:, -1].any()


@pytest.mark.parametrize(("width", "parameters"), [(0.4, 0.983e6), (0.5, 1.43e6), (1.0, 4.88e6), (2.0, 17.91e6)])
def test_parameter_counts_are_the_published_ones(width: float, parameters: float) -> None:
    with torch.device("meta"):
        model = MobileNet(width)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.004)


def test_scaled_widths() -> None:
    # 6.4 -> 8; 9.6 -> 8 would lose more than 10 %; 26.88 -> 24 would too; 44.8 -> 48.
    assert [scaled(c) for c in (1.6, 6.4, 9.6, 26.88, 44.8, 268.8)] == [8, 8, 16, 32, 48, 272]


@pytest.mark.parametrize("width", [0.1, 0.4])
def test_any_width_and_folded_batchnorm(tmp_path: Path, width: float) -> None:
    path = save_mobilenet(tmp_path / "mn.pt", width)
    teacher = load_teacher(path)
    assert isinstance(teacher, MobileNetTeacher)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in teacher.model.modules())
    plain = load_mobilenet(torch.load(path, weights_only=True), "mn.pt").eval()
    wave = noise(2, 32_000)
    with torch.inference_mode():
        expected = plain(teacher.front_end(wave).unsqueeze(1))
    torch.testing.assert_close(teacher.logits(wave), expected, atol=1e-3, rtol=1e-4)
    assert expected.std() > 0.01


def test_squeeze_excite_trains_and_evaluates_the_same() -> None:
    """Working in place must change neither a gradient nor a prediction."""
    torch.manual_seed(0)
    layer = SqueezeExcite(8).double()
    after_relu = torch.nn.Sequential(torch.nn.ReLU(), layer)
    x = torch.randn(2, 8, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(after_relu, x)
    trained = after_relu(x).detach()
    torch.testing.assert_close(after_relu.eval()(x.detach()), trained)


@pytest.mark.parametrize("kind", ["mobilenet", "ced"])
def test_batch_independent_and_repeatable(kind: str, request: pytest.FixtureRequest) -> None:
    teacher: Teacher = request.getfixturevalue(kind)
    wave = noise(3, 2 * teacher.rate_hz)
    probs = teacher(wave)
    assert probs.shape == (3, 527)
    assert probs.dtype == torch.float32
    assert (probs >= 0).all()
    assert (probs <= 1).all()
    assert torch.equal(probs, teacher(wave))
    loud = torch.cat([wave[:1], 30 * wave[1:]])
    assert torch.equal(teacher(loud)[0], probs[0])
    torch.testing.assert_close(teacher(wave[:1])[0], probs[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["mobilenet", "ced"])
def test_short_input_is_padded(kind: str, request: pytest.FixtureRequest) -> None:
    teacher: Teacher = request.getfixturevalue(kind)
    wave = noise(2, teacher.min_samples // 3)
    padded = torch.nn.functional.pad(wave, (0, teacher.min_samples - wave.shape[1]))
    assert torch.equal(teacher(wave), teacher(padded))
    assert teacher(noise(1, 1)).isfinite().all()


def test_mobilenet_in_parts_equals_whole(mobilenet: MobileNetTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = noise(5, 32_000)
    whole = mobilenet(wave)
    monkeypatch.setattr("distill.teachers.mobilenet.CPU_SECONDS", 2)
    torch.testing.assert_close(mobilenet(wave), whole, atol=1e-5, rtol=0)


def test_ced_uses_every_sample(ced: Teacher) -> None:
    wave = noise(1, 25 * 16_000)
    parts = [ced(p) for p in torch.split(wave, 160_000, dim=1)]
    expected = 0.4 * parts[0] + 0.4 * parts[1] + 0.2 * parts[2]
    torch.testing.assert_close(ced(wave), expected, atol=1e-6, rtol=0)
    exact = torch.split(wave[:, :320_000], 160_000, dim=1)
    torch.testing.assert_close(ced(wave[:, :320_000]), (ced(exact[0]) + ced(exact[1])) / 2, atol=1e-6, rtol=0)


def test_ced_is_the_prediction_of_its_model(ced: Teacher) -> None:
    assert isinstance(ced, CedTeacher)
    for samples in (ced.min_samples - 1, 160_000, 161_000, 25 * 16_000):
        wave = noise(2, samples, seed=samples)
        with torch.inference_mode():
            assert torch.equal(ced(wave), predict(ced.model, wave))


def test_published_ced_checkpoints(shared: Path) -> None:
    golden = np.load(shared / "golden" / "ced_official_small.npz")
    wave = torch.from_numpy(golden["a_wave"].astype(np.float32) / 32_768)[None]
    for suffix in (".pt", ".safetensors"):
        teacher = load_teacher(shared / "golden" / f"ced_official_small{suffix}")
        assert teacher.name == "ced_official_small"
        np.testing.assert_allclose(teacher(wave)[0].numpy(), golden["a_prob"], atol=1e-4)


@given(length=st.integers(1, 5_000), window=st.integers(2, 300), data=st.data())
def test_windows_cover_every_sample_evenly(length: int, window: int, data: st.DataObject) -> None:
    hop = data.draw(st.integers(1, window))
    starts = window_starts(length, window, hop)
    assert starts[0] == 0
    steps = np.diff(starts)
    if length <= window:
        assert starts == [0]
        return
    assert starts[-1] == length - window
    assert (steps <= window).all()
    assert (steps >= 1).all() or hop == 1
    assert np.ptp(steps) <= 1
    # As many steps as come nearest to the hop, and at least as many as leave nothing out.
    assert abs(len(steps) - (length - window) / hop) <= 0.5 or len(steps) == max(1, -(-(length - window) // window))


def test_windows_of_a_clip() -> None:
    assert window_starts(80_000, 15_600, 7_800) == [0, 8_050, 16_100, 24_150, 32_200, 40_250, 48_300, 56_350, 64_400]
    assert window_starts(15_601, 15_600, 7_800) == [0, 1]


def zero_shot(predict: Ensemble, shared: Path, step: int) -> float:
    """Top-1 over every `step`-th clip of ESC-10: a group is as probable as its most probable class."""
    with (shared / "audio" / "esc10.csv").open() as f:
        rows = list(csv.DictReader(f))
    classes = {row["group"]: [int(i) for i in row["labels"].split(";")] for row in rows}
    hits = []
    for row in rows[::step]:
        wave = torch.from_numpy(audio.load(shared / "audio" / row["filename"], 16_000))[None]
        probs = predict(wave)[0]
        hits.append(max(classes, key=lambda group: float(probs[classes[group]].max())) == row["group"])
    return float(np.mean(hits))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "published"),
    [("mn04_as_mAP_432.pt", 0.9625), ("yamnet_waveform.tflite", 0.9175), ("yamnet_spectra_in.tflite", 0.9725)],
)
def test_zero_shot_on_real_clips(shared: Path, file: str, published: float) -> None:
    # A third of the clips: the published figures are of all 400, of which 320 are here.
    accuracy = zero_shot(Ensemble([load_teacher(shared / "teachers" / file)], 16_000), shared, step=3)
    assert accuracy == pytest.approx(published, abs=0.04)


def test_refused_in_one_line(tmp_path: Path) -> None:
    good = save_mobilenet(tmp_path / "good.pt")
    state = torch.load(good, weights_only=True)
    cases: dict[str, object] = {
        "other.pt": {"conv.weight": torch.zeros(3)},
        "list.pt": [1, 2, 3],
        "empty.pt": {},
        "classes.pt": {**state, "classifier.5.weight": torch.zeros(10, 128), "classifier.5.bias": torch.zeros(10)},
        "shape.pt": {**state, "features.3.block.1.0.weight": torch.zeros(8, 1, 5, 5)},
        "extra.pt": {**state, "features.99.weight": torch.zeros(1)},
        "missing.pt": {k: v for k, v in state.items() if k != "features.16.1.bias"},
        "flat.pt": {**state, "classifier.5.weight": torch.zeros(527)},
        # One number of the file, seen 50 billion times.
        "repeated.pt": {**state, "classifier.5.weight": torch.zeros(1, 1).expand(527, 10**8)},
        "wide.pt": {**state, "classifier.5.weight": torch.zeros(527, 40_000)},
        "meta.pt": {**state, "classifier.5.bias": torch.zeros(527, device="meta")},
    }
    for name, value in cases.items():
        torch.save(value, tmp_path / name)
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:5_000])
    (tmp_path / "text.pt").write_text("hello\nworld")
    (tmp_path / "text.safetensors").write_text("hello\nworld")
    (tmp_path / "text.wav").write_text("hello")
    messages = {
        "other.pt": "neither a CED nor an EfficientAT MobileNet checkpoint: its first key is conv.weight",
        "list.pt": "holds no state dict",
        "empty.pt": "holds no state dict",
        "classes.pt": "AudioSet's 527 classes are what this version knows; this head has 10",
        "shape.pt": r"of width 0.1: features.3.block.1.0.weight has shape \(8, 1, 5, 5\), not \(8, 8, 1, 1\)",
        "extra.pt": "unexpected features.99.weight",
        "missing.pt": "lacks features.16.1.bias",
        "flat.pt": r"classifier.5.weight has shape \(527,\), not \(classes, width\)",
        "repeated.pt": "its tensors are larger than the file",
        "wide.pt": r"of width 31.25: classifier.2.bias has shape \(128,\), not \(40000,\)",
        "meta.pt": "classifier.5.bias is not a plain tensor of numbers",
        "cut.pt": "is not a readable checkpoint",
        "text.pt": "is not a readable checkpoint",
        "text.safetensors": "is not a readable checkpoint",
        "text.wav": "its name must end in",
        "nothing.pt": "no such teacher",
        "nothing": "no such teacher",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message) as e:
            load_teacher(tmp_path / name)
        assert "\n" not in str(e.value)
        assert name in str(e.value)


def test_no_memory_is_taken_for_a_width_that_other_weights_do_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {**MobileNet(0.1).state_dict(), "classifier.5.weight": torch.zeros(527, 40_000)}
    places = []

    class Watched(MobileNet):
        def __init__(self, width: float) -> None:
            super().__init__(width)
            places.extend(p.device.type for p in self.parameters())

    monkeypatch.setattr("distill.teachers.mobilenet.MobileNet", Watched)
    with pytest.raises(InputError, match=r"of width 31\.25"):
        load_mobilenet(state, "wide.pt")
    assert set(places) == {"meta"}


def test_pinned_hash_options_and_device(tmp_path: Path) -> None:
    path = save_mobilenet(tmp_path / "mn.pt")
    digest = load_teacher(path).sha256
    assert load_teacher(TeacherSpec("a", str(path), sha256=digest.upper())).sha256 == digest
    with pytest.raises(InputError, match="another file, or damaged"):
        load_teacher(TeacherSpec("a", str(path), sha256="0" * 64))
    with pytest.raises(InputError, match=r"rate_hz is for \.tflite and \.onnx"):
        load_teacher(TeacherSpec("a", str(path), rate_hz=8_000))
    with pytest.raises(InputError, match="unknown device"):
        load_teacher(path, device="gpu")
    absent = {"mps": torch.backends.mps.is_available(), "cuda:7": torch.cuda.device_count() > 7}
    absent |= {"xpu": torch.xpu.is_available(), "cuda": torch.cuda.is_available()}
    for device in [name for name, present in absent.items() if not present]:
        with pytest.raises(InputError, match=f"--device {device}: torch finds no such device on this machine"):
            load_teacher(path, device=device)
    assert [t.name for t in load_teachers(parse_teachers([f"x={path}", str(path)]))] == ["x", "mn"]


def test_parse_options() -> None:
    specs = parse_teachers(["big=a/b.pt", "runs/x=1/best.safetensors", "mispeech/ced-tiny", "yamnet_v1.5.tflite"])
    assert [(s.name, s.source) for s in specs] == [
        ("big", "a/b.pt"),
        ("best", "runs/x=1/best.safetensors"),
        ("ced-tiny", "mispeech/ced-tiny"),
        ("yamnet_v1.5", "yamnet_v1.5.tflite"),
    ]
    for options, message in [
        ([], "no teacher: give --teacher"),
        (["a=x.pt", "a=y.pt"], "two teachers are named a"),
        (["a="], "names no file"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_teachers(options)


def test_parse_toml(tmp_path: Path) -> None:
    toml = tmp_path / "teachers.toml"
    (tmp_path / "yamnet.tflite").touch()
    toml.write_text(
        '[teachers.y]\nsource = "yamnet.tflite"\nclass_map = "map.csv"\nrate_hz = 16000\noutput = "logits"\n'
        '[teachers.c]\nsource = "mispeech/ced-base"\nsha256 = "00"\n'
    )
    assert parse_teachers(["a=b.pt"], toml) == [
        TeacherSpec("a", "b.pt"),
        TeacherSpec("y", str(tmp_path / "yamnet.tflite"), None, tmp_path / "map.csv", 16_000, "logits"),
        TeacherSpec("c", "mispeech/ced-base", "00"),
    ]
    for text, message in [
        ("[teachers.y]\n", "teacher y has no source"),
        ('[teachers.y]\nsource = "x"\nrate = 3\n', "unknown key 'rate': choose from source, sha256"),
        ('[teachers.y]\nsource = "x"\nrate_hz = "3"\n', "rate_hz must be int"),
        ('[teachers.y]\nsource = "x"\nrate_hz = true\n', "rate_hz must be int"),
        ('[y]\nsource = "x"\n', r"must hold tables \[teachers\.<name>\]"),
        ("teachers = 3\n", "must hold tables"),
        ("[teachers\n", "not readable TOML"),
    ]:
        toml.write_text(text)
        with pytest.raises(InputError, match=message):
            parse_teachers([], toml)
    with pytest.raises(InputError, match="no such file"):
        parse_teachers([], tmp_path / "none.toml")


def test_names_in_toml_that_no_file_can_have(tmp_path: Path) -> None:
    toml, name = tmp_path / "teachers.toml", "a" * 300
    toml.write_text(f'[teachers.y]\nsource = "{name}.pt"\nclass_map = "~nobody-here/map.csv"\n')
    (teacher,) = parse_teachers([], toml)
    assert (teacher.source, teacher.class_map) == (f"{name}.pt", tmp_path / "~nobody-here" / "map.csv")
    with pytest.raises(InputError, match="no such teacher: aaa"):
        load_teacher(teacher)
