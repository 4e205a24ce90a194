"""The graph follows its chunks: grown step by step it equals one made at once; deletions are immediate."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.graph import (
    Alias,
    Clustering,
    Extraction,
    GraphIndex,
    Mention,
    Relation,
    RuleExtractor,
)
from retrieval.graph.schema import pause_graph
from retrieval.truth.records import Vectors
from retrieval.truth.store import Store, document_id_of
from retrieval.truth.version_tables import drop_tables
from retrieval.types import Record
from retrieval.versions import VersionSpec

SPEC = VersionSpec("packaged", "hash8", 4, 180, 20, 2000)
TABLES = ("mentions", "relations", "aliases", "chunks")


class Library:
    """A shard with a graph, in this thread."""

    def __init__(self, folder: Path, extractor=None, clustering: Clustering | None = None) -> None:
        self.store = Store(folder)
        self.number = self.store.configure(SPEC).number
        self.graph = GraphIndex(self.store.database, self.number, extractor or RuleExtractor(), clustering)
        asyncio.run(self.graph.open())

    def put(self, name: str, text: str, tenant: str = "t", library: str = "l") -> str:
        vectors = Vectors(np.eye(4, dtype=np.float32)[:1])
        self.store.upsert(tenant, library, [Record(name, text)], {self.number: vectors})
        return document_id_of(tenant, library, name)

    def follow(self) -> int:
        return asyncio.run(self.graph.follow())

    def near(self, question: str, tenant: str = "t", library: str | None = None, **settings):
        return asyncio.run(self.graph.neighbourhood(question, tenant=tenant, library=library, **settings))

    def communities(self, level: int = 0, tenant: str = "t", library: str = "l"):
        found = asyncio.run(self.graph.communities(tenant=tenant, library=library, level=level))
        return found.communities

    def all_communities(self):
        """Return the communities of both tenants, coarse and fine."""
        return [self.communities(level, tenant) for level in (0, 9) for tenant in ("t", "u")]

    def content(self) -> dict[str, set[tuple]]:
        """Return every row of the graph, scopes by name."""
        with self.store.database.read() as db:
            scopes = {
                row["scope_id"]: (row["tenant"], row["library"])
                for row in db.execute(f"SELECT * FROM graph_scopes_{self.number}")
            }
            found = {}
            for table in TABLES:
                rows = db.execute(f"SELECT * FROM graph_{table}_{self.number}").fetchall()
                found[table] = {
                    tuple(
                        scopes[value] if column == "scope_id" else value
                        for column, value in zip(row.keys(), row, strict=True)
                    )
                    for row in rows
                }
            return found


@pytest.fixture
def library(tmp_path: Path):
    library = Library(tmp_path)
    yield library
    library.store.close()


NAMES = ["Ada Lovelace", "Charles Babbage", "BM25", "vLLM", "Peking University", "GraphRAG", "OSDI"]
SENTENCE = st.tuples(
    st.sampled_from(NAMES), st.sampled_from(["uses", "and", "was developed by"]), st.sampled_from(NAMES)
).map(lambda parts: f"We know that {parts[0]} {parts[1]} {parts[2]}.")
TEXT = st.lists(
    SENTENCE
    | st.sampled_from(["It is Best Match Twenty Five (BM25).", "Graph Retrieval (GraphRAG) is new."]),
    min_size=1,
    max_size=4,
).map(" ".join)
STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 5), TEXT, st.sampled_from(["t", "u"])),
    st.tuples(st.just("delete"), st.integers(0, 5), st.just(""), st.sampled_from(["t", "u"])),
    st.tuples(st.just("follow"), st.just(0), st.just(""), st.just("t")),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEP, max_size=14))
def test_grown_step_by_step_equals_made_at_once(steps: list[tuple[str, int, str, str]]) -> None:
    with TemporaryDirectory() as folder:
        library = Library(Path(folder), clustering=Clustering(max_size=3))
        try:
            there: set[tuple[str, str]] = set()
            for kind, number, text, tenant in steps:
                name = f"d{number}"
                if kind == "put":
                    library.put(name, text, tenant)
                    there.add((tenant, name))
                elif kind == "delete" and (tenant, name) in there:
                    library.store.delete(document_id_of(tenant, "l", name), tenant)
                    there.remove((tenant, name))
                elif kind == "follow":
                    library.follow()
                    library.all_communities()
            library.follow()
            grown, groups = library.content(), library.all_communities()
            asyncio.run(library.graph.drop())
            asyncio.run(library.graph.open())
            library.follow()
            assert library.content() == grown
            assert library.all_communities() == groups
            assert len(grown["chunks"]) == len(there)
        finally:
            library.store.close()


def test_neighbours_and_chunks_of_a_question(library: Library) -> None:
    library.put("a", "PagedAttention was developed by Woosuk Kwon. It runs inside vLLM on a GPU.")
    library.put("b", "We know that vLLM uses PagedAttention. The FAISS index needs a GPU.")
    library.put("c", "Bananas grow in Ecuador.")
    library.follow()
    found = library.near("who made pagedattention?", max_neighbours=5)
    assert [entity.name for entity in found.seeds] == ["PagedAttention"]
    assert found.seeds[0].num_chunks == 2
    assert {entity.name for entity in found.neighbours} == {"Woosuk Kwon", "vLLM"}
    labels = {(edge.source, edge.label, edge.target) for edge in found.edges}
    assert ("pagedattention", "developed by", "woosuk kwon") in labels
    assert ("vllm", "uses", "pagedattention") in labels
    assert len(found.chunks) == 2
    assert found.chunks[0][1] >= found.chunks[1][1]
    assert library.near("tell me of bananas and unknown things").seeds == ()


def test_short_and_long_form_are_one_entity(library: Library) -> None:
    library.put("a", "Retrieval-Augmented Generation (RAG) reads passages.")
    library.put("b", "In practice RAG needs an index such as FAISS.")
    library.follow()
    found = library.near("what is rag")
    assert [entity.key for entity in found.seeds] == ["retrieval augmented generation"]
    assert found.seeds[0].num_chunks == 2
    assert {found.seeds[0].name, *found.seeds[0].also} == {"RAG", "Retrieval-Augmented Generation"}
    assert [entity.name for entity in found.neighbours] == ["FAISS"]
    assert library.near("Retrieval augmented generation").seeds == found.seeds


def test_a_deleted_document_leaves_at_once(library: Library) -> None:
    library.put("a", "We know that Secret Project uses Hidden Engine.")
    library.put("b", "We know that Open Project uses Plain Engine.")
    library.follow()
    assert {e.name for one in library.communities() for e in one.entities} >= {"Secret Project"}
    library.store.delete(document_id_of("t", "l", "a"), "t")
    with sqlite3.connect(library.store.path) as db:
        dump = "\n".join(line for line in db.iterdump() if "graph_" in line)
    db.close()
    assert "secret" not in dump.lower()
    assert "open project" in dump.lower()
    assert library.near("Secret Project").seeds == ()
    names = {entity.name for one in library.communities() for entity in one.entities}
    assert names == {"Open Project", "Plain Engine"}


def test_a_changed_document_replaces_what_it_said(library: Library) -> None:
    library.put("a", "We know that Old Thing uses vLLM.")
    library.follow()
    library.put("a", "We know that New Thing uses vLLM.")
    assert library.near("Old Thing").seeds == ()
    assert library.follow() == 1
    assert [entity.name for entity in library.near("New Thing").seeds] == ["New Thing"]


def test_tenants_and_libraries_never_meet(library: Library) -> None:
    library.put("a", "We know that Shared Name uses Alpha Secret.", tenant="t", library="l")
    library.put("a", "We know that Shared Name uses Beta Secret.", tenant="u", library="l")
    library.put("a", "We know that Shared Name uses Gamma Thing.", tenant="t", library="m")
    library.follow()

    def around(**where: str) -> set[str]:
        return {entity.name for entity in library.near("Shared Name", **where).neighbours}

    assert around(tenant="t", library="l") == {"Alpha Secret"}
    assert around(tenant="t") == {"Alpha Secret", "Gamma Thing"}
    assert around(tenant="u") == {"Beta Secret"}
    assert around(tenant="v") == set()
    for tenant, name in (("t", "l"), ("u", "l"), ("t", "m")):
        entities = {e.name for one in library.communities(tenant=tenant, library=name) for e in one.entities}
        assert entities == {"Shared Name"} | around(tenant=tenant, library=name)


def test_communities_hold_what_belongs_together(tmp_path: Path) -> None:
    library = Library(tmp_path, clustering=Clustering(max_size=4))
    fruit = ["Apple Inn", "Pear Inn", "Plum Inn", "Cherry Inn"]
    stone = ["Granite Works", "Marble Works", "Basalt Works", "Slate Works"]
    for group in (fruit, stone):
        for number in range(6):
            left, right = group[number % 4], group[(number + 1 + number // 4) % 4]
            library.put(f"{group[0]}{number}", f"We know that {left} and {right} met.")
    library.follow()
    groups = [{entity.name for entity in one.entities} for one in library.communities()]
    assert sorted(map(sorted, groups)) == sorted(map(sorted, [set(fruit), set(stone)]))
    first = library.communities()[0]
    assert first.num_chunks == len(first.chunk_ids) == 6
    before = {one.community_id: one.digest for one in library.communities()}
    library.put("more", f"We know that {fruit[0]} and {fruit[2]} met.")
    library.follow()
    after = {one.community_id: one.digest for one in library.communities()}
    assert set(after) == set(before)
    assert sum(after[key] != before[key] for key in before) == 1
    library.store.close()


def test_large_communities_are_divided_level_by_level(tmp_path: Path) -> None:
    library = Library(tmp_path, clustering=Clustering(max_size=4))
    for number in range(40):
        library.put(f"d{number}", f"We know that Node{number} and Node{(number + 1) % 40} met.")
    library.follow()
    coarse, fine = library.communities(0), library.communities(9)
    assert max(len(one.entities) for one in coarse) > 4
    assert max(len(one.entities) for one in fine) <= 4
    assert sum(len(one.entities) for one in fine) == sum(len(one.entities) for one in coarse) == 40
    keys = {one.community_id: {entity.key for entity in one.entities} for one in coarse}
    for one in fine:
        if one.level == 1:
            assert one.parent_id is not None
            assert {entity.key for entity in one.entities} < keys[one.parent_id]
    library.store.close()


class Scripted:
    """An extractor that says what it is told to, or fails."""

    def __init__(self, name: str = "scripted") -> None:
        self.name = name
        self.failing = True
        self.down = False

    async def extract(self, texts: Sequence[str]) -> list[Extraction]:
        if self.down:
            raise ConnectionError("the model is gone")
        if self.failing:
            return [Extraction(failure="no line in a known form") for _ in texts]
        mentions = (Mention("A One", "name"), Mention("B Two", "name"))
        relations = (Relation("A One", "B Two", "knows"), Relation("A One", "C Three"))
        return [Extraction(mentions, relations, (Alias("X", "A One"),)) for _ in texts]


def test_failed_chunks_carry_their_cause_and_are_tried_again_on_request(tmp_path: Path) -> None:
    extractor = Scripted()
    library = Library(tmp_path, extractor)
    library.put("a", "text")
    assert library.follow() == 1
    assert library.follow() == 0
    assert asyncio.run(library.graph.stats()).num_failed == 1
    extractor.failing = False
    assert asyncio.run(library.graph.retry_failed()) == 1
    assert library.follow() == 1
    stats = asyncio.run(library.graph.stats())
    assert (stats.num_failed, stats.num_chunks, stats.num_entities, stats.num_relations) == (0, 1, 2, 1)
    library.store.close()


def test_chunks_wait_while_the_model_is_gone(tmp_path: Path) -> None:
    extractor = Scripted()
    extractor.down = True
    library = Library(tmp_path, extractor)
    library.put("a", "text")
    with pytest.raises(ConnectionError):
        library.follow()
    assert asyncio.run(library.graph.stats()).num_pending == 1
    library.store.close()


def test_another_extractor_makes_the_graph_anew(tmp_path: Path) -> None:
    library = Library(tmp_path)
    library.put("a", "We know that Alpha Thing uses vLLM.")
    library.follow()
    asyncio.run(library.graph.open())
    assert asyncio.run(library.graph.stats()).num_pending == 0
    other = GraphIndex(library.store.database, library.number, Scripted("other"))
    asyncio.run(other.open())
    stats = asyncio.run(other.stats())
    assert (stats.num_pending, stats.num_chunks, stats.extractor) == (1, 0, "other")
    library.store.close()


def test_a_graph_outlives_a_crash_between_batches(tmp_path: Path) -> None:
    library = Library(tmp_path)
    for number in range(5):
        library.put(f"d{number}", f"We know that Node{number} uses vLLM.")
    assert asyncio.run(library.graph.follow(max_chunks=2)) == 2
    library.store.close()
    again = Library(tmp_path)
    assert asyncio.run(again.graph.stats()).num_pending == 3
    assert again.follow() == 3
    again.store.close()


def test_dropping_the_version_drops_its_graph(tmp_path: Path) -> None:
    library = Library(tmp_path)
    library.put("a", "We know that Alpha Thing uses vLLM.")
    library.follow()
    other = library.store.make_version(VersionSpec("packaged", "other", 4, 180, 20, 2000))
    with library.store.database.write() as db:
        drop_tables(db, library.number)
        left = db.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'graph!_%' ESCAPE '!'").fetchall()
    assert left == []
    assert other.number != library.number
    library.store.close()


def test_a_graph_can_be_dropped_and_the_chunks_stay(tmp_path: Path) -> None:
    library = Library(tmp_path)
    document_id = library.put("a", "We know that Alpha Thing uses vLLM.")
    asyncio.run(library.graph.drop())
    library.put("a", "We know that Beta Thing uses vLLM.")
    assert library.store.document(document_id, "t").num_chunks == 1
    library.store.close()


def test_a_paused_graph_forgets_the_deleted_and_catches_up_when_it_follows_again(tmp_path: Path) -> None:
    library = Library(tmp_path)
    library.put("a", "We know that Alpha Thing uses vLLM.")
    library.put("b", "We know that Beta Thing uses vLLM.")
    library.follow()
    with library.store.database.write() as db:
        pause_graph(db, library.number)
    library.store.delete(document_id_of("t", "l", "a"), "t")
    library.put("c", "We know that Gamma Thing uses vLLM.")
    assert library.follow() == 0
    assert {entity.name for entity in library.near("vLLM").neighbours} == {"Beta Thing"}
    asyncio.run(library.graph.open())
    assert library.follow() == 1
    assert {entity.name for entity in library.near("vLLM").neighbours} == {"Beta Thing", "Gamma Thing"}
    library.store.close()


def test_entities_are_looked_up_by_name_part_and_use(library: Library) -> None:
    library.put(
        "a", "Retrieval-Augmented Generation (RAG) reads passages. We know that Ada Lovelace met vLLM."
    )
    library.put("b", "In practice RAG needs Ada Byron.")
    library.put("c", "We know that RAG and vLLM met.", library="m")
    library.follow()

    def found(name: str = "", **settings) -> list[str]:
        answer = asyncio.run(library.graph.entities(name, tenant="t", **settings))
        return [entity.key for entity in answer.entities]

    assert found("ada") == ["ada byron", "ada lovelace"]
    assert found("rag") == found("Retrieval augmented generation") == ["retrieval augmented generation"]
    assert found()[:2] == ["retrieval augmented generation", "vllm"]
    assert found(limit=1) == ["retrieval augmented generation"]
    assert found("rag", library="m") == ["rag"]
    assert found("nobody") == found("?!") == []


def test_neighbours_of_entities_given_whole(library: Library) -> None:
    library.put("a", "We know that Ada Lovelace and vLLM met. We know that BM25 and FAISS met.")
    library.follow()
    found = library.near("", entities=["ada lovelace", "No One"])
    assert [entity.key for entity in found.seeds] == ["ada lovelace"]
    assert [entity.key for entity in found.neighbours] == ["vllm"]
    both = library.near("what is BM25?", entities=["Ada Lovelace"])
    assert [entity.key for entity in both.seeds] == ["ada lovelace", "bm25"]
    assert library.near("") == library.near("nothing known")


def test_answers_tell_how_many_of_the_librarys_chunks_wait(library: Library) -> None:
    library.put("a", "We know that Ada Lovelace and vLLM met.")
    library.put("b", "We know that Ada Lovelace and vLLM met.", library="m")
    library.put("c", "We know that Ada Lovelace and vLLM met.", tenant="u")
    assert library.near("vLLM").num_pending == 2
    assert library.near("vLLM", library="m").num_pending == 1
    library.follow()
    assert library.near("vLLM").num_pending == 0
