"""int8: which products are quantised, and how. docs/quantisation.md has what else was tried, and the figures.

Quantised are the matrix products of the patch embedding, the blocks and the head, which hold 98 % of the weights and
nearly all of the arithmetic. The front end stays float32 (a quiet bin is 12 orders of magnitude below a loud one), and
so do, but for int8-static .tflite, norms, softmax and GELU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.proof.tflite_graph import Graph
from export.quiet import quiet

_ACTIVATIONS = {
    ("onnx", "int8"): "uint8 per tensor, ranges at run time; attention float32",
    ("tflite", "int8"): "int8 per token, ranges at run time; attention's products int8 per tensor, calibrated",
    ("onnx", "int8-static"): "uint8 per tensor, calibrated, attention included; patches and head float32",
    ("tflite", "int8-static"): "int8 per tensor, calibrated, integer from the log-mel to the logits",
}


def describe(format: str, kind: str, per_channel: bool = True) -> str:
    """What is quantised, in words."""
    if kind == "fp32":
        return "none"
    return f"weights int8 per {'channel' if per_channel else 'tensor'}; activations {_ACTIVATIONS[format, kind]}"


def onnx_int8(source: Path, target: Path, per_channel: bool = True) -> None:
    """Dynamic quantisation of a float .onnx that `to_onnx` wrote; `per_channel`: weights have a scale per output."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_nodes_outside(source, ("patch/", "blocks.", "head.")),
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
        )


def onnx_int8_static(
    source: Path, target: Path, inputs: Sequence[Float32], per_channel: bool = True, ranges: str = "MinMax"
) -> None:
    """Static quantisation (QDQ) of a float .onnx; `inputs` are calibration inputs of batch 1.

    `ranges` is onnxruntime's CalibrationMethod: Percentile clips them.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with quiet():
        quantize_static(
            source,
            target,
            _Reader(source, inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_nodes_outside(source, ("blocks.",)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
            calibrate_method=CalibrationMethod[ranges],
        )


class _Reader:
    """Calibration inputs as onnxruntime asks for them."""

    def __init__(self, source: Path, inputs: Sequence[Float32]) -> None:
        import onnx

        name = onnx.load(source).graph.input[0].name
        self._feeds: Iterator[dict[str, Float32]] = iter([{name: x} for x in inputs])

    def get_next(self) -> dict[str, Float32] | None:
        return next(self._feeds, None)


def _nodes_outside(path: Path, modules: tuple[str, ...]) -> list[str]:
    """Names of the nodes that come from other modules."""
    import onnx

    return [node.name for node in onnx.load(path).graph.node if not node.name.startswith(modules)]


_NETWORK = "^(?!.*FrontEnd).*"
_ATTENTION = ("static", ".*Block.*", "BATCH_MATMUL", 8)
_DYNAMIC = [("dynamic", _NETWORK, "FULLY_CONNECTED", 8), _ATTENTION]
_STATIC = [("static", _NETWORK, "ALL_SUPPORTED", 8)]
_FLOAT = ("INPUT", "OUTPUT", "LOGISTIC")
"""Steps of 8 bits are larger than most probabilities; TensorFlow's interpreter takes no activations of 16 beside 8."""
_LEAST_TOP_LOGIT = 4.0
"""Surer than 98 %: what was calibrated with may hold nothing that the model is sure of."""


def tflite_int8(source: Path, target: Path, inputs: Sequence[Float32], per_channel: bool = True) -> None:
    """Dynamic-range quantisation of a float .tflite that `to_tflite` wrote; static of attention's two products.

    Those have no weights, and runtimes know no dynamic ranges for two factors that are both computed. `inputs` are
    calibration inputs of batch 1.
    """
    _quantise_tflite(source, target, inputs, per_channel, _DYNAMIC)


def tflite_int8_static(source: Path, target: Path, inputs: Sequence[Float32], per_channel: bool = True) -> None:
    """Static quantisation of a float .tflite; `inputs` are calibration inputs of batch 1.

    All from the log-mel to the logits is integer, softmax and norms too, so that an accelerator that knows integers
    alone can run it in one piece.
    """
    _quantise_tflite(source, target, inputs, per_channel, _STATIC)


_SAME_RANGE = ("RESHAPE", "TRANSPOSE", "SLICE", "SPLIT")
"""Operators that only move numbers."""


def _quantise_tflite(
    source: Path,
    target: Path,
    inputs: Sequence[Float32],
    per_channel: bool,
    rules: Sequence[tuple[str, str, str, int]],
) -> None:
    """Rules of (dynamic or static, names of tensors, operator, bits of activations); `_FLOAT` and later ones win."""
    with quiet():
        from ai_edge_quantizer import quantizer
        from ai_edge_quantizer.qtyping import QuantGranularity
        from ai_edge_quantizer.recipe import TFLOperationName

        scales = QuantGranularity.CHANNELWISE if per_channel else QuantGranularity.TENSORWISE
        q = quantizer.Quantizer(str(source))
        for how, where, name, bits in rules:
            op = TFLOperationName[name]
            if how == "dynamic":
                q.add_dynamic_config(where, op, num_bits=8, granularity=scales)
            else:
                q.add_static_config(where, op, activation_num_bits=bits, weight_num_bits=8, weight_granularity=scales)
        for name in _FLOAT:
            q.update_quantization_recipe(".*", TFLOperationName[name], algorithm_key="no_quantize")
        ranges = _ranges(source, q.get_quantization_recipe(), inputs)
        graph = Graph(source)
        _centre_second_factors(graph, ranges)
        _widen_logits(graph, ranges)
        q.quantize(ranges).export_model(str(target), overwrite=True)


def _ranges(source: Path, recipe: Any, inputs: Sequence[Float32]) -> dict[str, Any]:
    """The least and the largest value of each tensor that needs a range. The quantiser's own are running averages."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    (key, signature), *_ = Interpreter(str(source)).get_signature_list().items()
    rules = RecipeManager()
    rules.load_quantization_recipe(recipe)
    calibrator = Calibrator(str(source), num_threads=1, qsv_update_func=min_max_update)
    calibrator.calibrate({key: [{signature["inputs"][0]: x} for x in inputs]}, rules)
    found: dict[str, Any] = calibrator.get_model_qsvs()
    return found


def _widen_logits(graph: Graph, ranges: dict[str, Any]) -> None:
    for sigmoid in (op for op in graph.operators if graph.name(op) == "LOGISTIC"):
        if found := ranges.get(graph.tensor_name(sigmoid.inputs[0])):
            found["max"] = np.maximum(found["max"], np.float32(_LEAST_TOP_LOGIT))


def _centre_second_factors(graph: Graph, ranges: dict[str, Any]) -> None:
    """Zero point 0 for keys and values. XNNPACK's int8 product is for these alone: with others LiteRT falls back to a
    loop of its own, 20 times as slow, and before 2.1.3 it was off by far.
    """
    maker = {i: op for op in graph.operators for i in op.outputs}
    for product in (op for op in graph.operators if graph.name(op) == "BATCH_MATMUL"):
        tensor = product.inputs[1]
        while tensor is not None:
            if found := ranges.get(graph.tensor_name(tensor)):
                largest = np.maximum(np.abs(found["min"]), np.abs(found["max"]))
                found["min"], found["max"] = -largest * (128 / 127), largest
            op = maker.get(tensor)
            tensor = op.inputs[0] if op is not None and graph.name(op) in _SAME_RANGE else None
