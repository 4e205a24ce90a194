"""One suite over every `GraphReader`: one shard, several, actors, and over HTTP; all say the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fakes_retrieval import HashEmbedder

from graft.access import Access
from graft.config import ServerConfig
from graft.http_client import HttpClient
from graft.remote_graph import RemoteGraph
from graft.sdk import AsyncGraft
from graft.server import create_app
from retrieval.config import RetrievalConfig
from retrieval.errors import InvalidSearch
from retrieval.graph_admin import GraphAdmin
from retrieval.service import LocalRetrieval
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.truth.documents import document_id_of
from retrieval.types import Record

WAIT_S = 60.0
NAMESPACE = "graph-contract"
RECORDS = (
    Record("a", "PagedAttention was developed by Woosuk Kwon. It runs inside vLLM on a GPU."),
    Record("b", "We know that vLLM uses PagedAttention. The FAISS index needs a GPU."),
    Record("c", "Retrieval-Augmented Generation (RAG) reads passages."),
    Record("d", "In practice RAG needs an index such as FAISS."),
    Record("e", "We know that RAG and Darren Edge met."),
    Record("f", "Bananas grow in Ecuador."),
)


class Form:
    """One form of the graph, and the store whose chunks it follows."""

    def __init__(self, store: Any, graph: GraphAdmin, *, one_tenant: bool = False) -> None:
        self.store = store
        self.graph = graph
        self.one_tenant = one_tenant

    async def put(self, records: Any, library: str = "default", tenant: str = "default") -> None:
        """Store records and wait until the graph has taken them up."""
        await self.store.upsert(list(records), library=library, tenant=tenant)
        async with asyncio.timeout(WAIT_S):
            while (await self.graph.stats()).num_pending:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)

    async def delete(self, name: str) -> None:
        await self.store.delete(document_id_of("default", "default", name), tenant="default")


@pytest.fixture(scope="module")
def graph_actors(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RetrievalConfig]:
    import ray

    from retrieval.actor import ActorRetrieval

    config = RetrievalConfig(graph="rules", num_shards=2)
    started = ActorRetrieval.start(
        tmp_path_factory.mktemp("graph"), config, namespace=NAMESPACE, num_threads=1
    )
    yield config
    for handle in (*started._actors.handles.values(), *started.embedders):
        ray.kill(handle, no_restart=True)


FORMS = ["local", "sharded-1", "sharded-3", "http", pytest.param("actor", marks=pytest.mark.integration)]


@pytest.fixture(params=FORMS)
async def form(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Form]:
    config = RetrievalConfig(graph="rules")
    kind, _, num_shards = request.param.partition("-")
    if kind == "sharded":
        config = RetrievalConfig(graph="rules", num_shards=int(num_shards))
        async with await ShardedRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
            yield Form(retrieval, retrieval.graph)
    elif kind == "actor":
        from retrieval.actor import ActorRetrieval

        config = request.getfixturevalue("graph_actors")
        client = ActorRetrieval.attach(config, namespace=NAMESPACE)
        await client.ready()
        yield Form(client, client.graph)
        for tenant in ("default", "other"):
            for document in await client.documents(tenant=tenant):
                await client.delete(document.document_id, tenant=tenant)
        await client.aclose()
    else:
        async with await LocalRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
            if kind == "local":
                yield Form(retrieval, retrieval.graph)
                return
            backend: Any = SimpleNamespace(graph=retrieval.graph)
            app = create_app(AsyncGraft(backend), Access(), ServerConfig())
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                yield Form(retrieval, RemoteGraph(HttpClient(client)), one_tenant=True)


async def test_entities_are_found_by_name_part_and_use(form: Form) -> None:
    await form.put(RECORDS)
    found = await form.graph.entities("paged-attention")
    assert found.entities == ()
    (entity,) = (await form.graph.entities("attention")).entities
    assert (entity.key, entity.name, entity.kind, entity.num_chunks) == (
        "pagedattention", "PagedAttention", "acronym", 2,
    )  # fmt: skip
    most = await form.graph.entities(limit=1)
    assert [one.key for one in most.entities] == ["retrieval augmented generation"]
    assert (most.partial, most.missing_shards, most.num_pending) == (False, (), 0)


async def test_a_short_form_explained_in_one_document_is_known_in_all(form: Form) -> None:
    await form.put(RECORDS)
    (entity,) = (await form.graph.entities("RAG", limit=1)).entities
    assert (entity.key, entity.num_chunks) == ("retrieval augmented generation", 3)
    found = await form.graph.neighbourhood("what is rag?")
    assert [one.key for one in found.seeds] == ["retrieval augmented generation"]
    assert {one.name for one in found.neighbours} == {"FAISS", "Darren Edge"}


async def test_neighbourhood_has_connections_and_chunks_that_can_be_read(form: Form) -> None:
    await form.put(RECORDS)
    found = await form.graph.neighbourhood("who made pagedattention?", max_neighbours=5, max_chunks=3)
    assert {entity.name for entity in found.neighbours} == {"Woosuk Kwon", "vLLM"}
    labels = {(edge.source, edge.label, edge.target) for edge in found.edges}
    assert {("pagedattention", "developed by", "woosuk kwon"), ("vllm", "uses", "pagedattention")} <= labels
    passages = await form.store.passages([chunk_id for chunk_id, _ in found.chunks])
    assert {passage.document for passage in passages} == {"a", "b"}
    scores = [score for _, score in found.chunks]
    assert scores == sorted(scores, reverse=True)
    given = await form.graph.neighbourhood(entities=["PagedAttention"], max_neighbours=5, max_chunks=3)
    assert given == found
    nothing = await form.graph.neighbourhood("tell me of bananas and unknown things")
    assert (nothing.seeds, nothing.edges, nothing.chunks) == ((), (), ())


async def test_communities_have_members_levels_and_chunks(form: Form) -> None:
    ring = [Record(f"n{i}", f"We know that Node{i} and Node{(i + 1) % 60} met.") for i in range(60)]
    await form.put(ring)
    coarse, fine = [await form.graph.communities(level=level) for level in (0, 9)]
    assert coarse.num_levels == fine.num_levels >= 1
    for found in (coarse, fine):
        assert found.num_communities == len(found.communities) > 1
        members = [entity.key for one in found.communities for entity in one.entities]
        assert sorted(members) == sorted(f"node{i}" for i in range(60))
        assert [one.num_chunks for one in found.communities] == sorted(
            (one.num_chunks for one in found.communities), reverse=True
        )
        passages = await form.store.passages(found.communities[0].chunk_ids)
        assert all(passage is not None for passage in passages)
    assert (await form.graph.communities()) == coarse
    first = await form.graph.communities(limit=1)
    assert (first.communities, first.num_communities) == (coarse.communities[:1], coarse.num_communities)
    await form.put([Record("more", "We know that Node1 and Node2 met again.")])
    changed = await form.graph.communities()
    assert {one.digest for one in changed.communities} != {one.digest for one in coarse.communities}


async def test_tenants_and_libraries_never_meet(form: Form) -> None:
    await form.put([Record("x", "We know that Shared Name and Alpha Secret met.")])
    await form.put([Record("x", "We know that Shared Name and Gamma Thing met.")], library="m")
    await form.put([Record("x", "We know that Shared Name and Beta Secret met.")], tenant="other")

    async def around(**where: str) -> set[str]:
        found = await form.graph.neighbourhood("Shared Name", **where)
        names = {entity.name for entity in (await form.graph.entities(**where)).entities} - {"Shared Name"}
        groups = (await form.graph.communities(**where)).communities
        members = {entity.name for one in groups for entity in one.entities} - {"Shared Name"}
        assert names == members == {entity.name for entity in found.neighbours}
        return names

    assert await around() == {"Alpha Secret", "Gamma Thing"}
    assert await around(library="default") == {"Alpha Secret"}
    assert await around(library="m") == {"Gamma Thing"}
    assert await around(library="none such") == set()
    assert [one.library for one in (await form.graph.communities()).communities] in (
        ["default", "m"], ["m", "default"],
    )  # fmt: skip
    if not form.one_tenant:
        assert await around(tenant="other") == {"Beta Secret"}
        assert await around(tenant="nobody") == set()


async def test_a_deleted_documents_entities_are_gone_when_the_delete_returns(form: Form) -> None:
    await form.put(RECORDS)
    assert (await form.graph.communities()).communities
    await form.delete("e")
    assert (await form.graph.entities("edge")).entities == ()
    assert (await form.graph.neighbourhood("Darren Edge")).seeds == ()
    groups = (await form.graph.communities()).communities
    assert "Darren Edge" not in {entity.name for one in groups for entity in one.entities}
    await form.delete("c")
    assert [one.key for one in (await form.graph.entities("rag")).entities] == ["rag"]


async def test_bounds_are_refused_by_name(form: Form) -> None:
    with pytest.raises(InvalidSearch, match="limit must be from 1 to 1,000; got 0"):
        await form.graph.entities(limit=0)
    with pytest.raises(InvalidSearch, match="max_chunks"):
        await form.graph.neighbourhood("x", max_chunks=1001)
    with pytest.raises(InvalidSearch, match="level"):
        await form.graph.communities(level=-1)
    with pytest.raises(InvalidSearch, match="characters"):
        await form.graph.neighbourhood("x" * 200_000)


async def test_every_form_says_what_one_shard_says(form: Form, tmp_path: Path) -> None:
    choose = random.Random(3)
    names = [
        f"{first} {last}" for first in ("Ada", "Ida", "Eva", "Ute") for last in ("Marsh", "Stone", "Hill")
    ]
    names += ["BM25", "vLLM", "GraphRAG", "OSDI"]
    verbs = ("uses", "and", "was developed by", "is based on")
    records = []
    for number in range(60):
        said = [
            f"We know that {choose.choice(names)} {choose.choice(verbs)} {choose.choice(names)}."
            for _ in range(2)
        ]
        if number % 9 == 0:
            said.append(
                choose.choice(["It is Best Match Two (BM25).", "Open Systems Day Inn (OSDI) is big."])
            )
        records.append(Record(f"r{number}", " ".join(said)))
    await form.put(records)
    reference = tmp_path / "reference"
    async with await LocalRetrieval.open(
        reference, RetrievalConfig(graph="rules"), HashEmbedder()
    ) as retrieval:
        one = Form(retrieval, retrieval.graph)
        await one.put(records)
        for name in ("", "ada", "bm25"):
            assert await form.graph.entities(name) == await one.graph.entities(name)
        for question in ("what of BM25 and Ada Marsh?", "who uses vLLM at OSDI"):
            assert await form.graph.neighbourhood(question) == await one.graph.neighbourhood(question)
        for level in (0, 1, 5):
            assert await form.graph.communities(level=level) == await one.graph.communities(level=level)
