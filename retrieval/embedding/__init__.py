"""Embedders: text to unit vectors, by torch or by ONNX Runtime, in process or as a pool of actors.

Names are loaded on first use, so importing the package loads neither torch, onnxruntime nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.embedding.actor import ActorEmbedder, EmbedderActor
    from retrieval.embedding.embedder import SentenceTransformerEmbedder

_HOME = {
    "ActorEmbedder": "actor",
    "EmbedderActor": "actor",
    "SentenceTransformerEmbedder": "embedder",
}

__all__ = ["ActorEmbedder", "EmbedderActor", "SentenceTransformerEmbedder"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval.embedding' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.embedding.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
