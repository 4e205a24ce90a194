"""Index versions of a running retrieval: built beside, switched to under load, rolled back, never mixed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes_retrieval import HashEmbedder

from retrieval.admin import VersionChange
from retrieval.config import RetrievalConfig
from retrieval.errors import (
    IndexUnavailable,
    IngestTimeout,
    InvalidDocument,
    InvalidVector,
    InvalidVersion,
    UnknownVersion,
)
from retrieval.service import LocalRetrieval
from retrieval.types import DocumentState, Embedder, Record, SearchRequest
from retrieval.versions import VersionState

WAIT_S = 30.0
CONFIG = RetrievalConfig()
LONG = " ".join(f"word{number} apple" for number in range(300))


class GatedEmbedder(HashEmbedder):
    """Embeds passages only while its gate is open."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.gate = asyncio.Event()

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        await self.gate.wait()
        return await super().embed_passages(texts)


async def _add(retrieval: LocalRetrieval, name: str, text: str) -> str:
    document = await retrieval.add(name, text.encode())
    (document,) = await retrieval.wait_ready([document.document_id], timeout_s=WAIT_S)
    assert document.state is DocumentState.READY, document.error
    return document.document_id


async def _names(retrieval: LocalRetrieval, query: str, **asked) -> set[str]:
    (result,) = await retrieval.search([SearchRequest(query, k=100, **asked)])
    return {passage.document for passage in result.passages}


async def _state(retrieval: LocalRetrieval, version: str) -> VersionState:
    return next(one.state for one in await retrieval.versions() if one.version_id == version)


async def _active(retrieval: LocalRetrieval) -> str:
    return (await retrieval.versions())[0].version_id


async def _switched(retrieval: LocalRetrieval, before: str) -> str:
    async with asyncio.timeout(WAIT_S):
        while (now := await _active(retrieval)) == before:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.01)
    return now


async def test_changed_chunking_is_built_beside_and_switched_to_when_complete(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder()) as retrieval:
        document_id = await _add(retrieval, "long.txt", LONG)
        await retrieval.upsert([Record("r", "an apple", metadata={"year": 1990})])
        before = await _active(retrieval)
        num_chunks = (await retrieval.document(document_id)).num_chunks
    config = RetrievalConfig(chunk_tokens=60, chunk_overlap_tokens=10)
    embedder = GatedEmbedder(256)
    async with await LocalRetrieval.open(tmp_path, config, embedder) as retrieval:
        assert await _names(retrieval, "apple") == {"long.txt", "r"}  # The version before answers.
        assert await _active(retrieval) == before
        embedder.gate.set()
        after = await _switched(retrieval, before)
        assert await _state(retrieval, before) is VersionState.RETIRED
        assert (await retrieval.document(document_id)).num_chunks > num_chunks
        (result,) = await retrieval.search([SearchRequest("apple", k=3)])
        assert result.index_version == after
        assert await _names(retrieval, "apple") == {"long.txt", "r"}
        text = (await retrieval.text(document_id)).text
        assert all(
            passage.text == text[passage.start : passage.end]
            for passage in result.passages
            if passage.document == "long.txt"
        )


async def test_version_whose_embedder_is_gone_answers_by_words_until_the_switch(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder(128)) as retrieval:
        await _add(retrieval, "a.txt", "an apple a day")
        before = await _active(retrieval)
    embedder = GatedEmbedder(64)
    async with await LocalRetrieval.open(tmp_path, CONFIG, embedder) as retrieval:
        (result,) = await retrieval.search([SearchRequest("apple")])
        assert [passage.document for passage in result.passages] == ["a.txt"]
        assert result.index_version == before
        assert {stage.name: stage.skipped for stage in result.stages}["dense"]
        with pytest.raises(IndexUnavailable, match="search with mode='lexical'"):
            await retrieval.search([SearchRequest("apple", mode="dense")])
        with pytest.raises(IndexUnavailable, match="not loaded"):
            await retrieval.upsert([Record("r", "a pear")])
        waiting = await retrieval.add("b.txt", b"a banana")
        with pytest.raises(IngestTimeout, match="queued"):
            await retrieval.wait_ready([waiting.document_id], timeout_s=0.2)
        embedder.gate.set()
        await _switched(retrieval, before)
        (ready,) = await retrieval.wait_ready([waiting.document_id], timeout_s=WAIT_S)
        assert ready.state is DocumentState.READY
        assert await _names(retrieval, "apple banana") == {"a.txt", "b.txt"}
        assert await _names(retrieval, "apple", mode="dense") == {"a.txt", "b.txt"}


async def test_old_embedder_is_loaded_where_it_can_be(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder(128)) as retrieval:
        await _add(retrieval, "a.txt", "an apple a day")
        before = await _active(retrieval)
    embedder = GatedEmbedder(64)

    async def load(name: str) -> Embedder:
        assert name == CONFIG.embedder
        return HashEmbedder(128)

    async with await LocalRetrieval.open(tmp_path, CONFIG, embedder, load_embedder=load) as retrieval:
        (result,) = await retrieval.search([SearchRequest("apple", mode="dense")])
        assert result.index_version == before
        await _add(retrieval, "b.txt", "a banana")  # Ready in the old version at once.
        embedder.gate.set()
        await _switched(retrieval, before)
        assert await _names(retrieval, "apple", mode="dense") == {"a.txt", "b.txt"}


