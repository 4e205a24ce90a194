"""Many files through Ray Data: states as by single adds, once, in bounded memory, on two shards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from retrieval.actor import ActorRetrieval
from retrieval.config import RetrievalConfig
from retrieval.ingestion.bulk import BulkProgress, BulkResult, SourceFile
from retrieval.ingestion.bulk_ingest import bulk_ingest, bulk_version
from retrieval.types import DocumentState, Metadata, SearchRequest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    # Ray 2.60's DataContext warns of its own deprecated fields when it is made.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    pytest.mark.filterwarnings("ignore:`target_shuffle_max_block_size` is deprecated:UserWarning"),
]
NAMESPACE = "bulk-ingest"
MIB = 2**20
CONFIG = RetrievalConfig(num_shards=2, bulk_memory_bytes=32 * MIB)


@pytest.fixture(scope="module")
def started(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorRetrieval]:
    folder = tmp_path_factory.mktemp("bulk")
    retrieval = ActorRetrieval.start(folder, CONFIG, namespace=NAMESPACE, num_threads=1)
    yield retrieval
    for handle in (*retrieval._actors.handles.values(), *retrieval.embedders):
        ray.kill(handle, no_restart=True)


@pytest.fixture
async def retrieval(started: ActorRetrieval) -> AsyncIterator[ActorRetrieval]:
    client = ActorRetrieval(
        started._root, CONFIG, started._actors, started.placement, started.embedders, NAMESPACE, {}
    )
    await client.ready()
    yield client
    await client._stop_searching()


async def ingest(
    retrieval: ActorRetrieval,
    folder: Path,
    library: str,
    seen: list[BulkProgress] | None = None,
    metadata: Metadata | None = None,
) -> BulkResult:
    paths = await asyncio.to_thread(lambda: sorted(folder.rglob("*.*")))
    files = [SourceFile(path.relative_to(folder).as_posix(), path) for path in paths]
    version = await bulk_version(retrieval, CONFIG)
    assert version is not None
    return await bulk_ingest(
        retrieval,
        CONFIG,
        version,
        files,
        library=library,
        metadata=metadata,
        on_progress=None if seen is None else seen.append,
    )


def written(folder: Path, count: int) -> None:
    (folder / "sub").mkdir(parents=True)
    for number in range(count):
        text = f"Report {number}: the harvest of plot {number * 7} was good."
        (folder / "sub" / f"{number}.txt").write_text(text, encoding="utf-8")


async def test_a_folder_is_ready_failed_or_refused_as_by_single_adds(
    retrieval: ActorRetrieval, tmp_path: Path
) -> None:
    written(tmp_path, 40)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 nothing more")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "two\nlines.txt").write_text("Not with this name.", encoding="utf-8")
    seen: list[BulkProgress] = []
    result = await ingest(retrieval, tmp_path, "mixed", seen, {"year": 1901})
    assert {refused.name for refused in result.refused} == {"empty.txt", "two\nlines.txt"}
    documents = await retrieval.wait_ready(result.document_ids, timeout_s=0)
    states = {document.name: document.state for document in documents}
    assert states.pop("broken.pdf") is DocumentState.FAILED
    assert set(states) == {f"sub/{number}.txt" for number in range(40)}
    assert set(states.values()) == {DocumentState.READY}
    last = seen[-1]
    assert (last.files_done, last.num_files) == (43, 43)
    assert (last.num_ready, last.num_failed, last.num_refused, last.num_chunks) == (40, 1, 2, 40)
    assert last.remaining_s == 0.0
    told = {failure.name: failure.cause for progress in seen for failure in progress.failures}
    assert set(told) == {"broken.pdf", "empty.txt", "two\nlines.txt"}
    assert "0 bytes" in told["empty.txt"]
    single = await retrieval.add("broken.pdf", b"%PDF-1.7 nothing more", library="single")
    (alone,) = await retrieval.wait_ready([single.document_id], timeout_s=60)
    (failed,) = [document for document in documents if document.name == "broken.pdf"]
    assert failed.error == alone.error
    (found,) = await retrieval.search([SearchRequest("harvest of plot 84", k=1, library="mixed")])
    assert found.passages[0].document == "sub/12.txt"
    assert dict(documents[0].metadata) == {"year": 1901}


async def test_what_is_ready_is_left_alone_and_what_changed_is_replaced(
    retrieval: ActorRetrieval, tmp_path: Path
) -> None:
    written(tmp_path, 20)
    first = await ingest(retrieval, tmp_path, "again")
    before = {one.document_id: one for one in await retrieval.documents(library="again")}
    (tmp_path / "sub" / "3.txt").write_text("Now about bees.", encoding="utf-8")
    second = await ingest(retrieval, tmp_path, "again")
    after = {one.document_id: one for one in await retrieval.documents(library="again")}
    assert set(first.document_ids) == set(second.document_ids) == set(before) == set(after)
    assert [one.name for key, one in after.items() if one != before[key]] == ["sub/3.txt"]
    described = await ingest(retrieval, tmp_path, "again", metadata={"lang": "en"})
    documents = await retrieval.wait_ready(described.document_ids, timeout_s=0)
    assert all(dict(document.metadata) == {"lang": "en"} for document in documents)
    assert {document.state for document in documents} == {DocumentState.READY}


def padded(folder: Path, count: int, num_bytes: int) -> None:
    filler = f"<!-- {'x' * num_bytes} -->"
    for number in range(count):
        page = f"<html><body><p>Page {number} on topic {number}.</p>{filler}</body></html>"
        (folder / f"{number}.html").write_text(page, encoding="utf-8")


class Stopped(Exception):
    pass


async def test_one_that_was_stopped_half_way_is_completed_by_the_next(
    retrieval: ActorRetrieval, tmp_path: Path
) -> None:
    padded(tmp_path, 60, MIB)

    class StopAtOnce(list[BulkProgress]):
        def append(self, progress: BulkProgress) -> None:
            raise Stopped

    with pytest.raises(Stopped):
        await ingest(retrieval, tmp_path, "stopped", StopAtOnce())
    held = {one.document_id: one for one in await retrieval.documents(library="stopped")}
    assert 0 < len(held) < 60
    assert {document.state for document in held.values()} == {DocumentState.READY}
    result = await ingest(retrieval, tmp_path, "stopped")
    documents = {one.document_id: one for one in await retrieval.documents(library="stopped")}
    assert set(result.document_ids) == set(documents)
    assert len(documents) == 60
    assert {document.state for document in documents.values()} == {DocumentState.READY}
    assert {key: documents[key] for key in held} == held


async def test_a_folder_larger_than_its_memory_does_not_grow_the_heap(
    retrieval: ActorRetrieval, tmp_path: Path
) -> None:
    padded(tmp_path, 300, MIB)
    me, done, peaks = psutil.Process(), threading.Event(), [0]

    def heap() -> int:
        memory = me.memory_info()
        return memory.rss - memory.shared  # What is mapped of the object store is not the heap's.

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(heap())

    before = heap()
    watching = asyncio.create_task(asyncio.to_thread(watch))
    try:
        result = await ingest(retrieval, tmp_path, "large")
    finally:
        done.set()
        await watching
    documents = await retrieval.wait_ready(result.document_ids, timeout_s=0)
    assert len(documents) == 300
    assert {document.state for document in documents} == {DocumentState.READY}
    assert sum(document.num_bytes for document in documents) > 300 * MIB
    assert max(peaks) - before < 96 * MIB
