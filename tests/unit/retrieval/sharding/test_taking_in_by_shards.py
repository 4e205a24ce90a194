"""Documents read elsewhere, taken in by the shards they belong to, found at once and in every version."""

from __future__ import annotations

from pathlib import Path

import pytest
from opened_shards import opened

from retrieval.errors import InvalidDocument
from retrieval.ingestion.taking_in import ReadDocument
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.truth.version_tables import Embedded
from retrieval.types import Chunk, Document, DocumentState, DocumentText, SearchRequest
from tests.fakes_embedder import HashEmbedder


async def read(retrieval: ShardedRetrieval, name: str, text: str) -> ReadDocument:
    dim = (await retrieval.versions())[0].spec.model_dim
    vectors_ND = await HashEmbedder(dim).embed_passages([text])
    chunks = [Chunk(0, text, 0, len(text))]
    return ReadDocument(name, text.encode(), "text/plain", DocumentText(text), Embedded(chunks, vectors_ND))


async def taken(retrieval: ShardedRetrieval, documents: list[ReadDocument]) -> list[Document]:
    version = (await retrieval.versions())[0].version_id
    return await retrieval.take_in(documents, version, library="l", metadata={"year": 1901})


async def test_each_goes_to_its_shard_and_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=3) as retrieval:
        documents = [await read(retrieval, f"d{number}.txt", f"topic {number}") for number in range(30)]
        found = await taken(retrieval, documents)
        assert [document.name for document in found] == [one.name for one in documents]
        assert {document.state for document in found} == {DocumentState.READY}
        (result,) = await retrieval.search([SearchRequest("topic", k=100, library="l")])
        assert {passage.document for passage in result.passages} == {one.name for one in documents}
        assert await taken(retrieval, documents) == found


async def test_what_was_not_embedded_is_by_the_shard(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        (queued,) = await taken(retrieval, [ReadDocument("late.txt", b"Words about bees.")])
        (ready,) = await retrieval.wait_ready([queued.document_id], timeout_s=60)
        assert (ready.state, ready.num_chunks) == (DocumentState.READY, 1)


async def test_a_name_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, num_shards=2) as retrieval:
        with pytest.raises(InvalidDocument, match="points to a folder"):
            await taken(retrieval, [ReadDocument("../x.txt", b"x")])
        assert await retrieval.documents() == []
