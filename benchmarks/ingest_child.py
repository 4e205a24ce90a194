"""One way to make passages searchable, alone: `python -m benchmarks.ingest_child ARM TEXTS MODEL`.

Run by `benchmarks.ingest`. Reads one JSON command a line, answers with JSON lines; every arm gets the same
passages, already cut, and the same model folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BATCH = 32
"""Texts of a forward pass in the arms that must be told; sentence-transformers' own default."""


class Arm(Protocol):
    """Makes texts searchable."""

    def ingest(self, names: list[str], texts: list[str]) -> None:
        """Return when a search can find the texts."""
        ...

    def vectors(self, names: list[str]) -> np.ndarray:
        """Return float32[len(names), dim] as stored."""
        ...


class Graft:
    """`LocalRetrieval.upsert`: embedded, in SQLite durably, in both indexes."""

    def __init__(self, model: Path) -> None:
        from retrieval.config import RetrievalConfig
        from retrieval.embedding import SentenceTransformerEmbedder
        from retrieval.service import LocalRetrieval

        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        config = RetrievalConfig(embedder=str(model))
        self._embedder = SentenceTransformerEmbedder(config)
        opening = LocalRetrieval.open(Path(self._folder.name), config, self._embedder)
        self._retrieval = self._loop.run_until_complete(opening)
        self.backend = self._loop.run_until_complete(self._embedder.info()).backend

    def ingest(self, names: list[str], texts: list[str]) -> None:
        """Store the texts as records and search once, as proof."""
        from retrieval.types import Record, SearchRequest

        records = [Record(name, text) for name, text in zip(names, texts, strict=True)]
        self._loop.run_until_complete(self._retrieval.upsert(records))
        request = SearchRequest(texts[-1][:200], k=1, mode="lexical")
        result = self._loop.run_until_complete(self._retrieval.search([request]))[0]
        if not result.hits:
            raise RuntimeError("what was just stored is not found")

    def vectors(self, names: list[str]) -> np.ndarray:
        """Return the vectors the index holds."""
        return self._loop.run_until_complete(self._exported(names))

    async def _exported(self, names: list[str]) -> np.ndarray:
        found = {
            record.name: np.asarray(record.vector, dtype=np.float32)
            async for batch in self._retrieval.export()
            for record in batch
        }
        return np.stack([found[name] for name in names])


class EncodeOnly:
    """`SentenceTransformer.encode` in fp32 and nothing else: no store, no index."""

    backend = "torch-fp32"

    def __init__(self, model: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(model), device="cpu")
        self._kept: dict[str, np.ndarray] = {}

    def ingest(self, names: list[str], texts: list[str]) -> None:
        """Embed the texts."""
        vectors_ND = self._model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        self._kept |= dict(zip(names, vectors_ND, strict=True))

    def vectors(self, names: list[str]) -> np.ndarray:
        """Return the vectors made."""
        return np.stack([self._kept[name] for name in names])


class LlamaIndex:
    """`VectorStoreIndex.insert_nodes` with `HuggingFaceEmbedding` and the in-memory store."""

    backend = "torch-fp32"

    def __init__(self, model: Path) -> None:
        from llama_index.core import VectorStoreIndex  # pyright: ignore[reportMissingImports]
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding  # pyright: ignore[reportMissingImports]

        embedding = HuggingFaceEmbedding(model_name=str(model), embed_batch_size=BATCH, device="cpu")
        self._index = VectorStoreIndex(nodes=[], embed_model=embedding)

    def ingest(self, names: list[str], texts: list[str]) -> None:
        """Insert the texts as nodes."""
        from llama_index.core.schema import TextNode  # pyright: ignore[reportMissingImports]

        self._index.insert_nodes(
            [TextNode(id_=name, text=text) for name, text in zip(names, texts, strict=True)]
        )

    def vectors(self, names: list[str]) -> np.ndarray:
        """Return the vectors the store holds."""
        store: Any = self._index.vector_store
        return np.asarray([store.get(name) for name in names], dtype=np.float32)


class Haystack:
    """A pipeline of `SentenceTransformersDocumentEmbedder` and `DocumentWriter` into the in-memory store."""

    backend = "torch-fp32"

    def __init__(self, model: Path) -> None:
        from haystack import Pipeline  # pyright: ignore[reportMissingImports]
        from haystack.components.writers import DocumentWriter  # pyright: ignore[reportMissingImports]
        from haystack.document_stores.in_memory import InMemoryDocumentStore  # pyright: ignore[reportMissingImports]
        from haystack.utils import ComponentDevice  # pyright: ignore[reportMissingImports]
        from haystack_integrations.components.embedders.sentence_transformers import (  # pyright: ignore[reportMissingImports]
            SentenceTransformersDocumentEmbedder,
        )

        self._store = InMemoryDocumentStore()
        embedder = SentenceTransformersDocumentEmbedder(
            model=str(model),
            device=ComponentDevice.from_str("cpu"),
            batch_size=BATCH,
            progress_bar=False,
            normalize_embeddings=True,
        )
        self._pipeline = Pipeline()
        self._pipeline.add_component("embedder", embedder)
        self._pipeline.add_component("writer", DocumentWriter(self._store))
        self._pipeline.connect("embedder.documents", "writer.documents")

    def ingest(self, names: list[str], texts: list[str]) -> None:
        """Run the pipeline."""
        from haystack import Document  # pyright: ignore[reportMissingImports]

        documents = [Document(id=name, content=text) for name, text in zip(names, texts, strict=True)]
        self._pipeline.run({"embedder": {"documents": documents}})

    def vectors(self, names: list[str]) -> np.ndarray:
        """Return the vectors the store holds."""
        found = {document.id: document.embedding for document in self._store.filter_documents()}
        return np.asarray([found[name] for name in names], dtype=np.float32)


ARMS: dict[str, Any] = {
    "graft": Graft,
    "encode_only": EncodeOnly,
    "llamaindex": LlamaIndex,
    "haystack": Haystack,
}
PACKAGES = {
    "llamaindex": ("llama_index.core", "llama_index.embeddings.huggingface"),
    "haystack": ("haystack", "haystack_integrations.components.embedders.sentence_transformers"),
}
"""Modules that the peers' arms need."""


def main() -> None:
    """Load the arm, then obey until the input ends."""
    name, texts_file, model = sys.argv[1:]
    texts: list[str] = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    arm = ARMS[name](Path(model))
    say(backend=arm.backend)
    for line in sys.stdin:
        command = json.loads(line)
        names = [f"passage-{number}" for number in range(command["start"], command["stop"])]
        if command["do"] == "ingest":
            wanted = texts[command["start"] : command["stop"]]
            began_s = time.perf_counter()
            arm.ingest(names, wanted)
            say(seconds=time.perf_counter() - began_s)
        else:
            np.save(command["path"], arm.vectors(names))
            say(saved=len(names))


def say(**answer: Any) -> None:
    """Write one answer."""
    os.write(_ANSWERS, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    # Answers have a descriptor of their own: libraries print.
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    main()
