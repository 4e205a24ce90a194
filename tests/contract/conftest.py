"""What the contract suites run over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fakes_retrieval import HashEmbedder, MemoryRetrieval

from retrieval.config import RetrievalConfig
from retrieval.service import LocalRetrieval
from retrieval.sharding.sharded_retrieval import ShardedRetrieval


@pytest.fixture(scope="session")
def actor_retrieval(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """The actor form with the real embedder, one for all suites."""
    import ray

    from retrieval.actor import ActorRetrieval

    folder = tmp_path_factory.mktemp("shard")
    retrieval = ActorRetrieval.start(folder, RetrievalConfig(), namespace="retrieval-contract", num_threads=1)
    yield retrieval
    for handle in (retrieval.shard, retrieval.embedder):
        ray.kill(handle, no_restart=True)


@pytest.fixture(params=["memory", "local", "sharded", pytest.param("actor", marks=pytest.mark.integration)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[object]:
    """A `Retriever` that is also a `DocumentStore`, empty."""
    if request.param == "memory":
        yield MemoryRetrieval()
    elif request.param == "local":
        async with await LocalRetrieval.open(tmp_path, RetrievalConfig(), HashEmbedder()) as retrieval:
            yield retrieval
    elif request.param == "sharded":
        config = RetrievalConfig(num_shards=2)
        async with await ShardedRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
            yield retrieval
    else:
        retrieval = request.getfixturevalue("actor_retrieval")
        yield retrieval
        for tenant in ("default", "other", "mine", "yours", "a", "b"):
            for document in await retrieval.documents(tenant=tenant):
                await retrieval.delete(document.document_id, tenant=tenant)