async def test_switch_under_load_fails_nothing_and_mixes_nothing(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder()) as retrieval:
        await retrieval.upsert([Record(f"r{number}", f"apple number{number}") for number in range(50)])
        before = await _active(retrieval)
        made = await retrieval.make_version(VersionChange(vectors="int8"))
        ready = await retrieval.wait_version(made.version_id, timeout_s=WAIT_S)
        assert (ready.state, ready.num_documents) == (VersionState.READY, 50)
        stop = asyncio.Event()
        written: list[str] = []
        seen: list[str] = []

        async def write() -> None:
            while not stop.is_set():
                name = f"w{len(written)}"
                await retrieval.upsert([Record(name, f"apple {name}")])
                written.append(name)
                await asyncio.sleep(0.002)

        async def search() -> None:
            while not stop.is_set():
                for result in await retrieval.search([SearchRequest("apple", k=5)] * 3):
                    seen.append(result.index_version)
                    assert len(result.hits) == 5

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            group.create_task(search())
            for version in (made.version_id, before, made.version_id):
                await asyncio.sleep(0.15)
                assert (await retrieval.switch(version)).state is VersionState.ACTIVE
            await asyncio.sleep(0.15)
            stop.set()
        assert set(seen) == {before, made.version_id}
        assert len(written) > 3
        held = [record.name async for page in retrieval.export() for record in page]
        assert sorted(held) == sorted([*written, *(f"r{number}" for number in range(50))])
        (result,) = await retrieval.search([SearchRequest(f"apple {written[-1]}", k=1)])
        assert result.passages[0].document == written[-1]
        assert result.index_version == made.version_id


async def test_switch_ends_though_a_record_comes_with_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder()) as retrieval:
        await retrieval.upsert([Record("r", "apple")])
        before = await _active(retrieval)
        made = await retrieval.make_version(VersionChange(vectors="int8"))
        await retrieval.wait_version(made.version_id, timeout_s=WAIT_S)
        store, loop, written = retrieval.store, asyncio.get_running_loop(), []
        look = store.lacking

        async def write() -> None:
            written.append(f"w{len(written)}")
            await retrieval.upsert([Record(written[-1], "apple")])

        def write_then_look(*asked) -> list[str]:
            writing = asyncio.run_coroutine_threadsafe(write(), loop)
            with contextlib.suppress(TimeoutError):  # Held back by the switch.
                writing.result(0.2)
            return look(*asked)

        monkeypatch.setattr(store, "lacking", write_then_look)
        async with asyncio.timeout(WAIT_S):
            assert (await retrieval.switch(made.version_id)).state is VersionState.ACTIVE
        monkeypatch.undo()
        async with asyncio.timeout(WAIT_S):
            while len(await _names(retrieval, "apple")) < 1 + len(written):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.01)
        assert written
        assert await _names(retrieval, "apple") == {"r", *written}
        assert await _state(retrieval, before) is VersionState.RETIRED


async def test_versions_are_searched_by_id_and_alias(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder()) as retrieval:
        await _add(retrieval, "a.txt", "an apple")
        made = await retrieval.make_version(VersionChange(dim=64, vectors="float16"))
        await retrieval.wait_version(made.version_id, timeout_s=WAIT_S)
        await retrieval.set_alias("small", made.version_id)
        for version in ("small", made.version_id):
            (result,) = await retrieval.search([SearchRequest("apple", version=version)])
            assert result.index_version == made.version_id
            assert len(result.hits) == 1
        with pytest.raises(UnknownVersion, match="'nope'"):
            await retrieval.search([SearchRequest("apple", version="nope")])
        with pytest.raises(InvalidVersion, match="alias 'small'"):
            await retrieval.drop_version("small")
        await retrieval.set_alias("small", None)
        await retrieval.drop_version(made.version_id)
        assert len(await retrieval.versions()) == 1


async def test_version_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    async def load(name: str) -> Embedder:
        raise OSError(f"no model at {name}")

    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder(), load_embedder=load) as retrieval:
        for change, says in (
            (VersionChange(embedder="/nowhere"), "cannot be loaded .no model at /nowhere"),
            (VersionChange(dim=1000), "from 0 .all. to the embedder's 256"),
            (VersionChange(chunk_tokens=1000), "do not fit the 256"),
            (VersionChange(chunk_overlap_tokens=170), "half of chunk_tokens"),
        ):
            with pytest.raises(InvalidVersion, match=says):
                await retrieval.make_version(change)
        assert len(await retrieval.versions()) == 1


async def test_retired_version_is_caught_up_before_it_answers(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder()) as retrieval:
        await _add(retrieval, "a.txt", "an apple")
        before = await _active(retrieval)
        made = await retrieval.make_version(VersionChange(chunk_tokens=90))
        await retrieval.wait_version(made.version_id, timeout_s=WAIT_S)
        await retrieval.switch(made.version_id)
        await _add(retrieval, "b.txt", "a banana")
        await retrieval.switch(before)
        assert await _names(retrieval, "apple banana") == {"a.txt", "b.txt"}
        assert (await retrieval.search([SearchRequest("apple")]))[0].index_version == before


