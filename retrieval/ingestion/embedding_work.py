"""Cutting documents as an index version does, and embedding their chunks in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from retrieval.errors import IndexUnavailable, UnreadableDocument
from retrieval.extraction.reading import Chunking, ReadingProcess
from retrieval.model_files import model_folder, tokenizer_file
from retrieval.truth.store import Embedded
from retrieval.types import Chunk, DocumentText, Embedder
from retrieval.versions import VersionSpec

SLICE_CHUNKS = 256
"""Chunks a call to the embedder: between calls a deleted or replaced document is noticed and dropped."""

EmbedderOf = Callable[[VersionSpec], Embedder | None]
"""Returns a version's embedder, None while it is not here."""


def chunking_of(spec: VersionSpec) -> Chunking:
    """Return how a version cuts documents.

    Raises:
        FileNotFoundError: Its embedder's files are not here.
    """
    return Chunking(
        str(tokenizer_file(model_folder(spec.embedder))),
        spec.chunk_tokens,
        spec.chunk_overlap_tokens,
        spec.max_chunk_chars,
    )


class ChunkEmbedding:
    """Cuts and embeds for any version whose embedder is here."""

    def __init__(
        self,
        embedder_of: EmbedderOf,
        reading: ReadingProcess,
    ) -> None:
        """Use these."""
        self._embedder_of = embedder_of
        self._reading = reading

    async def cut(self, spec: VersionSpec, name: str, document: DocumentText) -> list[Chunk]:
        """Return a document's chunks in a version; raises UnreadableDocument."""
        chunking = await asyncio.to_thread(chunking_of, spec)
        return await asyncio.to_thread(self._reading.chunks, name, document, chunking)

    async def embed(
        self,
        spec: VersionSpec,
        name: str,
        chunks: Sequence[Chunk],
        *,
        is_wanted: Callable[[], Awaitable[bool]] | None = None,
        on_slice: Callable[[int, int], None] | None = None,
    ) -> Embedded | None:
        """Return the chunks with their vectors, and token codes where the version keeps them.

        Args:
            spec: The version.
            name: The document's name.
            chunks: Its chunks.
            is_wanted: Asked between slices; the result is None once it says no.
            on_slice: Told before each slice how many chunks are done, and of how many.

        Raises:
            IndexUnavailable: The version's embedder is not here.
            UnreadableDocument: The vectors are not numbers.
        """
        embedder = self._embedder_of(spec)
        if embedder is None:
            raise IndexUnavailable(
                f"the embedder {spec.embedder!r} of index version {spec.version_id!r} is not loaded; "
                "start with it or switch to a version whose embedder is"
            )
        slices, codes = [], []
        for start in range(0, len(chunks), SLICE_CHUNKS):
            if start and is_wanted is not None and not await is_wanted():
                return None
            if on_slice is not None:
                on_slice(start, len(chunks))
            texts = [chunk.text for chunk in chunks[start : start + SLICE_CHUNKS]]
            if spec.tokens == "none":
                slices.append(await embedder.embed_passages(texts))
            else:
                vectors_ND, tokens = await embedder.embed_passages_with_tokens(texts, spec.tokens)
                slices.append(vectors_ND)
                codes += tokens.codes
        vectors_ND = np.concatenate(slices)
        if not np.isfinite(vectors_ND).all():
            raise UnreadableDocument(
                f"the embedder made vectors of '{name}' that are not numbers; check its weights"
            )
        return Embedded(chunks, vectors_ND, codes)
