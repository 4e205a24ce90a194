"""Any other encoder as an ONNX graph, by torch's exporter, its matrix products put into 8-bit integers."""

from __future__ import annotations

import warnings
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper

from retrieval.embedding.onnx_bert import HIDDEN, IDS, MASK
from retrieval.embedding.onnx_graph import MICROSOFT, OPSET, Graph

_NUM_TEXTS, _NUM_TOKENS = 2, 16
"""Size of the example the exporter follows; both axes are declared free."""


class _Hidden(torch.nn.Module):
    """A transformer seen as a function from ids and mask to the last hidden states."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def exported_graph(transformer: Any, max_tokens: int) -> onnx.ModelProto:
    """Return the graph from token ids to the last hidden states.

    Args:
        transformer: A transformers encoder on the CPU, in evaluation mode.
        max_tokens: Longest text it will be given.
    """
    ids = torch.ones(_NUM_TEXTS, _NUM_TOKENS, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, _NUM_TOKENS // 2 :] = 0
    free = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=max_tokens)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter's own deprecations and its notes on axis names.
        program = torch.onnx.export(
            _Hidden(transformer).eval(),
            (ids, mask),
            dynamo=True,
            verbose=False,
            input_names=[IDS, MASK],
            output_names=[HIDDEN],
            dynamic_shapes={IDS: free, MASK: free},
            opset_version=OPSET,
        )
    if program is None:
        raise RuntimeError("torch's exporter returned no program")
    return _in_integers(program.model_proto)


def _in_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every product by a constant matrix replaced by `Graph.linear`."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = Graph()
    replaced: set[str] = set()
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2:
            graph.nodes.append(node)
            continue
        product = graph.linear(node.input[0], numpy_helper.to_array(weight))
        graph.nodes.append(helper.make_node("Identity", [product], [node.output[0]]))
        replaced.add(weight.name)
    still_read = {name for node in graph.nodes for name in node.input}
    kept = [tensor for name, tensor in constants.items() if name not in replaced or name in still_read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend([*kept, *graph.constants])
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
    return model
