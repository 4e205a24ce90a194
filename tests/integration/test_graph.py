"""The graph of entities through the SDK, HTTP, the command line, and with the real engine reading chunks."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import pytest
from test_cli import graft as command

from graft import AsyncGraph, Graft, Graph, Record
from graft.generators import GENERATOR
from graft.graph_model import actor_text_model
from graft.platform import NAMESPACE
from retrieval.config import RetrievalConfig
from retrieval.errors import GraphDisabled, InvalidSearch, InvalidVersion

pytestmark = pytest.mark.integration

RECORDS = (
    Record("a", "The Quokka Engine was developed by Ada Marsh. It runs inside Wombat Server."),
    Record("b", "We know that Wombat Server uses the Quokka Engine."),
    Record("c", "Marsupial Retrieval Format (MRF) was developed by Ada Marsh."),
)


@pytest.fixture(params=["here", "remote"])
def graft(request, platform: Graft, platform_url: str):
    """The platform in this process, and the same one over HTTP."""
    if request.param == "here":
        yield platform
    else:
        with Graft.connect(platform_url) as connected:
            yield connected


@pytest.fixture
def library(platform: Graft):
    name = f"marsupials-{uuid.uuid4().hex[:8]}"
    platform.upsert(RECORDS, library=name)
    platform.graph.wait_taken_up(timeout_s=120)
    yield name
    for document in platform.documents(name):
        platform.delete(document.document_id)


def test_entities_neighbours_and_communities_of_a_library(graft: Graft, library: str):
    found = graft.graph.entities("ada", library=library)
    assert [(one.name, one.num_chunks) for one in found.entities] == [("Ada Marsh", 2)]
    near = graft.graph.neighbourhood("what did Ada Marsh make?", library=library)
    assert {one.name for one in near.neighbours} >= {"Quokka Engine"}
    assert "developed by" in {edge.label for edge in near.edges}
    passages = graft.passages([chunk_id for chunk_id, _ in near.chunks])
    assert {passage.document for passage in passages if passage} == {"a", "b", "c"}
    groups = graft.graph.communities(library=library)
    assert groups.num_communities == len(groups.communities) >= 1
    assert "Ada Marsh" in {one.name for group in groups.communities for one in group.entities}
    stats = graft.graph.stats()
    assert (stats.source, stats.num_failed) == ("rules", 0)
    assert graft.graph.retry_failed() == 0


def test_errors_keep_their_class(graft: Graft):
    with pytest.raises(InvalidSearch, match="limit"):
        graft.graph.entities(limit=0)
    with pytest.raises(InvalidVersion, match="a graph is kept"):
        graft.graph.drop()


def test_a_deleted_documents_entities_are_gone(graft: Graft, library: str):
    (document,) = [one for one in graft.documents(library) if one.name == "c"]
    assert graft.graph.entities("mrf", library=library).entities
    graft.delete(document.document_id)
    assert graft.graph.entities("mrf", library=library).entities == ()


async def test_async_twins_answer(platform: Graft, library: str):
    assert (await platform.graph.aentities("ada", library=library)).entities
    assert (await platform.graph.aneighbourhood("Ada Marsh", library=library)).seeds
    assert (await platform.graph.acommunities(library=library)).communities
    assert (await platform.graph.await_taken_up()).num_pending == 0


def test_every_method_has_both_twins():
    methods = [name for name in vars(AsyncGraph) if not name.startswith("_")]
    for name in methods:
        assert hasattr(Graph, name)
        assert hasattr(Graph, f"a{name}")


def test_commands_of_the_graph(platform_url: str, library: str):
    found = json.loads(command("graph", "entities", "ada", "--library", library, "--json"))
    assert found["entities"][0]["name"] == "Ada Marsh"
    assert "Ada Marsh" in command("graph", "entities", "--library", library)
    near = json.loads(command("graph", "neighbours", "Ada Marsh", "--library", library, "--json"))
    assert near["seeds"][0]["key"] == "ada marsh"
    shown = command("graph", "neighbours", "--entity", "Ada Marsh", "--library", library)
    assert "around Ada Marsh" in shown
    assert "developed by" in shown
    assert "b: We know" in shown
    groups = json.loads(command("graph", "communities", "--library", library, "--json"))
    assert groups["num_levels"] >= 1
    assert "levels 0 to" in command("graph", "communities", "--library", library)
    assert json.loads(command("graph", "status", "--wait", "60", "--json"))["num_pending"] == 0
    assert "rules-1" in command("graph", "status")
    assert "queued 0" in command("graph", "retry")
    assert "a graph is kept" in command("graph", "drop", code=1)
    assert "question" in command("graph", "neighbours", code=2)


async def test_the_engine_reads_chunks_for_shards_of_their_own(
    engine, ray_session: None, tmp_path: Path
) -> None:
    import ray

    from retrieval.actor import ActorRetrieval

    config = RetrievalConfig(graph="llm")
    model = actor_text_model("bundled", GENERATOR, NAMESPACE)
    retrieval = ActorRetrieval.start(
        tmp_path, config, namespace="graph-engine", num_threads=1, text_model=model
    )
    try:
        await retrieval.ready()
        await retrieval.upsert([Record("a", RECORDS[0].text)])
        async with asyncio.timeout(120):
            while (stats := await retrieval.graph.stats()).num_pending:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.1)
        assert (stats.source, stats.extractor, stats.num_chunks) == ("llm", "llm-1-bundled", 1)
        # A small model may answer in no known form; that is told, and nothing invented is kept.
        assert stats.num_failed == (stats.failure is not None)
        for entity in (await retrieval.graph.entities(limit=100)).entities:
            assert entity.name.lower() in RECORDS[0].text.lower()
    finally:
        for handle in (*retrieval._actors.handles.values(), *retrieval.embedders):
            ray.kill(handle, no_restart=True)


async def test_off_the_error_that_says_how_to_turn_it_on_reaches_http(tmp_path: Path) -> None:
    from types import SimpleNamespace
    from typing import Any

    import httpx
    from fakes_retrieval import HashEmbedder

    from graft.access import Access
    from graft.config import ServerConfig
    from graft.http_client import HttpClient
    from graft.remote_graph import RemoteGraph
    from graft.sdk import AsyncGraft
    from graft.server import create_app
    from retrieval.service import LocalRetrieval

    async with await LocalRetrieval.open(tmp_path, RetrievalConfig(), HashEmbedder()) as retrieval:
        backend: Any = SimpleNamespace(graph=retrieval.graph)
        transport = httpx.ASGITransport(app=create_app(AsyncGraft(backend), Access(), ServerConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/v1/graph/entities")).status_code == 409
            with pytest.raises(GraphDisabled, match=r'set it to "rules"'):
                await RemoteGraph(HttpClient(client)).communities()
            await RemoteGraph(HttpClient(client)).drop()
