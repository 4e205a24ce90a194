"""Two shards with a replica each as actors: killed copies, a switch of versions, a reshard, other clients."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from retrieval.actor import ActorRetrieval
from retrieval.admin import VersionChange
from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.types import Record, SearchRequest, SearchResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAMESPACE = "sharded-actors"
CONFIG = RetrievalConfig(num_shards=2, num_replicas=1)
RECORDS = [Record(f"r{number}", f"Topic {number % 7} tells of item {number}.") for number in range(40)]
REQUESTS = [
    SearchRequest(f"topic {number} item", k=20, mode=mode)
    for number in range(3)
    for mode in ("hybrid", "lexical")
]


@pytest.fixture(scope="module")
def started(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorRetrieval]:
    folder = tmp_path_factory.mktemp("sharded")
    retrieval = ActorRetrieval.start(folder, CONFIG, namespace=NAMESPACE, num_threads=1)
    yield retrieval
    for handle in (*retrieval._actors.handles.values(), *retrieval.embedders):
        ray.kill(handle, no_restart=True)


@pytest.fixture
async def retrieval(started: ActorRetrieval) -> AsyncIterator[ActorRetrieval]:
    """A client on this test's event loop, which holds the records."""
    client = ActorRetrieval(
        started._root, CONFIG, started._actors, started.placement, started.embedders, NAMESPACE, {}
    )
    await client.ready()
    await client.upsert(RECORDS)
    yield client
    await client._stop_searching()


async def pid_of(handle: Any) -> int:
    async with asyncio.timeout(60):
        while True:
            try:
                return await handle.pid.remote()
            except ActorUnavailableError:
                await asyncio.sleep(0.1)


async def kill(handle: Any) -> None:
    os.kill(await pid_of(handle), signal.SIGKILL)


def seen(results: list[SearchResult]) -> list[list[tuple[str, float, str]]]:
    assert not any(result.partial for result in results)
    return [
        [
            (hit.chunk_id, round(hit.score, 3), passage.text)
            for hit, passage in zip(result.hits, result.passages, strict=True)
        ]
        for result in results
    ]


async def test_actors_answer_as_one_process_does(retrieval: ActorRetrieval, tmp_path: Path) -> None:
    embedder = SentenceTransformerEmbedder(CONFIG)
    async with await ShardedRetrieval.open(tmp_path, RetrievalConfig(), embedder) as local:
        await local.upsert(RECORDS)
        expected = seen(await local.search(REQUESTS))
    await embedder.aclose()
    for _ in range(3):  # Each time other copies.
        assert seen(await retrieval.search(REQUESTS)) == expected


async def test_killed_copy_goes_unnoticed_where_another_answers(retrieval: ActorRetrieval) -> None:
    expected = seen(await retrieval.search(REQUESTS))
    handles = retrieval._actors.handles
    await kill(handles[0, 0])
    await kill(handles[1, 1])
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert seen(await retrieval.search(REQUESTS)) == expected
    await retrieval.upsert([Record("after", "Topic 1 was added after the crash.")])
    (result,) = await retrieval.search([SearchRequest("added after the crash", k=1)])
    assert result.passages[0].document == "after"
    document = next(one for one in await retrieval.documents() if one.name == "after")
    await retrieval.delete(document.document_id)
    for _ in range(6):
        (result,) = await retrieval.search([SearchRequest("added after the crash", k=50)])
        assert "after" not in {passage.document for passage in result.passages}


async def test_lost_shard_is_named_until_it_is_back(retrieval: ActorRetrieval) -> None:
    pids = [await pid_of(retrieval._actors.handles[1, slot]) for slot in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        (result,) = await retrieval.search([SearchRequest("topic", k=1000, deadline_s=3.0)])
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert result.partial
    assert result.missing_shards == ("shard-1",)
    assert 0 < len(result.hits) < len(RECORDS)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    (result,) = await retrieval.search([SearchRequest("topic", k=1000, deadline_s=60.0)])
    assert not result.partial
    assert len(result.hits) == len(RECORDS)


async def test_versions_switch_and_attached_clients_follow(retrieval: ActorRetrieval) -> None:
    made = await retrieval.make_version(VersionChange(vectors="int8"))
    await retrieval.wait_version(made.version_id, timeout_s=60)
    await retrieval.switch(made.version_id)
    (result,) = await retrieval.search([SearchRequest("topic", k=1000)])
    assert (result.index_version, len(result.hits)) == (made.version_id, len(RECORDS))
    other = ActorRetrieval.attach(CONFIG, namespace=NAMESPACE)
    (result,) = await other.search([SearchRequest("topic", k=1000)])
    assert (result.index_version, len(result.hits)) == (made.version_id, len(RECORDS))
    await other.aclose()


async def test_reshard_keeps_every_answer_and_attached_clients_find_it(retrieval: ActorRetrieval) -> None:
    before = await retrieval.search(REQUESTS)
    other = ActorRetrieval.attach(CONFIG, namespace=NAMESPACE)
    assert seen(await other.search(REQUESTS)) == seen(before)
    await retrieval.reshard(1)
    assert set(retrieval._actors.handles) == {(0, 0), (0, 1)}
    assert seen(await retrieval.search(REQUESTS)) == seen(before)
    assert seen(await other.search(REQUESTS)) == seen(before)
    await other.upsert([Record("late", "Topic 3 came late.")])
    assert "late" in {document.name for document in await retrieval.documents()}
    await kill(retrieval.shard)
    assert len(await retrieval.documents()) == len(RECORDS) + 1
    await other.aclose()
