"""A folder that is followed, over a platform that takes everything in at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from graft.backend import Ingested
from graft.watching import Watched, watch
from retrieval.errors import InvalidDocument
from retrieval.ingestion.bulk import Refused, SourceFile
from retrieval.types import Document, DocumentState


class Takes:
    """Keeps what it is given; what is named `torn` changes while it is read for the first time."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.metadata: list[Any] = []
        self.held: dict[str, Document] = {}
        self.meanwhile: dict[Path, str] = {}

    async def ingest_files(
        self, files: Sequence[SourceFile], *, library: str, metadata: Any, on_progress: Any
    ) -> Ingested:
        self.batches.append([file.name for file in files])
        self.metadata.append(metadata)
        while self.meanwhile:
            path, text = self.meanwhile.popitem()
            path.write_text(text, encoding="utf-8")
        torn = [file for file in files if file.name == "torn.txt" and len(self.batches) == 1]
        whole = [
            Document(file.name, library, file.name, "text/plain", "h", 1, DocumentState.READY)
            for file in files
            if file not in torn
        ]
        self.held |= {one.name: one for one in whole}
        cause = "'torn.txt' changed while it was being read; wait until it is written and add it again"
        return Ingested(tuple(whole), tuple(Refused(file.name, cause) for file in torn))

    async def documents(self, library: str) -> list[Document]:
        return list(self.held.values())

    async def delete(self, document_id: str) -> None:
        del self.held[document_id]


async def first(takes: Any, folder: Path, count: int, on_item: Any = None) -> list[Watched]:
    seen: list[Watched] = []
    async with aclosing(watch(takes, folder, metadata={"year": 1990})) as changes:  # pyright: ignore[reportArgumentType]
        async for item in changes:
            seen.append(item)
            if on_item is not None:
                on_item(item)
            if len(seen) == count:
                break
    return seen


async def test_what_changes_while_the_folder_is_taken_in_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    takes = Takes()
    takes.meanwhile[tmp_path / "late.txt"] = "two"
    seen = await first(takes, tmp_path, 2)
    assert [(item.name, item.change) for item in seen] == [("a.txt", "ready"), ("late.txt", "ready")]
    assert takes.metadata == [{"year": 1990}, {"year": 1990}]


async def test_the_files_of_the_start_go_in_together_and_one_being_written_is_tried_again(
    tmp_path: Path,
) -> None:
    for name in ("a.txt", "b.txt", "torn.txt"):
        (tmp_path / name).write_text("one", encoding="utf-8")
    takes = Takes()
    seen = await first(takes, tmp_path, 3)
    assert {(item.name, item.change) for item in seen} == {
        ("a.txt", "ready"), ("b.txt", "ready"), ("torn.txt", "ready"),
    }  # fmt: skip
    assert takes.batches == [["a.txt", "b.txt", "torn.txt"], ["torn.txt"]]


async def test_a_removed_file_is_deleted_and_a_way_out_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("secret", encoding="utf-8")
    (folder / "a.txt").write_text("one", encoding="utf-8")

    def go_on(item: Watched) -> None:
        if item.change == "ready":
            (folder / "a.txt").unlink()
        elif item.change == "deleted":
            (folder / "out.txt").symlink_to(tmp_path / "outside.txt")

    takes = Takes()
    seen = await first(takes, folder, 3, go_on)
    assert [(item.name, item.change) for item in seen] == [
        ("a.txt", "ready"), ("a.txt", "deleted"), ("out.txt", "refused"),
    ]  # fmt: skip
    assert "leads outside" in (seen[-1].cause or "")
    assert takes.held == {}


async def test_only_a_folder_is_followed(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="not a folder"):
        await first(Takes(), tmp_path / "absent", 1)
