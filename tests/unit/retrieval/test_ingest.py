"""Ingestion: hostile files, crashes, deletes and replacements meanwhile, an embedder that is away."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes_retrieval import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, IngestTimeout, UnknownDocument, UnreadableDocument
from retrieval.extraction.reading import ReadingProcess
from retrieval.ingestion import embedding_work, ingest
from retrieval.ingestion.ingest_progress import Pace
from retrieval.service import LocalRetrieval
from retrieval.truth.documents import Work
from retrieval.types import Document, DocumentState, SearchRequest

WAIT_S = 30.0


class GatedEmbedder(HashEmbedder):
    """Embeds passages only while its gate is open, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.failures: list[Exception] = []
        self.value = 1.0

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        self.entered.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        return await super().embed_passages(texts) * self.value


@pytest.fixture
async def embedder() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture
async def retrieval(tmp_path: Path, embedder: GatedEmbedder) -> AsyncIterator[LocalRetrieval]:
    config = RetrievalConfig(read_timeout_s=20)
    async with await LocalRetrieval.open(tmp_path, config, embedder) as opened:
        yield opened


async def _settle(retrieval: LocalRetrieval, document: Document) -> Document:
    return (await retrieval.wait_ready([document.document_id], timeout_s=WAIT_S))[0]


async def _texts(retrieval: LocalRetrieval, query: str) -> set[str]:
    (result,) = await retrieval.search([SearchRequest(query, k=100)])
    return {passage.text for passage in result.passages}


async def test_bad_files_fail_by_name_and_the_next_one_still_works(retrieval: LocalRetrieval) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(50_000_000))
    bad = {
        "torn.pdf": b"%PDF-1.7\n1 0 obj",
        "thing.bin": b"\x7fELF" + bytes(64),
        "blank.txt": b"   \n",
        "bomb.docx": bomb.getvalue(),
    }
    added = [await retrieval.add(name, data) for name, data in bad.items()]
    good = await retrieval.add("good.md", b"# Fine\n\nwords to find")
    settled = await retrieval.wait_ready([one.document_id for one in (*added, good)], timeout_s=WAIT_S)
    for document in settled[:-1]:
        assert document.state is DocumentState.FAILED
        assert document.error is not None
        assert document.name in document.error
        with pytest.raises(UnknownDocument, match="no text yet"):
            await retrieval.text(document.document_id)
    assert settled[-1].state is DocumentState.READY
    assert await _texts(retrieval, "find") == {"# Fine\n\nwords to find"}


async def test_old_version_answers_while_the_new_is_embedded(
    retrieval: LocalRetrieval, embedder: GatedEmbedder
) -> None:
    await _settle(retrieval, await retrieval.add("a.txt", b"old apple"))
    embedder.gate.clear()
    embedder.entered.clear()
    document = await retrieval.add("a.txt", b"new banana")
    await asyncio.wait_for(embedder.entered.wait(), WAIT_S)
    assert (await retrieval.document(document.document_id)).state is DocumentState.EMBEDDING
    assert await _texts(retrieval, "apple banana") == {"old apple"}
    with pytest.raises(IngestTimeout, match=r"under way after 0\.1 s: 'a\.txt' \(embedding\)"):
        await retrieval.wait_ready([document.document_id], timeout_s=0.1)
    embedder.gate.set()
    await _settle(retrieval, document)
    assert await _texts(retrieval, "apple banana") == {"new banana"}


async def test_document_deleted_while_embedded_never_appears(
    retrieval: LocalRetrieval, embedder: GatedEmbedder
) -> None:
    embedder.gate.clear()
    document = await retrieval.add("a.txt", b"apple")
    await asyncio.wait_for(embedder.entered.wait(), WAIT_S)
    await retrieval.delete(document.document_id)
    embedder.gate.set()
    await _settle(retrieval, await retrieval.add("b.txt", b"pear"))
    assert await _texts(retrieval, "apple pear") == {"pear"}


