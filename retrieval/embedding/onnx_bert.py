"""BERT, RoBERTa and XLM-RoBERTa encoders as an ONNX graph, written straight from their weights.

torch's exporter takes 10-20 s for the same model and leaves attention and the embeddings in small pieces;
this takes one. Add + LayerNormalization stay apart because ONNX Runtime's fused SkipLayerNormalization is
6 times slower on a CPU (3.8 ms against 0.6 for 2,016 tokens of 384 numbers).

Source: Devlin et al., "BERT", 2019; layer names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from retrieval.embedding.onnx_graph import MICROSOFT, Graph

IDS, MASK, HIDDEN = "input_ids", "attention_mask", "hidden"
"""Names of the inputs, int[texts, tokens] both, and of the output, float32[texts, tokens, dim]."""
_FIRST_POSITION = {"BertModel": 0, "RobertaModel": None, "XLMRobertaModel": None}
"""Row of the position table that the first token takes; None for the row after the padding token's number."""


def reason_not_bert(class_name: str, config: Any) -> str | None:
    """Return why a model cannot be written by `bert_graph`, None when it can.

    Args:
        class_name: Its class in transformers.
        config: Its transformers configuration.
    """
    if class_name not in _FIRST_POSITION:
        return f"it is a {class_name}, none of {', '.join(_FIRST_POSITION)}"
    if config.hidden_act != "gelu":
        return f"its activation is {config.hidden_act!r}, not 'gelu'"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"its positions are {config.position_embedding_type!r}, not 'absolute'"
    if getattr(config, "is_decoder", False):
        return "it is a decoder"
    return None


def bert_graph(class_name: str, config: Any, weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Return the graph from token ids to the last hidden states.

    Args:
        class_name: The model's class in transformers.
        config: Its transformers configuration; `reason_not_bert` found nothing against it.
        weights: float32 arrays by the name of their parameter.
    """
    graph = Graph()

    def constant(name: str) -> str:
        return graph.constant(weights[name])

    def linear(states: str, name: str) -> str:
        return graph.linear(states, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    def add_and_norm(states: str, residual: str, name: str) -> str:
        return graph.node(
            "LayerNormalization",
            graph.node("Add", states, residual),
            constant(f"{name}.weight"),
            constant(f"{name}.bias"),
            axis=-1,
            epsilon=config.layer_norm_eps,
        )

    first = _FIRST_POSITION[class_name]
    positions_PD = weights["embeddings.position_embeddings.weight"]
    positions_PD = positions_PD[config.pad_token_id + 1 if first is None else first :]
    states = graph.nodes_of(
        2,
        "EmbedLayerNormalization",
        IDS,
        "",
        constant("embeddings.word_embeddings.weight"),
        # Every token of a single text is of the first segment.
        graph.constant(positions_PD + weights["embeddings.token_type_embeddings.weight"][0]),
        "",
        constant("embeddings.LayerNorm.weight"),
        constant("embeddings.LayerNorm.bias"),
        domain=MICROSOFT,
        epsilon=config.layer_norm_eps,
    )[0]
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        projections = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
        joined = graph.linear(
            states,
            np.concatenate([weights[f"{name}.weight"] for name in projections]).T,
            np.concatenate([weights[f"{name}.bias"] for name in projections]),
        )
        queries, keys, values = graph.nodes_of(3, "Split", joined, num_outputs=3, axis=-1)
        attended = graph.node(
            "MultiHeadAttention",
            queries,
            keys,
            values,
            "",
            MASK,
            domain=MICROSOFT,
            num_heads=config.num_attention_heads,
        )
        attended = linear(attended, f"{layer}.attention.output.dense")
        states = add_and_norm(attended, states, f"{layer}.attention.output.LayerNorm")
        widened = graph.node("Gelu", linear(states, f"{layer}.intermediate.dense"))
        narrowed = linear(widened, f"{layer}.output.dense")
        states = add_and_norm(narrowed, states, f"{layer}.output.LayerNorm")
    inputs = {IDS: TensorProto.INT32, MASK: TensorProto.INT32}
    return graph.model(inputs, (states, HIDDEN), config.hidden_size)
