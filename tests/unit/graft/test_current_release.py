"""The release follows the index, and a run keeps the one it began with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes_agents import MemoryRetriever, passage
from fakes_retrieval import HashEmbedder
from fakes_serving import ScriptedGenerator

from agents.events import RunFinished
from agents.pipeline import Pipeline
from graft import current_release
from graft.current_release import CurrentRelease, Unswitched
from graft.pinned_retriever import PinnedRetriever
from graft.releases import Release, ReleaseLedger
from retrieval.admin import VersionChange
from retrieval.config import RetrievalConfig
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.types import Embedder, Record, SearchRequest

PARTS = Unswitched("model", "tokenizer", "prompts", "config")


async def other_embedder(name: str) -> Embedder:
    return HashEmbedder(16)


@pytest.fixture(params=[1, 2])
async def retrieval(request: pytest.FixtureRequest, tmp_path: Path):
    config = RetrievalConfig(num_shards=request.param)
    opening = ShardedRetrieval.open(
        tmp_path / "index", config, HashEmbedder(32), load_embedder=other_embedder
    )
    async with await opening as opened:
        await opened.upsert([Record(f"r{number}", f"apple {number}") for number in range(4)])
        yield opened


async def built(retrieval: ShardedRetrieval, change: VersionChange) -> str:
    made = await retrieval.make_version(change)
    return (await retrieval.wait_version(made.version_id, timeout_s=60)).version_id


async def test_switch_to_another_embedder_makes_its_release_current(retrieval, tmp_path: Path) -> None:
    seen: list[Release] = []
    current = CurrentRelease(tmp_path / "releases", retrieval, PARTS, seen.append)
    ledger = ReleaseLedger(tmp_path / "releases")
    await current.refresh()
    await current.refresh()
    assert [release.embedder_hash for release in seen] == [(await HashEmbedder(32).info()).model_hash]
    retrieval.on_switch = current.catch_up
    second = await built(retrieval, VersionChange(embedder="another"))
    assert len(seen) == 1  # Built is not answering.
    await retrieval.switch(second)
    assert (seen[1].index_version, seen[1].embedder_hash) == (
        second, (await HashEmbedder(16).info()).model_hash,
    )  # fmt: skip
    assert ledger.current() == seen[1].id
    assert ledger.get(seen[1].id) == seen[1]
    await retrieval.rollback()
    assert ledger.current() == seen[2].id == seen[0].id


async def test_switch_that_nobody_tells_of_is_followed(
    retrieval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_release, "FOLLOW_S", 0.01)
    changed = asyncio.Event()
    current = CurrentRelease(tmp_path / "releases", retrieval, PARTS, lambda _: changed.set())
    await current.refresh()
    changed.clear()
    following = asyncio.create_task(current.follow())
    await retrieval.switch(await built(retrieval, VersionChange(vectors="int8")))
    await asyncio.wait_for(changed.wait(), 30)
    following.cancel()


async def test_run_keeps_the_release_and_the_version_of_its_admission() -> None:
    memory = MemoryRetriever([passage("The blue kettle weighs 912 grams.")], delay_s=0.05)
    pipeline = Pipeline(
        "rag", retriever=memory, generator=ScriptedGenerator("The blue kettle weighs 912 grams [1].")
    )
    pipeline.answer_as("r-before", PinnedRetriever(memory, "version-before"))
    under_way = pipeline.run("What does the blue kettle weigh?")
    pipeline.answer_as("r-after", PinnedRetriever(memory, "version-after"))
    results = [event.result async for event in under_way if isinstance(event, RunFinished)]
    assert [result.release for result in results] == ["r-before"]
    assert {request.version for request in memory.requests} == {"version-before"}
    memory.requests.clear()
    assert (await pipeline.invoke("What does the blue kettle weigh?")).release == "r-after"
    assert {request.version for request in memory.requests} == {"version-after"}


async def test_run_whose_version_is_dropped_asks_what_answers(retrieval) -> None:
    first = (await retrieval.versions())[0].version_id
    pinned = PinnedRetriever(retrieval, first)
    second = await built(retrieval, VersionChange(vectors="int8"))
    await retrieval.switch(second)
    (result,) = await pinned.search([SearchRequest("apple")])
    assert result.index_version == first
    await retrieval.drop_version(first)
    (result,) = await pinned.search([SearchRequest("apple")])
    assert (result.index_version, len(result.hits)) == (second, 4)
