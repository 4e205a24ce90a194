"""Parts of an ONNX graph: constants, nodes, and a linear layer of 8-bit integers. Owns the import of onnx.

The linear layer quantises every token's activations by that token's own largest value. ONNX Runtime's
`quantize_dynamic` takes one scale for a whole batch instead, which makes a text's vector depend on the texts
beside it (cosine 0.992 between two batches; here they are equal) and is less exact (0.9943 to fp32 against
0.9973 here, on the packaged model).

Shapes: K numbers in, N numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
"""ONNX Runtime's own operators."""
OPSET = 20
_IR_VERSION = 10
_ZERO_POINT = 128
_LARGEST = 127.0
_SMALLEST_RANGE = 1e-9


class Graph:
    """Collects the nodes and constants of a graph; every method returns the name of what it made."""

    def __init__(self) -> None:
        """Start empty."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._quantised: dict[str, tuple[str, str]] = {}

    def constant(self, value: Any) -> str:
        """Add a constant tensor."""
        name = f"graft_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output."""
        return self.nodes_of(1, operator, *inputs, domain=domain, **attributes)[0]

    def nodes_of(
        self, num_results: int, operator: str, *inputs: str, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node of `num_results` outputs."""
        name = f"graft_{operator}_{len(self.nodes)}"
        outputs = [f"{name}_{output}" for output in range(num_results)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def linear(self, activations: str, weight_KN: np.ndarray, bias_N: np.ndarray | None = None) -> str:
        """Add `activations @ weight + bias` in 8-bit integers.

        Args:
            activations: float32[..., K].
            weight_KN: float32[K, N]; each of its columns has a scale of its own.
            bias_N: float32[N].
        """
        codes, scales = self._quantised.get(activations) or self._quantise(activations, weight_KN.shape[0])
        weight_scales_N = np.abs(weight_KN).max(axis=0) / _LARGEST
        weight_scales_N = np.where(weight_scales_N == 0, 1, weight_scales_N).astype(np.float32)
        weight_codes_KN = np.rint(weight_KN / weight_scales_N).astype(np.int8)
        products = self.node(
            "MatMulIntegerToFloat",
            codes,
            self.constant(weight_codes_KN),
            self.constant(np.float32(1)),
            self.constant(weight_scales_N),
            self.constant(np.uint8(_ZERO_POINT)),
            self.constant(np.zeros(weight_KN.shape[1], np.int8)),
            domain=MICROSOFT,
        )
        leading = self.node("Shape", activations, end=-1)
        shape = self.node("Concat", leading, self.constant(np.array([weight_KN.shape[1]], np.int64)), axis=0)
        result = self.node("Mul", self.node("Reshape", products, shape), scales)
        return result if bias_N is None else self.node("Add", result, self.constant(bias_N))

    def _quantise(self, activations: str, width: int) -> tuple[str, str]:
        """Return uint8[rows, K] codes and float32[..., 1] scales; layers that share an input share these."""
        last_axis = self.constant(np.array([-1], np.int64))
        highest = self.node("ReduceMax", activations, last_axis, keepdims=1)
        lowest = self.node("ReduceMin", activations, last_axis, keepdims=1)
        largest = self.node(
            "Max", highest, self.node("Neg", lowest), self.constant(np.float32(_SMALLEST_RANGE))
        )
        scales = self.node("Mul", largest, self.constant(np.float32(1 / _LARGEST)))
        flat_scales = self.node("Reshape", scales, self.constant(np.array([-1], np.int64)))
        zero_points = self.node(
            "ConstantOfShape",
            self.node("Shape", flat_scales),
            value=helper.make_tensor("zero_point", TensorProto.UINT8, [1], [_ZERO_POINT]),
        )
        rows = self.node("Reshape", activations, self.constant(np.array([-1, width], np.int64)))
        codes = self.node("QuantizeLinear", rows, flat_scales, zero_points, axis=0)
        self._quantised[activations] = codes, scales
        return codes, scales

    def model(self, inputs: Mapping[str, int], output: tuple[str, str], width: int) -> onnx.ModelProto:
        """Return the whole graph as a model.

        Args:
            inputs: Element types of the [texts, tokens] inputs by name.
            output: The node output that is the result, and its name in the model.
            width: Numbers of the last axis of the result.
        """
        self.nodes.append(helper.make_node("Identity", [output[0]], [output[1]]))
        graph = helper.make_graph(
            self.nodes,
            "embedder",
            [helper.make_tensor_value_info(name, kind, ["texts", "tokens"]) for name, kind in inputs.items()],
            [helper.make_tensor_value_info(output[1], TensorProto.FLOAT, ["texts", "tokens", width])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
