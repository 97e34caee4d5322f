"""What is quantised in a .tflite file, read with the runtime. Its accuracy is tested in test_export_bundle.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ced_edge.network.ced import CED
from ced_edge.spec import ModelSpec
from export.convert import to_tflite
from export.graph import CentredBlock, ExportModel
from export.quantize import tflite_int8, tflite_int8_static
from export.sounds import calibration_waves

# Not imported here: it brings JAX, whose threads forbid other tests to fork.
pytestmark = pytest.mark.skipif(not find_spec("litert_torch"), reason="no converter: pip install '.[export]'")

RATE_HZ = 16_000
Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def inputs() -> list[Float32]:
    return [wave[None] for wave in calibration_waves(None, RATE_HZ, RATE_HZ)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = CED(ModelSpec(width=48, heads=2, depth=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    path = tmp_path_factory.mktemp("source") / "fp32.tflite"
    to_tflite(ExportModel(model, True, CentredBlock), path, RATE_HZ)
    return path


@pytest.fixture(scope="module", params=[tflite_int8, tflite_int8_static])
def made(request: pytest.FixtureRequest, source: Path, inputs: list[Float32]) -> Any:
    path = source.with_name(f"{request.param.__name__}.tflite")
    request.param(source, path, inputs)
    return plain(path)


def plain(path: Path) -> Any:
    """An interpreter without XNNPACK, which would hide the operators that it takes."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    way = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(
        str(path), experimental_op_resolver_type=way, experimental_preserve_all_tensors=True, num_threads=1
    )
    interpreter.allocate_tensors()
    return interpreter


def operators(interpreter: Any) -> list[tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """(type, inputs, outputs) in their order."""
    tensors = {d["index"]: d for d in interpreter.get_tensor_details()}
    found = interpreter._get_ops_details()
    return [
        (op["op_name"], *([tensors[i] for i in op[end] if i >= 0] for end in ("inputs", "outputs"))) for op in found
    ]


def test_both_products_of_attention_are_integer_and_of_the_kind_that_xnnpack_takes(made: Any) -> None:
    products = [op for op in operators(made) if op[0] == "BATCH_MATMUL"]
    assert len(products) == 2 * 2
    for _, (first, second), (output,) in products:
        assert {first["dtype"], second["dtype"], output["dtype"]} == {np.int8}
        assert second["quantization"][1] == 0


def test_ranges_are_the_least_and_the_largest_values(made: Any, source: Path, inputs: list[Float32]) -> None:
    """Attention's scores, found again in the float file."""
    interpreter = plain(source)
    scores = [op[2][0] for op in operators(interpreter) if op[0] == "BATCH_MATMUL"][::2]
    seen = []
    for x in inputs:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        seen.append([[f(interpreter.get_tensor(d["index"])) for f in (np.min, np.max)] for d in scores])
    quantised = [op[2][0] for op in operators(made) if op[0] == "BATCH_MATMUL"][::2]
    for d, values in zip(quantised, np.array(seen).swapaxes(0, 1), strict=True):
        scale, zero = d["quantization"]
        least, largest = (scale * (n - zero) for n in (-128, 127))
        assert least == pytest.approx(values[:, 0].min(), abs=1.01 * scale)
        assert largest == pytest.approx(values[:, 1].max(), abs=1.01 * scale)
        assert scale == pytest.approx((values[:, 1].max() - values[:, 0].min()) / 255, rel=0.01)


def test_static_is_integer_from_the_front_end_to_the_logits(source: Path, inputs: list[Float32]) -> None:
    path = source.with_name("static.tflite")
    tflite_int8_static(source, path, inputs)
    ops = operators(plain(path))
    first = next(i for i, (name, _, _) in enumerate(ops) if name == "QUANTIZE")
    assert [name for name, _, _ in ops[-2:]] == ["DEQUANTIZE", "LOGISTIC"]
    for _, given, gives in ops[:first]:
        assert np.int8 not in {d["dtype"] for d in given + gives}
    for name, given, gives in ops[first + 1 : -2]:
        assert {d["dtype"] for d in given + gives} <= {np.int8, np.int32}, name
    assert {name for name, _, _ in ops[first:]} >= {"SOFTMAX", "GELU", "RSQRT", "MEAN", "FULLY_CONNECTED"}
    scale, zero = ops[-2][1][0]["quantization"]
    assert scale * (127 - zero) == pytest.approx(4, abs=scale)  # no logit of this model is that large
