"""The graph index: entities, relations and communities of an index version's chunks, for GraphRAG."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.graph.communities import Clustering
    from retrieval.graph.graph_index import GraphDatabase, GraphIndex
    from retrieval.graph.llm_extractor import LlmExtractor
    from retrieval.graph.rule_extractor import RuleExtractor
    from retrieval.graph.schema import drop_graph
    from retrieval.graph.types import (
        Alias,
        Communities,
        Community,
        Edge,
        Entities,
        Entity,
        Extraction,
        Extractor,
        GraphAnswer,
        GraphSource,
        GraphStats,
        Mention,
        Neighbourhood,
        Relation,
        TextModel,
    )

_HOME = {
    "communities": ("Clustering",),
    "graph_index": ("GraphDatabase", "GraphIndex"),
    "llm_extractor": ("LlmExtractor",),
    "rule_extractor": ("RuleExtractor",),
    "schema": ("drop_graph",),
    "types": (
        "Alias",
        "Communities",
        "Community",
        "Edge",
        "Entities",
        "Entity",
        "Extraction",
        "Extractor",
        "GraphAnswer",
        "GraphSource",
        "GraphStats",
        "Mention",
        "Neighbourhood",
        "Relation",
        "TextModel",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Alias",
    "Clustering",
    "Communities",
    "Community",
    "Edge",
    "Entities",
    "Entity",
    "Extraction",
    "Extractor",
    "GraphAnswer",
    "GraphDatabase",
    "GraphIndex",
    "GraphSource",
    "GraphStats",
    "LlmExtractor",
    "Mention",
    "Neighbourhood",
    "Relation",
    "RuleExtractor",
    "TextModel",
    "drop_graph",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'retrieval.graph' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.graph.{_MODULE_OF[name]}"), name)
