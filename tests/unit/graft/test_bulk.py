"""Which way many files take into a platform, and what is said of those that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graft.bulk import ingest_many
from retrieval.errors import IngestTimeout, InvalidDocument
from retrieval.ingestion.bulk import BulkProgress, BulkResult, Refused, SourceFile
from retrieval.types import Metadata

FILES = [SourceFile(f"{number}.txt", Path(f"{number}.txt")) for number in range(3)]


class Waits:
    async def wait_ready(self, document_ids: Sequence[str], *, timeout_s: float, tenant: str) -> list[str]:
        return [f"{tenant}/{document_id}" for document_id in document_ids]


class Reads:
    """A platform that reads files by itself."""

    bulk_files = 3

    def __init__(self, result: BulkResult | None, seconds: float = 0.0) -> None:
        self.store = Waits()
        self.result = result
        self.seconds = seconds
        self.files: Sequence[SourceFile] = ()

    async def ingest_files(
        self,
        files: Sequence[SourceFile],
        *,
        library: str,
        tenant: str,
        metadata: Metadata | None,
        on_progress: Callable[[BulkProgress], None] | None = None,
    ) -> BulkResult | None:
        self.files = files
        await asyncio.sleep(self.seconds)
        return self.result


async def many(backend: Any, files: Sequence[SourceFile] = FILES, timeout_s: float = 60.0) -> Any:
    return await ingest_many(
        backend,
        files,
        library="l",
        tenant="t",
        metadata=None,
        timeout_s=timeout_s,
        on_progress=None,
    )


async def test_many_files_go_in_together() -> None:
    assert await many(Reads(BulkResult(("a", "b", "c"), ()))) == ["t/a", "t/b", "t/c"]


async def test_few_files_and_remote_platforms_add_one_by_one() -> None:
    backend = Reads(BulkResult(("a",), ()))
    assert await many(backend, FILES[:2]) is None
    assert await many(SimpleNamespace(store=Waits())) is None
    assert await many(Reads(None)) is None
    assert backend.files == ()


async def test_of_files_with_one_name_the_last_is_taken() -> None:
    backend = Reads(BulkResult(("a",), ()))
    last = SourceFile("0.txt", Path("other/0.txt"))
    await many(backend, [*FILES, last])
    assert list(backend.files) == [last, *FILES[1:]]


async def test_files_that_cannot_be_read_are_named_when_all_others_are_in() -> None:
    refused = tuple(Refused(f"{number}", f"'{number}' is empty") for number in range(5))
    with pytest.raises(InvalidDocument, match=r"5 of 3 files.*'0' is empty; .*; and 2 more"):
        await many(Reads(BulkResult(("a",), refused)))


async def test_a_time_that_is_up_says_how_to_go_on() -> None:
    with pytest.raises(IngestTimeout, match="ingest the same paths again"):
        await many(Reads(None, seconds=5.0), timeout_s=0.01)


async def test_a_timeout_of_the_platform_is_its_own() -> None:
    class Slow(Reads):
        async def ingest_files(self, *args: Any, **kwargs: Any) -> BulkResult | None:
            raise TimeoutError("the disk is slow")

    with pytest.raises(TimeoutError, match="the disk is slow"):
        await many(Slow(None))