async def test_embedder_that_is_away_sends_the_document_back_to_the_queue(
    retrieval: LocalRetrieval, embedder: GatedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_RETRY_S", 0.01)
    embedder.failures = [IndexUnavailable("the embedder is away")] * 3
    document = await _settle(retrieval, await retrieval.add("a.txt", b"apple"))
    assert (document.state, document.error) == (DocumentState.READY, None)


async def test_document_sent_back_after_the_queue_was_found_empty_is_taken_again(
    retrieval: LocalRetrieval, embedder: GatedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_RETRY_S", 0.01)
    asked: list[Work | None] = []
    claim = retrieval._store.claim

    def recorded_claim() -> Work | None:
        asked.append(claim())
        return asked[-1]

    monkeypatch.setattr(retrieval._store, "claim", recorded_claim)
    embedder.failures = [IndexUnavailable("the embedder is away")]
    embedder.gate.clear()
    document = await retrieval.add("a.txt", b"apple")
    await asyncio.wait_for(embedder.entered.wait(), WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while asked[-1] is not None or len(asked) < 3:  # noqa: ASYNC110 - it has no event to wait for
            await asyncio.sleep(0.01)
    embedder.gate.set()
    assert (await _settle(retrieval, document)).state is DocumentState.READY


async def test_a_bug_fails_one_document_and_is_logged_once(
    retrieval: LocalRetrieval, embedder: GatedEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    embedder.failures = [ZeroDivisionError("a bug")]
    document = await _settle(retrieval, await retrieval.add("a.txt", b"apple"))
    assert document.state is DocumentState.FAILED
    assert "ZeroDivisionError: a bug" in (document.error or "")
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert (await _settle(retrieval, await retrieval.add("b.txt", b"pear"))).state is DocumentState.READY


async def test_vectors_that_are_not_numbers_fail_the_document(
    retrieval: LocalRetrieval, embedder: GatedEmbedder
) -> None:
    embedder.value = float("nan")
    document = await _settle(retrieval, await retrieval.add("a.txt", b"apple"))
    assert "not numbers" in (document.error or "")


async def test_crashed_reader_fails_its_document_and_is_replaced(retrieval: LocalRetrieval) -> None:
    reading = retrieval._ingestor._reading
    reading.start()
    assert reading.pid is not None
    os.kill(reading.pid, signal.SIGSTOP)  # Holds the next request until it is killed.
    document = await retrieval.add("a.txt", b"apple")
    with pytest.raises(IngestTimeout, match="reading"):
        await retrieval.wait_ready([document.document_id], timeout_s=0.3)
    os.kill(reading.pid, signal.SIGKILL)
    failed = await _settle(retrieval, document)
    assert failed.state is DocumentState.FAILED
    assert "crashed its reader (SIGKILL)" in (failed.error or "")
    assert (await _settle(retrieval, await retrieval.add("a.txt", b"apple"))).state is DocumentState.READY


async def test_reader_that_hangs_is_killed_in_time(tmp_path: Path) -> None:
    config = RetrievalConfig(read_timeout_s=0.5)
    async with await LocalRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
        reading = retrieval._ingestor._reading
        reading.start()
        assert reading.pid is not None
        os.kill(reading.pid, signal.SIGSTOP)
        failed = await _settle(retrieval, await retrieval.add("a.txt", b"apple"))
        assert "took longer than read_timeout_s=0.5" in (failed.error or "")


@pytest.mark.parametrize("num_bytes", [60_000_000, 120_000_000])
def test_reader_out_of_memory_names_the_limit_and_is_replaced(num_bytes: int) -> None:
    config = RetrievalConfig(read_memory_bytes=128 * 1024 * 1024)
    reading = ReadingProcess(config)
    with pytest.raises(UnreadableDocument, match="needs more than read_memory_bytes=134,217,728"):
        reading.read("wide.txt", b"x" * num_bytes)
    assert reading.read("a.txt", b"apple")[1].text == "apple"
    reading.close()


async def test_too_many_chunks_are_refused_by_the_limit(tmp_path: Path) -> None:
    config = RetrievalConfig(max_document_chunks=2)
    async with await LocalRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
        failed = await _settle(retrieval, await retrieval.add("a.txt", b"apple pear. " * 500))
        assert "above max_document_chunks=2" in (failed.error or "")


async def test_closing_leaves_no_reader_behind(tmp_path: Path) -> None:
    async with await LocalRetrieval.open(tmp_path, RetrievalConfig(), HashEmbedder()) as retrieval:
        await _settle(retrieval, await retrieval.add("a.txt", b"apple"))
        pid = retrieval._ingestor._reading.pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_queue_is_resumed_after_reopening(tmp_path: Path) -> None:
    embedder = GatedEmbedder()
    embedder.gate.clear()
    async with await LocalRetrieval.open(tmp_path, RetrievalConfig(), embedder) as retrieval:
        document = await retrieval.add("a.txt", b"apple")
        await asyncio.wait_for(embedder.entered.wait(), WAIT_S)
    async with await LocalRetrieval.open(tmp_path, RetrievalConfig(), HashEmbedder()) as retrieval:
        assert (await _settle(retrieval, document)).state is DocumentState.READY


async def test_chunks_the_embedder_would_cut_are_refused_at_opening(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chunk_tokens=180 and 2 special tokens do not fit the 128"):
        await LocalRetrieval.open(tmp_path, RetrievalConfig(), HashEmbedder(max_tokens=128))


async def test_queued_documents_are_embedded_together(
    retrieval: LocalRetrieval, embedder: GatedEmbedder
) -> None:
    embedder.gate.clear()
    first = await retrieval.add("first.txt", b"fig")
    await asyncio.wait_for(embedder.entered.wait(), WAIT_S)
    names = [f"{number}.txt" for number in range(20)]
    added = [await retrieval.add(name, f"apple of {name}".encode()) for name in names]
    blank = await retrieval.add("blank.txt", b" ")
    calls = embedder.passage_calls
    embedder.gate.set()
    settled = await retrieval.wait_ready(
        [document.document_id for document in (first, *added, blank)], timeout_s=WAIT_S
    )
    assert [document.state for document in settled] == [DocumentState.READY] * 21 + [DocumentState.FAILED]
    assert embedder.passage_calls - calls < 10


async def test_one_document_that_cannot_be_embedded_fails_alone(
    retrieval: LocalRetrieval, embedder: GatedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def embed(texts: Sequence[str]) -> np.ndarray:
        await embedder.gate.wait()
        if any("poison" in text for text in texts):
            raise ZeroDivisionError("poisoned")
        return await HashEmbedder().embed_passages(texts)

    monkeypatch.setattr(embedder, "embed_passages", embed)
    embedder.gate.clear()
    texts = ["one", "two", "poison", "four", "five"]
    added = [await retrieval.add(f"{text}.txt", text.encode()) for text in texts]
    await asyncio.sleep(0.3)  # All are read by now.
    embedder.gate.set()
    settled = await retrieval.wait_ready([document.document_id for document in added], timeout_s=WAIT_S)
    failed = [document for document in settled if document.state is DocumentState.FAILED]
    assert [document.name for document in failed] == ["poison.txt"]
    assert "ZeroDivisionError: poisoned" in (failed[0].error or "")


async def test_share_of_a_document_grows_while_it_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_work, "SLICE_CHUNKS", 2)
    steps, asked = asyncio.Semaphore(0), asyncio.Semaphore(0)

    class SteppedEmbedder(HashEmbedder):
        async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
            asked.release()
            await steps.acquire()
            return await super().embed_passages(texts)

    config = RetrievalConfig(chunk_tokens=16, chunk_overlap_tokens=0)
    async with await LocalRetrieval.open(tmp_path, config, SteppedEmbedder()) as retrieval:
        long = await retrieval.add("long.txt", " ".join(f"word{n}" for n in range(60)).encode())
        await asked.acquire()
        seen = [(await retrieval.document(long.document_id)).share]
        steps.release()
        await asked.acquire()
        seen += [document.share for document in await retrieval.documents()]
        for _ in range(9):
            steps.release()
        ready = await _settle(retrieval, long)
        assert ready.num_chunks > 2
        assert seen == [0.0, 2 / ready.num_chunks]
        assert (await retrieval.document(long.document_id)).share is None


def test_share_counts_the_documents_embedded_before() -> None:
    works = [Work(name, "", name, b"") for name in ("a", "b", "c")]
    pace = Pace()
    with pace.group(works, [4, 2, 0]):
        assert [pace.share_of(name) for name in ("a", "b", "d")] == [0.0, 0.0, None]
        pace.embedding(5, 6)
        assert [pace.share_of(name) for name in ("a", "b", "c")] == [1.0, 0.5, 0.0]
        pace.embedding(1, 2)  # "b" again, alone.
        assert pace.share_of("b") is None
    assert pace.share_of("a") is None
