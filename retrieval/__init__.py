"""Retrieval: documents, chunks, embedders, a lexical and a vector index, and hybrid search.

Names are loaded on first use, so `import retrieval` loads neither torch, faiss nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.actor import ActorEmbedder, ActorRetrieval, EmbedderActor, IndexShardActor, actor_env
    from retrieval.config import RetrievalConfig
    from retrieval.embedding import SentenceTransformerEmbedder
    from retrieval.errors import (
        IndexUnavailable,
        IngestTimeout,
        InvalidDocument,
        InvalidSearch,
        RetrievalError,
        RetrievalRequestError,
        RetrievalUnavailable,
        StorageFull,
        UnknownDocument,
        UnreadableDocument,
    )
    from retrieval.extraction.files import read_file
    from retrieval.service import LocalRetrieval
    from retrieval.shard.shard import Shard
    from retrieval.sharding.sharded_retrieval import ShardedRetrieval
    from retrieval.types import (
        Chunk,
        Document,
        DocumentState,
        DocumentStore,
        DocumentText,
        Embedder,
        EmbedderInfo,
        Hit,
        Library,
        Passage,
        Retriever,
        SearchMode,
        SearchRequest,
        SearchResult,
    )

_HOME = {
    "actor": ("ActorEmbedder", "ActorRetrieval", "EmbedderActor", "IndexShardActor", "actor_env"),
    "config": ("RetrievalConfig",),
    "embedding": ("SentenceTransformerEmbedder",),
    "errors": (
        "IndexUnavailable",
        "IngestTimeout",
        "InvalidDocument",
        "InvalidSearch",
        "RetrievalError",
        "RetrievalRequestError",
        "RetrievalUnavailable",
        "StorageFull",
        "UnknownDocument",
        "UnreadableDocument",
    ),
    "extraction.files": ("read_file",),
    "service": ("LocalRetrieval",),
    "shard.shard": ("Shard",),
    "sharding.sharded_retrieval": ("ShardedRetrieval",),
    "types": (
        "Chunk",
        "Document",
        "DocumentState",
        "DocumentStore",
        "DocumentText",
        "Embedder",
        "EmbedderInfo",
        "Hit",
        "Library",
        "Passage",
        "Retriever",
        "SearchMode",
        "SearchRequest",
        "SearchResult",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ActorEmbedder",
    "ActorRetrieval",
    "Chunk",
    "Document",
    "DocumentState",
    "DocumentStore",
    "DocumentText",
    "Embedder",
    "EmbedderActor",
    "EmbedderInfo",
    "Hit",
    "IndexShardActor",
    "IndexUnavailable",
    "IngestTimeout",
    "InvalidDocument",
    "InvalidSearch",
    "Library",
    "LocalRetrieval",
    "Passage",
    "RetrievalConfig",
    "RetrievalError",
    "RetrievalRequestError",
    "RetrievalUnavailable",
    "Retriever",
    "SearchMode",
    "SearchRequest",
    "SearchResult",
    "SentenceTransformerEmbedder",
    "Shard",
    "ShardedRetrieval",
    "StorageFull",
    "UnknownDocument",
    "UnreadableDocument",
    "actor_env",
    "read_file",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
