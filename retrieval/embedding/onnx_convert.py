"""Converts a model for ONNX Runtime: `python -m retrieval.embedding.onnx_convert MODEL_FOLDER TARGET_FOLDER`.

A process of its own, so that torch's memory goes back to the machine with it. The result is compared with
what sentence-transformers computes in fp32; a model that cannot be converted, or whose vectors moved too far,
leaves a manifest that says so, and is not tried again.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.embedding.onnx_files import (
    GRAPH,
    REFERENCE,
    TOKENIZER,
    Manifest,
    converted_hash,
    publish,
    write_manifest,
)
from retrieval.model_files import tokenizer_file

_MESSAGE_CHARS = 500


class NotConvertible(Exception):
    """The model is of a kind that this converter does not know."""


def convert(source: Path, target: Path) -> str:
    """Write the converted model to `target` and return why it is not to be used; empty when it is.

    Args:
        source: A sentence-transformers model.
        target: A folder in the folder of converted models, named by the model's hash.
    """
    import torch

    from retrieval.embedding.sentence_model import load_model, longest_text, prompts_of

    model = load_model(source, "cpu", torch.float32)
    query_prompt, document_prompt = prompts_of(model)
    making = target.with_name(f".{target.name}.making")  # Ours alone: the caller holds the lock.
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    manifest = Manifest(
        dim=int(model.get_embedding_dimension() or 0),
        max_tokens=longest_text(model),
        pooling="mean",
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        refused="",
        checksums={},
    )
    try:
        manifest = _write_graph(model, source, making, manifest)
        refused = _compare(model, making, manifest, converted_hash(source)) or ""
    except NotConvertible as error:
        refused = str(error)
    except (OSError, MemoryError):
        raise  # The machine's state, not the model's: the next start tries again.
    except Exception as error:
        # Whatever an exporter or a runtime says of a model it does not take, it will say again.
        refused = f"it cannot be converted: {type(error).__name__}: {str(error)[:_MESSAGE_CHARS]}"
    if refused:
        for name in (GRAPH, TOKENIZER, REFERENCE):
            (making / name).unlink(missing_ok=True)
    write_manifest(making, replace(manifest, refused=refused))
    publish(making, target)
    return refused


def _write_graph(model: Any, source: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Write the graph and the tokenizer; return the manifest with the model's pooling."""
    import onnx
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from retrieval.embedding.onnx_bert import bert_graph, reason_not_bert
    from retrieval.embedding.onnx_export import exported_graph

    modules = list(model)
    kinds = [type(module) for module in modules]
    if kinds not in ([Transformer, Pooling], [Transformer, Pooling, Normalize]):
        raise NotConvertible(
            f"its modules are {', '.join(kind.__name__ for kind in kinds)}; "
            "only Transformer, Pooling and Normalize are known"
        )
    pooling: Any = modules[1]
    if pooling.pooling_mode not in ("mean", "cls"):
        raise NotConvertible(f"it pools by {pooling.pooling_mode!r}, not by 'mean' or 'cls'")
    if not pooling.include_prompt and (manifest.query_prompt or manifest.document_prompt):
        raise NotConvertible("it leaves its prompt out of the pooling")
    if modules[0].do_lower_case:
        raise NotConvertible("it lower-cases texts outside its tokenizer")
    transformer = modules[0].auto_model
    class_name = type(transformer).__name__
    if reason_not_bert(class_name, transformer.config) is None:
        weights = {name: tensor.float().numpy() for name, tensor in transformer.state_dict().items()}
        graph = bert_graph(class_name, transformer.config, weights)
    else:
        graph = exported_graph(transformer, manifest.max_tokens)
    onnx.save(graph, str(folder / GRAPH))
    shutil.copyfile(tokenizer_file(source), folder / TOKENIZER)
    return replace(manifest, pooling=pooling.pooling_mode)


def _compare(model: Any, folder: Path, manifest: Manifest, model_hash: str) -> str | None:
    """Write the fp32 vectors of the sample texts; return how the converted model differs, if too much."""
    from retrieval.embedding.onnx_backend import OnnxBackend, difference
    from retrieval.embedding.samples import SAMPLE_PASSAGES

    texts = list(SAMPLE_PASSAGES)
    reference_ND = model.encode_document(texts, normalize_embeddings=True, show_progress_bar=False)
    np.save(folder / REFERENCE, reference_ND.astype(np.float32))
    backend = OnnxBackend(model_hash, folder, manifest, num_threads=1)
    distance = backend.distance_from_fp32()
    if distance is not None or manifest.query_prompt == manifest.document_prompt:
        return distance
    queries_ND = model.encode_query(texts, normalize_embeddings=True, show_progress_bar=False)
    as_queries = backend.encode(backend.tokenise(texts, is_query=True), with_tokens=False)
    return difference(as_queries.vectors_ND, queries_ND)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
