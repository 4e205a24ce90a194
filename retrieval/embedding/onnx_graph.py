"""Parts of an ONNX graph: constants, nodes, and a linear layer of 8-bit integers. Owns the import of onnx.

The linear layer quantises every token's activations by that token's own range. ONNX Runtime's
`quantize_dynamic` takes one range for a whole batch instead, which makes a text's vector depend on the texts
beside it (cosine 0.992 between two batches; here they are equal) and is less exact (0.9943 to fp32 against
0.9988 here, on the packaged model), at the same speed.

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
_LARGEST_CODE = 255.0
_LARGEST_WEIGHT = 127.0
_SMALLEST_RANGE = 1e-9


class Graph:
    """Collects the nodes and constants of a graph; every method returns the name of what it made."""

    def __init__(self) -> None:
        """Start empty."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._quantised: dict[str, tuple[str, str, str]] = {}

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

        A row with codes q, scale s and zero point z, times the rounded weight W whose rows sum to w, is
        `x @ W + b = s * (q @ W) + [-s * z, 1] @ [w; b]`.

        Args:
            activations: float32[..., K].
            weight_KN: float32[K, N]; each of its columns has a scale of its own.
            bias_N: float32[N]; None for zeros.
        """
        width, num_outputs = weight_KN.shape
        codes, scales, corrections = self._quantised.get(activations) or self._quantise(activations, width)
        weight_scales_N = np.abs(weight_KN).max(axis=0) / _LARGEST_WEIGHT
        weight_scales_N = np.where(weight_scales_N == 0, 1, weight_scales_N).astype(np.float32)
        weight_codes_KN = np.rint(weight_KN / weight_scales_N).astype(np.int8)
        products = self.node(
            "MatMulIntegerToFloat",
            codes,
            self.constant(weight_codes_KN),
            self.constant(np.float32(1)),
            self.constant(weight_scales_N),
            self.constant(np.uint8(0)),
            self.constant(np.zeros(num_outputs, np.int8)),
            domain=MICROSOFT,
        )
        sums_N = weight_codes_KN.sum(axis=0, dtype=np.int64) * weight_scales_N
        biases_N = np.zeros(num_outputs) if bias_N is None else bias_N
        moved = self.node(
            "MatMul", corrections, self.constant(np.stack([sums_N, biases_N]).astype(np.float32))
        )
        rows = self.node("Add", self.node("Mul", products, scales), moved)
        leading = self.node("Shape", activations, end=-1)
        shape = self.node("Concat", leading, self.constant(np.array([num_outputs], np.int64)), axis=0)
        return self.node("Reshape", rows, shape)

    def _quantise(self, activations: str, width: int) -> tuple[str, str, str]:
        """Return uint8[rows, K] codes, float32[rows, 1] scales and float32[rows, 2] corrections.

        Layers that share an input share these.
        """
        last_axis, zero = self.constant(np.array([-1], np.int64)), self.constant(np.float32(0))
        rows = self.node("Reshape", activations, self.constant(np.array([-1, width], np.int64)))
        highest = self.node("Max", self.node("ReduceMax", rows, last_axis, keepdims=1), zero)
        lowest = self.node("Min", self.node("ReduceMin", rows, last_axis, keepdims=1), zero)
        ranges = self.node(
            "Max", self.node("Sub", highest, lowest), self.constant(np.float32(_SMALLEST_RANGE))
        )
        scales = self.node("Mul", ranges, self.constant(np.float32(1 / _LARGEST_CODE)))
        zero_points = self.node("Round", self.node("Neg", self.node("Div", lowest, scales)))
        flat = self.constant(np.array([-1], np.int64))
        codes = self.node(
            "QuantizeLinear",
            rows,
            self.node("Reshape", scales, flat),
            self.node("Cast", self.node("Reshape", zero_points, flat), to=TensorProto.UINT8),
            axis=0,
        )
        ones = self.node(
            "ConstantOfShape",
            self.node("Shape", scales),
            value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
        )
        offsets = self.node("Neg", self.node("Mul", zero_points, scales))
        corrections = self.node("Concat", offsets, ones, axis=1)
        self._quantised[activations] = codes, scales, corrections
        return codes, scales, corrections

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
