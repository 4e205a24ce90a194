"""The graph follows ingest, update, delete and switches by itself, also after it was off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes_retrieval import HashEmbedder

from retrieval.admin import VersionChange
from retrieval.config import RetrievalConfig
from retrieval.errors import GraphDisabled, InvalidVersion, TextModelRefused, TextModelUnavailable
from retrieval.service import LocalRetrieval
from retrieval.types import Record

ADA = "We know that Ada Lovelace met Charles Babbage."


class Model:
    """A language model that lists one entity, unless it is down or refuses."""

    name = "tiny"

    def __init__(self) -> None:
        self.down = False
        self.refuses = False
        self.num_prompts = 0

    async def complete(self, prompt: str, max_tokens: int) -> str:
        self.num_prompts += 1
        if self.down:
            raise TextModelUnavailable("the model is not up")
        if self.refuses:
            raise TextModelRefused("the prompt has 9,000 tokens, the window is 4,096")
        return "entity | Ada Lovelace | nothing the text says"


async def opened(folder: Path, graph: str, model: Model | None = None) -> LocalRetrieval:
    config = RetrievalConfig(graph=graph)  # pyright: ignore[reportArgumentType]
    return await LocalRetrieval.open(folder, config, HashEmbedder(), text_model=model)


async def taken_up(retrieval: LocalRetrieval) -> None:
    async with asyncio.timeout(20):
        while (await retrieval.graph.stats()).num_pending:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.02)


async def names(retrieval: LocalRetrieval, name: str = "") -> set[str]:
    return {entity.name for entity in (await retrieval.graph.entities(name)).entities}


async def test_files_records_updates_and_deletes_are_followed(tmp_path: Path) -> None:
    async with await opened(tmp_path, "rules") as retrieval:
        await retrieval.upsert([Record("r", ADA)])
        file = await retrieval.add("f.txt", b"We know that Grace Hopper met Alan Turing.")
        await retrieval.wait_ready([file.document_id], timeout_s=20)
        await taken_up(retrieval)
        assert await names(retrieval) == {"Ada Lovelace", "Charles Babbage", "Grace Hopper", "Alan Turing"}
        await retrieval.upsert([Record("r", "We know that Ada Lovelace met Mary Somerville.")])
        assert "Charles Babbage" not in await names(retrieval)
        await taken_up(retrieval)
        assert "Mary Somerville" in await names(retrieval)
        await retrieval.delete(file.document_id)
        assert await names(retrieval) == {"Ada Lovelace", "Mary Somerville"}


async def test_turned_on_it_takes_up_what_is_here_and_turned_off_it_costs_and_answers_nothing(
    tmp_path: Path,
) -> None:
    async with await opened(tmp_path, "none") as retrieval:
        await retrieval.upsert([Record("r", ADA)])
        with pytest.raises(GraphDisabled, match=r"retrieval\.graph.*\"rules\""):
            await retrieval.graph.entities()
        with pytest.raises(GraphDisabled):
            await retrieval.graph.communities()
        assert (await retrieval.graph.stats()).source == "none"
    async with await opened(tmp_path, "rules") as retrieval:
        assert (await retrieval.graph.neighbourhood("Ada Lovelace")).num_pending in (0, 1)
        await taken_up(retrieval)
        assert "Ada Lovelace" in await names(retrieval)
        with pytest.raises(InvalidVersion, match="a graph is kept"):
            await retrieval.graph.drop()
    async with await opened(tmp_path, "none") as retrieval:
        await retrieval.upsert([Record("s", "We know that Grace Hopper met Alan Turing.")])
        with retrieval.store.database.read() as db:
            assert db.execute("SELECT count(*) FROM graph_pending_1").fetchone()[0] == 0
        (document,) = [one for one in await retrieval.documents() if one.name == "r"]
        await retrieval.delete(document.document_id)
    async with await opened(tmp_path, "rules") as retrieval:
        await taken_up(retrieval)
        assert await names(retrieval) == {"Grace Hopper", "Alan Turing"}
    async with await opened(tmp_path, "none") as retrieval:
        await retrieval.graph.drop()
        with retrieval.store.database.read() as db:
            left = db.execute("SELECT name FROM sqlite_schema WHERE name LIKE 'graph!_%' ESCAPE '!'")
            assert left.fetchall() == []


async def test_after_a_switch_the_graph_is_the_new_versions(tmp_path: Path) -> None:
    async with await opened(tmp_path, "rules") as retrieval:
        await retrieval.upsert([Record("r", ADA)])
        await taken_up(retrieval)
        made = await retrieval.make_version(VersionChange(vectors="int8"))
        await retrieval.wait_version(made.version_id, timeout_s=20)
        await retrieval.switch(made.version_id)
        await retrieval.upsert([Record("s", "We know that Grace Hopper met Alan Turing.")])
        await taken_up(retrieval)
        assert {"Ada Lovelace", "Grace Hopper"} <= await names(retrieval)
        await asyncio.sleep(0.5)  # The follower notices the switch by itself, too.
        with retrieval.store.database.read() as db:
            triggers = db.execute(
                "SELECT name FROM sqlite_schema WHERE name LIKE 'graph!_added!_%' ESCAPE '!'"
            )
            number = retrieval.store.version().number
            assert [row[0] for row in triggers] == [f"graph_added_{number}"]


async def test_chunks_wait_for_a_model_that_is_down_and_fail_where_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.ingestion.graph_follower._RETRY_S", 0.05)
    model = Model()
    model.down = True
    async with await opened(tmp_path, "llm", model) as retrieval:
        await retrieval.upsert([Record("r", ADA)])
        async with asyncio.timeout(20):
            while model.num_prompts < 2:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.02)
        assert (await retrieval.graph.stats()).num_pending == 1
        model.down = False
        await taken_up(retrieval)
        assert await names(retrieval) == {"Ada Lovelace"}
        model.refuses = True
        await retrieval.upsert([Record("s", ADA)])
        await taken_up(retrieval)
        stats = await retrieval.graph.stats()
        assert (stats.num_failed, stats.source, stats.extractor) == (1, "llm", "llm-1-tiny")
        assert "9,000 tokens" in (stats.failure or "")
        model.refuses = False
        assert await retrieval.graph.retry_failed() == 1
        await taken_up(retrieval)
        assert (await retrieval.graph.entities("ada")).entities[0].num_chunks == 2


async def test_a_language_model_that_was_not_given_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"graph is 'llm'.*text_model"):
        await opened(tmp_path, "llm")
    with pytest.raises(ValueError, match="graph must be one of none, rules, llm"):
        RetrievalConfig(graph="yes")  # pyright: ignore[reportArgumentType]
