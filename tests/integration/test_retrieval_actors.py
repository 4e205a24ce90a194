"""Retrieval as Ray actors: killed actors come back, nothing is lost, and an outage is no empty answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from retrieval.actor import ActorRetrieval, actor_env
from retrieval.config import RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder
from retrieval.errors import IndexUnavailable, IngestTimeout, InvalidDocument, UnknownDocument
from retrieval.service import LocalRetrieval
from retrieval.types import DocumentState, SearchRequest

pytestmark = pytest.mark.integration
WAIT_S = 120.0
CONFIG = RetrievalConfig()


@pytest.fixture(scope="module")
def retrieval(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorRetrieval]:
    folder = tmp_path_factory.mktemp("shard")
    started = ActorRetrieval.start(folder, CONFIG, namespace="retrieval-actors", num_threads=1)
    yield started
    for handle in (started.shard, started.embedder):
        ray.kill(handle, no_restart=True)


async def _fill(retrieval: ActorRetrieval, count: int, prefix: str) -> list[str]:
    added = []
    for number in range(count):
        text = f"{prefix} number {number} tells of topic {number}."
        added.append(await retrieval.add(f"{prefix}{number}.txt", text.encode()))
    return [document.document_id for document in added]


async def _pid(handle: Any) -> int:
    """Return an actor's process id, waiting while it restarts."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await handle.pid.remote()
            except ActorUnavailableError:
                await asyncio.sleep(0.1)


async def _kill(handle: Any) -> None:
    os.kill(await _pid(handle), signal.SIGKILL)


def _environment_of(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/environ").read_text().split("\0"))


async def test_ready_tells_what_the_start_cost(retrieval: ActorRetrieval) -> None:
    timings = await retrieval.ready()
    assert {"embedder_model_s", "shard_open_s"} <= set(timings)
    assert all(value >= 0 for value in timings.values())


async def test_actors_answer_as_one_process_does(retrieval: ActorRetrieval, tmp_path: Path) -> None:
    texts = {
        f"same{number}.md": f"# Topic {number}\n\nWords about subject {number * 7}." for number in range(12)
    }
    requests = [SearchRequest(f"subject {number * 7}", k=5, library="same") for number in range(32)]
    embedder = SentenceTransformerEmbedder(CONFIG)
    async with await LocalRetrieval.open(tmp_path, CONFIG, embedder) as local:
        answers = []
        for store in (local, retrieval):
            added = [await store.add(name, text.encode(), library="same") for name, text in texts.items()]
            await store.wait_ready([document.document_id for document in added], timeout_s=WAIT_S)
            answers.append(await store.search(requests))
    await embedder.aclose()
    for expected, got in zip(*answers, strict=True):
        assert got.passages == expected.passages
        assert [hit.score for hit in got.hits] == pytest.approx(
            [hit.score for hit in expected.hits], abs=1e-4
        )
        assert got.index_version == expected.index_version


async def test_killed_shard_comes_back_with_everything_acknowledged(retrieval: ActorRetrieval) -> None:
    ids = await _fill(retrieval, 20, "kept")
    await _kill(retrieval.shard)  # In the middle of the ingestion.
    settled = await retrieval.wait_ready(ids, timeout_s=WAIT_S)
    assert {document.state for document in settled} == {DocumentState.READY}
    (result,) = await retrieval.search([SearchRequest("kept number 13", k=1)])
    assert result.passages[0].text == "kept number 13 tells of topic 13."


async def test_search_during_a_restart_waits_and_is_never_empty(retrieval: ActorRetrieval) -> None:
    ids = await _fill(retrieval, 3, "steady")
    await retrieval.wait_ready(ids, timeout_s=WAIT_S)
    for word, handle in (("tells", retrieval.shard), ("topic", retrieval.embedder)):
        await _kill(handle)
        # Queries not seen before: the embedder is needed for them.
        requests = [SearchRequest(f"steady {word} {number}", k=1) for number in range(3)]
        batches = await asyncio.gather(*(retrieval.search(requests) for _ in range(4)))
        for batch in batches:
            names = [result.passages[0].document for result in batch]
            assert names == ["steady0.txt", "steady1.txt", "steady2.txt"]


async def test_ingest_survives_a_killed_embedder(retrieval: ActorRetrieval) -> None:
    ids = await _fill(retrieval, 10, "embed")
    await _kill(retrieval.embedder)
    settled = await retrieval.wait_ready(ids, timeout_s=WAIT_S)
    assert {document.state for document in settled} == {DocumentState.READY}


async def test_errors_cross_the_actor_border_as_themselves(retrieval: ActorRetrieval) -> None:
    with pytest.raises(UnknownDocument, match="no document 'nope'"):
        await retrieval.document("nope")
    with pytest.raises(UnknownDocument):
        await retrieval.delete("nope")
    with pytest.raises(InvalidDocument, match="points to a folder"):
        await retrieval.add("../up.txt", b"x")
    (document_id,) = await _fill(retrieval, 1, "slow")
    with contextlib.suppress(IngestTimeout):
        await retrieval.wait_ready([document_id], timeout_s=0)
    await retrieval.wait_ready([document_id], timeout_s=WAIT_S)


async def test_attached_client_sees_the_same_documents(retrieval: ActorRetrieval) -> None:
    other = ActorRetrieval.attach(CONFIG, namespace="retrieval-actors")
    assert await other.documents() == await retrieval.documents()
    with pytest.raises(IndexUnavailable, match=r"no actor .* runs in Ray namespace 'nowhere'"):
        ActorRetrieval.attach(CONFIG, namespace="nowhere")


async def test_actors_run_in_the_recommended_environment(retrieval: ActorRetrieval) -> None:
    wanted = actor_env(CONFIG, 1)
    assert wanted["OMP_WAIT_POLICY"] == "passive"
    for handle in (retrieval.shard, retrieval.embedder):
        environment = _environment_of(await _pid(handle))
        assert {f"{key}={value}" for key, value in wanted.items()} <= environment


async def test_shard_that_stays_away_is_unavailable_not_empty(ray_session: None, tmp_path: Path) -> None:
    lone = ActorRetrieval.start(tmp_path, CONFIG, namespace="retrieval-lone", num_threads=1)
    await lone.ready()
    ray.kill(lone.shard, no_restart=True)
    for call in (
        lone.search([SearchRequest("anything")]),
        lone.documents(),
        lone.passages(["a:b:0"]),
        lone.add("a.txt", b"x"),
        lone.wait_ready(["x"], timeout_s=1),
    ):
        with pytest.raises(IndexUnavailable, match="restart the platform"):
            await call
    ray.kill(lone.embedder, no_restart=True)
