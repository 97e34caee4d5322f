"""TFLite and ONNX teachers: class maps, windows, YAMNet's front end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.labels import labels
from distill.teachers.load import load_teacher
from distill.teachers.spec import TeacherSpec
from distill.teachers.yamnet import PATCH_SAMPLES, YamnetFrontEnd

onnx = pytest.importorskip("onnx", reason="onnx writes the model files of these tests")

WINDOW = 16_000
SHAPE = tuple[int | str, ...]


def save_onnx(path: Path, shape: SHAPE, outputs: int, kind: str = "prob") -> Path:
    """Output i is the mean square of the input times (i + 1) / `outputs`, or minus one thousand times that."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [shape[0] if len(shape) > 1 else 1, outputs])
    gains = (np.arange(outputs, dtype=np.float32)[None] + 1) / outputs * (-1e3 if kind == "logits" else 1)
    axes = list(range(1, len(shape))) or [0]
    constants = [
        onnx.numpy_helper.from_array(gains, "gains"),
        onnx.numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
    ]
    nodes = [
        onnx.helper.make_node("Mul", ["x", "x"], ["square"]),
        onnx.helper.make_node("ReduceMean", ["square"], ["mean"], axes=axes, keepdims=0),
        onnx.helper.make_node("Reshape", ["mean", "column"], ["power"]),
        onnx.helper.make_node("Mul", ["power", "gains"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "power", [x], [y], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def save_map(path: Path, mids: list[str]) -> Path:
    path.write_text("index,mid,display_name\n" + "".join(f'{i},{m},"any, name"\n' for i, m in enumerate(mids)))
    return path


@pytest.mark.parametrize("shape", [(1, WINDOW), ("b", WINDOW), (WINDOW,)])
def test_windows_are_averaged_and_classes_in_order(tmp_path: Path, shape: SHAPE) -> None:
    teacher = load_teacher(save_onnx(tmp_path / "m.onnx", shape, 527))
    assert (teacher.rate_hz, teacher.min_samples, int(teacher.known.sum())) == (16_000, WINDOW, 527)
    wave = torch.zeros(2, 2 * WINDOW)
    wave[0, : WINDOW // 2] = 1.0  # windows at 0, 8,000 and 16,000: powers 1/2, 0, 0
    wave[1, -1] = 1.0
    probs = teacher(wave)
    gains = (torch.arange(527) + 1) / 527
    torch.testing.assert_close(probs[0], gains * 0.5 / 3)
    torch.testing.assert_close(probs[1], gains / WINDOW / 3)


def test_free_length_gets_the_whole_clip(tmp_path: Path) -> None:
    teacher = load_teacher(save_onnx(tmp_path / "m.onnx", ("b", "samples"), 527))
    wave = torch.full((1, 50_000), 0.5)
    assert float(teacher(wave)[0, 526]) == pytest.approx(0.25)
    assert float(teacher(wave[:, :8_000])[0, 526]) == pytest.approx(0.125)  # padded to 16,000


def test_threads_do_not_change_the_answer(tmp_path: Path) -> None:
    teacher = load_teacher(save_onnx(tmp_path / "m.onnx", (1, WINDOW), 527))
    wave = 0.1 * torch.randn(3, 100_000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(teacher(wave))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    assert torch.equal(teacher(torch.cat([wave[:1], 3 * wave[1:]]))[0], results[0][0])
    assert torch.equal(teacher(wave[:1])[0], results[0][0])


def test_class_map_by_mid_masks_the_rest(tmp_path: Path) -> None:
    mids = [labels()[300].mid, "/m/none", labels()[7].mid]
    path = save_onnx(tmp_path / "m.onnx", (1, WINDOW), 3)
    with pytest.raises(InputError, match=r"give it a class map m_class_map\.csv"):
        load_teacher(path)
    save_map(tmp_path / "elsewhere_class_map.csv", mids)
    teacher = load_teacher(path)
    assert teacher.known.nonzero()[0].tolist() == [7, 300]
    probs = teacher(torch.ones(1, WINDOW))[0]
    assert probs[[7, 300]].tolist() == pytest.approx([1.0, 1 / 3])
    assert probs.count_nonzero() == 2
    # Its own map goes before another one, and the one that is given before both.
    save_map(tmp_path / "m_class_map.csv", mids[::-1])
    assert load_teacher(path)(torch.ones(1, WINDOW))[0, 300] == 1.0
    spec = TeacherSpec("m", str(path), class_map=tmp_path / "elsewhere_class_map.csv")
    assert load_teacher(spec)(torch.ones(1, WINDOW))[0, 7] == 1.0
    # Another class map makes another teacher, so a store of the one is refused to the other.
    assert load_teacher(spec).sha256 == teacher.sha256 != load_teacher(path).sha256
    # 527 outputs need no map, and are not led astray by one of other length.
    assert load_teacher(save_onnx(tmp_path / "full.onnx", (1, WINDOW), 527)).known.all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index,name\n0,Speech\n", "has no column mid"),
        ("index,mid\n0,/m/09x0r\n2,/m/05zppz\n", "must hold 0 to 1, each once"),
        ("index,mid\nx,/m/09x0r\n", "line 2: index 'x' is no number"),
        ("index,mid\n\u00b2,/m/09x0r\n", "line 2: index '\u00b2' is no number"),
        pytest.param(f"index,mid\n{'1' * 5_000},/m/09x0r\n", "line 2: index '1+' is no number", id="5000 digits"),
        ("index,mid\n0,/m/none\n", "names no AudioSet class"),
        ("index,mid\n0,/m/09x0r\n1,/m/09x0r\n", "an AudioSet class twice"),
        ("index,mid\n", "must hold 0 to 0"),
    ],
)
def test_bad_class_map(tmp_path: Path, text: str, message: str) -> None:
    path = save_onnx(tmp_path / "m.onnx", (1, WINDOW), 2)
    (tmp_path / "m_class_map.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as e:
        load_teacher(path)
    assert "m_class_map.csv" in str(e.value)


@pytest.mark.parametrize("name", ["none.csv", "n" * 300 + "one.csv", "n\0one.csv"])
def test_missing_class_map(tmp_path: Path, name: str) -> None:
    path = save_onnx(tmp_path / "m.onnx", (1, WINDOW), 2)
    with pytest.raises(InputError, match=r"class map .*one\.csv is not readable"):
        load_teacher(TeacherSpec("m", str(path), class_map=tmp_path / name))


def test_logits_are_an_option(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", (1, WINDOW), 527, kind="logits")
    with pytest.raises(CedEdgeError, match='not probabilities: set output = "logits"'):
        load_teacher(path)(torch.ones(1, WINDOW))
    probs = load_teacher(TeacherSpec("m", str(path), output="logits"))(torch.full((1, WINDOW), 0.05))[0]
    expected = torch.sigmoid(-1e3 * 0.0025 * (torch.arange(527) + 1) / 527)
    torch.testing.assert_close(probs, expected, atol=1e-6, rtol=1e-4)
    assert load_teacher(TeacherSpec("m", str(path), output="logits")).sha256 != load_teacher(path).sha256
    for fields, message in [({"output": "prbo"}, "must be one of prob, logits"), ({"rate_hz": 0}, "must be positive")]:
        with pytest.raises(InputError, match=message):
            load_teacher(TeacherSpec("m", str(path), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (1, 64, 96), (1, 12), (2, 16_000), ("b", 128, "t")])
def test_unknown_input(tmp_path: Path, shape: SHAPE) -> None:
    path = save_onnx(tmp_path / "m.onnx", shape, 527)
    with pytest.raises(InputError, match=r"a teacher takes a waveform \(1, samples\) or YAMNet patches \(1, 96, 64\)"):
        load_teacher(path)


def test_other_rate(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx", (1, 2 * WINDOW), 527)
    assert load_teacher(TeacherSpec("m", str(path), rate_hz=32_000)).rate_hz == 32_000


def test_patches(tmp_path: Path) -> None:
    teacher = load_teacher(save_onnx(tmp_path / "m.onnx", (1, 96, 64), 527))
    assert teacher.min_samples == PATCH_SAMPLES == 15_600
    silence = np.log(1e-3) ** 2 / 60  # of a mean square that must stay a probability
    with pytest.raises(CedEdgeError, match="not probabilities"):
        teacher(torch.zeros(1, 16_000))
    teacher = load_teacher(TeacherSpec("m", str(tmp_path / "m.onnx"), output="logits"))
    probs = teacher(torch.zeros(2, 1_000))
    assert float(probs[0, 526]) == pytest.approx(1 / (1 + np.exp(-60 * silence)), abs=1e-6)


def test_yamnet_front_end_golden(shared: Path) -> None:
    audio = np.fromfile(shared / "golden" / "yamnet_test_audio.bin", "<i2").astype(np.float32)
    golden = np.fromfile(shared / "golden" / "yamnet_test_spectra.bin", "<f4").reshape(96, 64)
    # The golden file is of the clip brought to full scale, and with log(x + 1e-2) where the model wants 1e-3.
    log_mel = YamnetFrontEnd()(torch.from_numpy(audio / np.abs(audio).max())[None])
    assert log_mel.shape == (1, 96, 64)
    mel = np.exp(log_mel[0].numpy().astype(np.float64)) - 1e-3
    np.testing.assert_allclose(np.log(mel + 1e-2), golden, atol=1e-4)


def mel(hz: float) -> float:
    return 1127.0 * float(np.log(1 + hz / 700.0))


def test_yamnet_front_end_by_hand() -> None:
    wave = 0.1 * torch.randn(1, 1_000, generator=torch.Generator().manual_seed(0))
    log_mel = YamnetFrontEnd()(wave)[0].numpy()
    # 1,000 samples: frames at 0, 160, ... 640; the last one is padded by 40 zeros.
    padded = np.pad(wave[0].numpy().astype(np.float64), (0, 40))
    assert log_mel.shape == (5, 64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = np.linspace(mel(125.0), mel(7_500.0), 66)
    for frame in (0, 4):
        magnitude = np.abs(np.fft.rfft(padded[160 * frame : 160 * frame + 400] * window, 512))
        for k in (0, 20, 63):
            total = 0.0
            for b in range(1, 257):
                m = mel(b * 31.25)
                low, centre, high = edges[k : k + 3]
                total += magnitude[b] * max(0.0, min((m - low) / (centre - low), (high - m) / (high - centre)))
            assert log_mel[frame, k] == pytest.approx(np.log(total + 1e-3), abs=1e-4)


@pytest.mark.parametrize("file", ["yamnet_waveform.tflite", "yamnet_spectra_in.tflite"])
def test_yamnet_files(shared: Path, file: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="no TFLite runtime: pip install ai-edge-litert")
    teacher = load_teacher(shared / "teachers" / file)
    assert (teacher.rate_hz, teacher.min_samples, int(teacher.known.sum())) == (16_000, 15_600, 521)
    wave = 0.1 * torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    probs = teacher(wave)
    windows = [teacher(wave[:, s : s + 15_600]) for s in (0, 4_400)]
    if "waveform" in file:
        torch.testing.assert_close(probs, (windows[0] + windows[1]) / 2)
    assert torch.equal(teacher(wave[1:])[0], probs[1])
    assert torch.equal(teacher(torch.stack([50 * wave[0], wave[1]]))[1], probs[1])
    assert not probs[:, ~teacher.known].any()
    silence = teacher(torch.zeros(1, 8_000))[0]
    assert silence.argmax() == 500  # Silence, in AudioSet's order
    assert labels()[500].name == "Silence"
