"""The stream of an ingestion: coalesced progress, no failure lost, and an end that reaches the work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from graft import ingest_api
from graft.backend import Ingested
from graft.bulk import OnProgress
from graft.errors import NotRunning
from graft.http_client import HttpClient
from graft.remote_ingest import ingest_in_place
from retrieval.errors import StorageFull
from retrieval.ingestion.bulk import BulkProgress, Refused
from retrieval.types import Document, DocumentState

DOCUMENTS = tuple(
    Document(f"{number}", "l", f"{number}.txt", "text/plain", "h", 1, DocumentState.READY)
    for number in range(1_200)
)
REFUSED = (Refused("x.txt", "'x.txt' is empty"),)


@pytest.fixture(autouse=True)
def _tell_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_api, "TELL_S", 0.01)


class Loopback(HttpClient):
    """Hands a stream of the server to the client."""

    def __init__(self, stream: AsyncIterator[str]) -> None:
        self.stream = stream

    async def lines(self, method: str, path: str, **_: Any) -> AsyncIterator[str]:
        async for event in self.stream:
            for line in event.splitlines():
                yield line


async def told(stream: AsyncIterator[str], seen: list[BulkProgress]) -> Ingested:
    return await ingest_in_place(Loopback(stream), [], library="l", metadata=None, on_progress=seen.append)


async def test_a_client_gets_every_document_and_every_failure_once() -> None:
    async def work(on_progress: OnProgress) -> Ingested:
        for number in range(50):
            failures = (Refused(f"{number}", "no text"),)
            on_progress(BulkProgress(num_files=50, files_done=number + 1, failures=failures))
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        return Ingested(DOCUMENTS, REFUSED)

    seen: list[BulkProgress] = []
    assert await told(ingest_api._events(work), seen) == Ingested(DOCUMENTS, REFUSED)
    assert 1 <= len(seen) < 50
    names = [failure.name for progress in seen for failure in progress.failures]
    assert names == [str(number) for number in range(50)]
    assert seen[-1].files_done == 50


async def test_the_last_progress_is_told_though_the_work_ends_with_it() -> None:
    async def work(on_progress: OnProgress) -> Ingested:
        on_progress(BulkProgress(num_files=1, files_done=1, num_ready=1))
        return Ingested((), ())

    seen: list[BulkProgress] = []
    await told(ingest_api._events(work), seen)
    assert [progress.num_ready for progress in seen] == [1]


async def test_a_client_that_leaves_ends_the_work_before_the_stream_has_closed() -> None:
    ended = []

    async def work(on_progress: OnProgress) -> Ingested:
        try:
            on_progress(BulkProgress(num_files=2))
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)  # As stages that take a moment to stop.
            ended.append("stopped")
        return Ingested((), ())

    stream = ingest_api._events(work)
    assert json.loads((await anext(stream)).removeprefix("data: "))["type"] == "progress"
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.03)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert ended == ["stopped"]


async def test_an_error_of_the_work_and_an_end_without_result_are_told_apart() -> None:
    async def full(_: OnProgress) -> Ingested:
        raise StorageFull("the disk has no room")

    with pytest.raises(StorageFull, match="no room"):
        await told(ingest_api._events(full), [])

    async def torn() -> AsyncIterator[str]:
        yield ": at work\n\n"

    with pytest.raises(NotRunning, match="what was taken in stays"):
        await told(torn(), [])
