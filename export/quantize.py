"""int8: which products are quantised, and how. docs/quantisation.md has what else was tried, and the figures.

Quantised are the matrix products of the patch embedding, the blocks and the head, which hold 98 % of the weights and
nearly all of the arithmetic. The front end stays float32 (a quiet bin is 12 orders of magnitude below a loud one), and
so do norms, softmax and GELU. Calibrated ranges are used in the blocks only: one range for all mel bins, or for all
logits, costs 0.1 of a probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.quiet import quiet

Float32 = NDArray[np.float32]

_ACTIVATIONS = {
    ("onnx", "int8"): "uint8 per tensor, ranges at run time; attention float32",
    ("tflite", "int8"): "int8 per token, ranges at run time; attention float32",
    ("onnx", "int8-static"): "uint8 per tensor, calibrated, attention included; patches and head float32",
    ("tflite", "int8-static"): "int8 per tensor, calibrated, blocks integer throughout; patches and head at run time",
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


def tflite_int8(source: Path, target: Path, per_channel: bool = True) -> None:
    """Dynamic-range quantisation of a float .tflite that `to_tflite` wrote."""
    _quantise_tflite(source, target, per_channel)


def tflite_int8_static(source: Path, target: Path, inputs: Sequence[Float32], per_channel: bool = True) -> None:
    """Static quantisation of a float .tflite; `inputs` are calibration inputs of batch 1."""
    _quantise_tflite(source, target, per_channel, inputs)


def _quantise_tflite(source: Path, target: Path, per_channel: bool, inputs: Sequence[Float32] = ()) -> None:
    with quiet():
        from ai_edge_quantizer import quantizer
        from ai_edge_quantizer.qtyping import QuantGranularity
        from ai_edge_quantizer.recipe import TFLOperationName

        scales = QuantGranularity.CHANNELWISE if per_channel else QuantGranularity.TENSORWISE
        q = quantizer.Quantizer(str(source))
        calibration: dict[str, Any] = {}
        q.add_dynamic_config("^(?!.*FrontEnd).*", TFLOperationName.FULLY_CONNECTED, num_bits=8, granularity=scales)
        if inputs:
            # All of a block, softmax and norms too: an accelerator that knows integers alone can run it in one piece.
            every = TFLOperationName.ALL_SUPPORTED
            q.add_static_config(
                ".*FoldedBlock.*", every, activation_num_bits=8, weight_num_bits=8, weight_granularity=scales
            )
            from ai_edge_litert.interpreter import Interpreter

            (key, signature), *_ = Interpreter(str(source)).get_signature_list().items()
            calibration = q.calibrate({key: [{signature["inputs"][0]: x} for x in inputs]}, num_threads=1)
        q.quantize(calibration).export_model(str(target), overwrite=True)
