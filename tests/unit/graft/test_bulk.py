"""Which way files take into a platform, what is told meanwhile, and what is said of those that are none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graft.backend import Ingested
from graft.bulk import ingest_sources, unreadable
from graft.errors import NotInPlace
from retrieval.errors import IngestTimeout, InvalidDocument
from retrieval.ingestion.bulk import BulkProgress, Refused, SourceFile
from retrieval.types import Document, DocumentState, Metadata


def document(name: str, state: DocumentState) -> Document:
    error = "it is scanned" if state is DocumentState.FAILED else None
    return Document(name, "l", name, "text/plain", "h", 1, state, error, num_chunks=2)


class Shelf:
    """A store that makes every document ready but those whose text says otherwise."""

    def __init__(self) -> None:
        self.held: dict[str, DocumentState] = {}
        self.takes_long = False

    async def add(self, name: str, data: bytes, **_: Any) -> Document:
        self.held[name] = DocumentState.FAILED if data == b"bad" else DocumentState.READY
        return document(name, DocumentState.QUEUED)

    async def wait_ready(self, document_ids: Sequence[str], **_: Any) -> list[Document]:
        if self.takes_long:
            await asyncio.Event().wait()
        return [document(name, self.held[name]) for name in document_ids]


class Reads:
    """A platform that reads files by itself."""

    max_document_bytes = 1_000

    def __init__(self, found: Ingested | Exception, bulk_files: int | None = 3) -> None:
        self.store = Shelf()
        self.found = found
        self.bulk_files = bulk_files
        self.files: Sequence[SourceFile] = ()

    async def ingest_files(
        self,
        files: Sequence[SourceFile],
        *,
        library: str,
        tenant: str,
        metadata: Metadata | None,
        on_progress: Callable[[BulkProgress], None] | None = None,
    ) -> Ingested:
        self.files = files
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def files(tmp_path: Path) -> list[SourceFile]:
    found = []
    for name, text in (("a", "good"), ("b", "bad"), ("c", "good"), ("d", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        found.append(SourceFile(name, tmp_path / name))
    return found


async def ingest(
    backend: Any,
    files: Sequence[SourceFile],
    *,
    wait: bool = True,
    timeout_s: float | None = None,
    seen: list[BulkProgress] | None = None,
) -> Ingested:
    return await ingest_sources(
        backend,
        files,
        library="l",
        tenant="t",
        metadata=None,
        wait=wait,
        timeout_s=timeout_s,
        on_progress=None if seen is None else seen.append,
    )


TOGETHER = Ingested((document("a", DocumentState.READY),), ())


async def test_many_files_go_in_together(files: list[SourceFile]) -> None:
    backend = Reads(TOGETHER)
    assert await ingest(backend, files) == TOGETHER
    assert backend.store.held == {}


async def test_few_files_and_those_nobody_waits_for_are_added_one_by_one(files: list[SourceFile]) -> None:
    for backend in (Reads(TOGETHER, 5), Reads(TOGETHER, None), SimpleNamespace(**vars(Reads(TOGETHER)))):
        backend.max_document_bytes = 1_000
        assert len((await ingest(backend, files)).documents) == 3
        assert list(backend.store.held) == ["a", "b", "c"]
    backend = Reads(TOGETHER)
    queued = await ingest(backend, files, wait=False)
    assert {one.state for one in queued.documents} == {DocumentState.QUEUED}
    assert backend.files == ()


async def test_files_that_are_not_read_in_place_are_sent_and_the_reason_is_told(
    files: list[SourceFile],
) -> None:
    seen: list[BulkProgress] = []
    backend = Reads(NotInPlace("it runs elsewhere"))
    found = await ingest(backend, files, seen=seen)
    assert [one.name for one in found.documents] == ["a", "b", "c"]
    assert {progress.sent_because for progress in seen[1:]} == {"it runs elsewhere"}


async def test_one_by_one_tells_each_failure_once_and_how_far_it_is(files: list[SourceFile]) -> None:
    seen: list[BulkProgress] = []
    found = await ingest(Reads(TOGETHER, None), files, seen=seen)
    assert seen[0] == BulkProgress(num_files=4, seconds=seen[0].seconds)
    last = seen[-1]
    assert (last.num_files, last.files_read, last.files_done) == (4, 4, 4)
    assert (last.num_ready, last.num_failed, last.num_refused, last.num_chunks) == (2, 1, 1, 6)
    told = [failure for progress in seen for failure in progress.failures]
    assert [failure.name for failure in told] == ["d", "b"]
    assert told[0] == found.refused[0]
    assert "0 bytes" in told[0].cause
    assert told[1].cause == "it is scanned"
    assert [progress.files_read for progress in seen] == sorted(progress.files_read for progress in seen)


async def test_of_files_with_one_name_the_last_is_taken(files: list[SourceFile]) -> None:
    backend = Reads(TOGETHER)
    last = SourceFile("a", Path("other/a"))
    await ingest(backend, [*files, last])
    assert list(backend.files) == [last, *files[1:]]


def test_files_that_cannot_be_read_are_named_and_what_became_of_the_others() -> None:
    refused = tuple(Refused(f"{number}", f"'{number}' is empty") for number in range(5))
    some = Ingested((document("a", DocumentState.READY),), refused)
    message = str(unreadable(some))
    assert message.startswith("5 of 6 files cannot be read, all others are in: '0' is empty; ")
    assert message.endswith("'2' is empty; and 2 more")
    assert "others" not in str(unreadable(Ingested((), refused)))
    assert isinstance(unreadable(some), InvalidDocument)


async def test_a_time_that_is_up_says_how_to_go_on(files: list[SourceFile]) -> None:
    backend = Reads(TOGETHER, None)
    backend.store.takes_long = True
    with pytest.raises(IngestTimeout, match="ingest the same paths again"):
        await ingest(backend, files, timeout_s=0.01)


async def test_a_timeout_of_the_platform_is_its_own(files: list[SourceFile]) -> None:
    with pytest.raises(TimeoutError, match="the disk is slow"):
        await ingest(Reads(TimeoutError("the disk is slow")), files, timeout_s=60.0)