async def test_new_embedder_is_a_version_of_its_own(tmp_path: Path) -> None:
    async def load(name: str) -> Embedder:
        return HashEmbedder(32)

    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder(), load_embedder=load) as retrieval:
        await _add(retrieval, "a.txt", "an apple")
        made = await retrieval.make_version(VersionChange(embedder=CONFIG.embedder))
        assert made.spec.model_dim == 32
        await retrieval.wait_version(made.version_id, timeout_s=WAIT_S)
        await retrieval.switch(made.version_id)
        await _add(retrieval, "b.txt", "a banana")
        for mode in ("dense", "hybrid", "lexical"):
            assert "a.txt" in await _names(retrieval, "apple", mode=mode)


async def test_token_codes_are_kept_where_the_version_keeps_them(tmp_path: Path) -> None:
    config = RetrievalConfig(token_codec="int8")
    async with await LocalRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
        await _add(retrieval, "a.txt", "an apple a day")
        await retrieval.upsert([Record("r", "a pear", vector=[1.0] + [0.0] * 255)])
        (result,) = await retrieval.search([SearchRequest("apple day", rerank="maxsim")])
        assert result.passages[0].document == "a.txt"
        assert result.hits[0].rerank_score is not None


async def test_progress_and_export(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder()) as retrieval:
        assert (await retrieval.progress()).remaining_s == 0.0
        await _add(retrieval, "long.txt", LONG)
        bad = await retrieval.add("bad.txt", b"  ")
        await retrieval.wait_ready([bad.document_id], timeout_s=WAIT_S)
        await retrieval.upsert([Record("r", "an apple", metadata={"tags": ("x", "y")})])
        progress = await retrieval.progress(library="default")
        assert (progress.num_documents, progress.num_ready, progress.num_failed) == (3, 2, 1)
        assert (progress.num_under_way, progress.remaining_s) == (0, 0.0)
        assert progress.chunks_per_s is not None
        pages = [page async for page in retrieval.export(batch=2)]
        records = [record for page in pages for record in page]
        assert all(len(page) <= 2 for page in pages)
        assert records[-1].metadata == {"tags": ("x", "y")}
        assert [record.name for record in records] == [
            *(f"long.txt#{number}" for number in range(len(records) - 1)), "r",
        ]  # fmt: skip
        again = await retrieval.upsert(records, library="copy")
        assert again.count == len(records)
        assert len(await retrieval.documents(library="copy")) == len(records)
        assert [page async for page in retrieval.export(tenant="nobody")] == []


async def test_snapshot_is_a_whole_index_elsewhere(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path / "one", CONFIG, HashEmbedder()) as retrieval:
        await _add(retrieval, "a.txt", "an apple")
        info = await retrieval.snapshot(tmp_path / "copy")
        assert info.num_bytes > 0
        assert info.seqs == {"shard-0": retrieval._store.seq()}
        with pytest.raises(InvalidDocument, match="holds something"):
            await retrieval.snapshot(tmp_path / "copy")
        await retrieval.compact()
        assert [report.version_id for report in await retrieval.segments()] == [await _active(retrieval)]
        assert 0.0 <= (await retrieval.estimate_recall(10)).recall <= 1.0


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (Record("a", "x" * 100_001), "above max_record_chars=100,000"),
        (Record("a", "fine", vector=[1.0, 2.0]), "takes vectors of 256 numbers"),
        (Record("a", "fine", vector=[float("nan")] * 256), "NaN or infinity"),
        (Record("a", " "), "no text"),
    ],
)
async def test_bad_record_is_refused_and_nothing_is_stored(tmp_path: Path, record: Record, says: str) -> None:
    async with await LocalRetrieval.open(tmp_path, CONFIG, HashEmbedder()) as retrieval:
        with pytest.raises((InvalidDocument, InvalidVector), match=says):
            await retrieval.upsert([Record("good", "text"), record])
        assert await retrieval.documents() == []
        assert (await retrieval.upsert([])).count == 0


async def test_record_with_its_own_vector_does_not_wait_for_the_embedder(tmp_path: Path) -> None:
    embedder = GatedEmbedder(256)
    async with await LocalRetrieval.open(
        tmp_path, RetrievalConfig(token_codec="sign"), embedder
    ) as retrieval:
        given = Record("given", "a pear", vector=[1.0] + [0.0] * 255)
        await asyncio.wait_for(retrieval.upsert([given]), WAIT_S)
        embedder.gate.set()
        await retrieval.upsert([Record("made", "a ripe pear"), given])
        (result,) = await retrieval.search([SearchRequest("pear", rerank="maxsim")])
        assert {passage.document for passage in result.passages} == {"given", "made"}
        made = await retrieval.make_version(VersionChange(vectors="int8"))
        await retrieval.wait_version(made.version_id, timeout_s=WAIT_S)
        assert await _names(retrieval, "pear", version=made.version_id) == {"given", "made"}
