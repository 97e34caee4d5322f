"""int8: which matrix products are quantised, and how. What else was tried, with figures: docs/quantisation.md.

The matrix products of the patch embedding, the blocks and the head are quantised. They hold 98 % of the weights and
nearly all of the arithmetic. The front end stays float32, because a quiet bin is 12 orders of magnitude below a loud
one. Norms, softmax and GELU stay float32 too, except in int8-static .tflite files.
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
    """What is quantised in a file, in words."""
    if kind == "fp32":
        return "none"
    return f"weights int8 per {'channel' if per_channel else 'tensor'}; activations {_ACTIVATIONS[format, kind]}"


def onnx_int8(source: Path, target: Path, per_channel: bool = True) -> None:
    """Quantise a float .onnx from `to_onnx`; ranges of activations are measured at run time.

    With `per_channel` the weights have one scale per output channel, else one per matrix.
    """
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
    """Quantise a float .onnx with ranges that are measured now, on `inputs`: calibration inputs of batch 1.

    `ranges` is the name of one of onnxruntime's CalibrationMethods; Percentile clips the ranges.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with quiet():
        quantize_static(
            source,
            target,
            _Reader(source, inputs),
            quant_format=QuantFormat.QDQ,  # nodes that quantise and dequantise around each product
            op_types_to_quantize=["MatMul", "Gemm"],
            # With static ranges the patches and the head lose three times as much mAP, see docs/quantisation.md.
            nodes_to_exclude=_nodes_outside(source, ("blocks.",)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
            calibrate_method=CalibrationMethod[ranges],
        )


class _Reader:
    """Calibration inputs, with the method that onnxruntime calls for the next one."""

    def __init__(self, source: Path, inputs: Sequence[Float32]) -> None:
        import onnx

        name = onnx.load(source).graph.input[0].name
        self._feeds: Iterator[dict[str, Float32]] = iter([{name: x} for x in inputs])

    def get_next(self) -> dict[str, Float32] | None:
        return next(self._feeds, None)


def _nodes_outside(path: Path, modules: tuple[str, ...]) -> list[str]:
    """Names of the nodes that come from none of these modules, see `to_onnx` for the names."""
    import onnx

    return [node.name for node in onnx.load(path).graph.node if not node.name.startswith(modules)]


# Rules for ai-edge-quantizer: (dynamic or static, pattern of tensor names, operator, bits of activations).
_NETWORK = "^(?!.*FrontEnd).*"
_ATTENTION = ("static", ".*Block.*", "BATCH_MATMUL", 8)
_DYNAMIC = [("dynamic", _NETWORK, "FULLY_CONNECTED", 8), _ATTENTION]
_STATIC = [("static", _NETWORK, "ALL_SUPPORTED", 8)]
_FLOAT = ("INPUT", "OUTPUT", "LOGISTIC")
"""Operators that stay float32. Most probabilities are smaller than one step of 8 bits, so the last sigmoid is one of
them. 16 bits would do, but TensorFlow's interpreter refuses activations of 16 bits beside those of 8."""
_LEAST_TOP_LOGIT = 4.0
"""Smallest upper end of the logits' range, a probability of 98 %. The calibration sounds may hold nothing that the
model is sure of, and a range measured on them would cut off every sure prediction later."""


def tflite_int8(source: Path, target: Path, inputs: Sequence[Float32], per_channel: bool = True) -> None:
    """Quantise a float .tflite from `to_tflite`; ranges of activations are measured at run time.

    Attention's two products get ranges that are measured now, on `inputs`: calibration inputs of batch 1. Both of
    their factors are computed, and runtimes measure ranges at run time only for a product with weights.
    """
    _quantise_tflite(source, target, inputs, per_channel, _DYNAMIC)


def tflite_int8_static(source: Path, target: Path, inputs: Sequence[Float32], per_channel: bool = True) -> None:
    """Quantise a float .tflite with ranges that are measured now, on `inputs`: calibration inputs of batch 1.

    Everything from the log-mel to the logits is integer, softmax and norms too. So an accelerator that computes with
    integers only can run it in one piece.
    """
    _quantise_tflite(source, target, inputs, per_channel, _STATIC)


_SAME_RANGE = ("RESHAPE", "TRANSPOSE", "SLICE", "SPLIT")
"""Operators that only move numbers: their output has the range of their input."""


def _quantise_tflite(
    source: Path,
    target: Path,
    inputs: Sequence[Float32],
    per_channel: bool,
    rules: Sequence[tuple[str, str, str, int]],
) -> None:
    """Quantise by `rules`. A later rule overrides an earlier one, and `_FLOAT` overrides them all."""
    with quiet():
        # Imported here: it brings JAX, which takes seconds and prints.
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
        # The ranges are measured on the float file, then widened where they must be, and only then used.
        ranges = _ranges(source, q.get_quantization_recipe(), inputs)
        graph = Graph(source)
        _centre_second_factors(graph, ranges)
        _widen_logits(graph, ranges)
        q.quantize(ranges).export_model(str(target), overwrite=True)


def _ranges(source: Path, recipe: Any, inputs: Sequence[Float32]) -> dict[str, Any]:
    """The smallest and the largest value of each tensor that needs a range, over all `inputs`.

    The quantiser's default is a running average of them, which cuts off what is loud and rare.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    (key, signature), *_ = Interpreter(str(source)).get_signature_list().items()
    rules = RecipeManager()
    rules.load_quantization_recipe(recipe)
    calibrator = Calibrator(str(source), num_threads=1, qsv_update_func=min_max_update)
    calibrator.calibrate({key: [{signature["inputs"][0]: x} for x in inputs]}, rules)
    ranges: dict[str, Any] = calibrator.get_model_qsvs()
    return ranges


def _widen_logits(graph: Graph, ranges: dict[str, Any]) -> None:
    """Let the logits' range reach `_LEAST_TOP_LOGIT`."""
    for sigmoid in (op for op in graph.operators if graph.name(op) == "LOGISTIC"):
        if logits := ranges.get(graph.tensor_name(sigmoid.inputs[0])):
            logits["max"] = np.maximum(logits["max"], np.float32(_LEAST_TOP_LOGIT))


def _centre_second_factors(graph: Graph, ranges: dict[str, Any]) -> None:
    """Give keys and values, the second factors of attention's products, a symmetric range: zero point 0.

    XNNPACK's int8 product needs that. With any other zero point LiteRT falls back to a loop that is 20 times as slow,
    and that computed wrong sums before version 2.1.3.
    """
    maker = {i: op for op in graph.operators for i in op.outputs}  # tensor -> the operator that computes it
    for product in (op for op in graph.operators if graph.name(op) == "BATCH_MATMUL"):
        tensor = product.inputs[1]
        # Operators that only move numbers must have one range on both sides, so follow the tensor up through them.
        while tensor is not None:
            if r := ranges.get(graph.tensor_name(tensor)):
                largest = np.maximum(np.abs(r["min"]), np.abs(r["max"]))
                # int8 reaches from -128 to 127, and the quantiser spreads the range over all 256 steps.
                r["min"], r["max"] = -largest * (128 / 127), largest
            op = maker.get(tensor)
            tensor = op.inputs[0] if op is not None and graph.name(op) in _SAME_RANGE else None
