"""The workers of a bulk ingestion, without Ray: what becomes of good, bad, unchanged and missing files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.ingestion.bulk import Refused, SourceFile
from retrieval.ingestion.bulk_stages import (
    EmbedChunks,
    Known,
    Outcome,
    ReadFiles,
    Task,
    Unchanged,
    rows_of,
    table_of,
)
from retrieval.ingestion.embedding_work import chunking_of
from retrieval.ingestion.taking_in import ReadDocument
from retrieval.versions import VersionSpec
from tests.fakes_embedder import HashEmbedder

CONFIG = RetrievalConfig(max_document_bytes=100_000)
SPEC = VersionSpec("packaged", "hash", 256, 180, 20, 2000)


@pytest.fixture(scope="module")
def reader() -> Iterator[ReadFiles]:
    stage = ReadFiles(CONFIG, chunking_of(SPEC))
    yield stage
    stage.close()


def task(path: Path, known: Known | None = None) -> Task:
    return Task(SourceFile(path.name, path), known)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


class Unavailable(HashEmbedder):
    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        raise IndexUnavailable("the embedder is gone")


class NoNumbers(HashEmbedder):
    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        vectors_ND = self._embed(texts)
        vectors_ND[[i for i, text in enumerate(texts) if "poison" in text]] = np.nan
        return vectors_ND


def cut(reader: ReadFiles, folder: Path, *texts: str) -> list[Outcome]:
    return [
        reader.read(task(written(folder, f"{number}.txt", text.encode())))
        for number, text in enumerate(texts)
    ]


def embedded(outcomes: Sequence[Outcome], kind: type[HashEmbedder]) -> list[Outcome]:
    with closing(EmbedChunks(CONFIG, SPEC, kind)) as stage:
        return stage.embed(outcomes)


def test_files_come_out_cut_and_then_embedded(reader: ReadFiles, tmp_path: Path) -> None:
    text = "A word about subject 7. " * 100
    paths = [written(tmp_path, "a.txt", text.encode()), written(tmp_path, "b.md", b"# Title\n\nShort.")]
    tables = list(reader(table_of([[task(path) for path in paths]])))
    assert len(tables) == 2
    with closing(EmbedChunks(CONFIG, SPEC, HashEmbedder)) as stage:
        made = [row for table in tables for row in rows_of(stage(table))]
    first, second = made
    assert isinstance(first, ReadDocument)
    assert isinstance(second, ReadDocument)
    assert first.document is not None
    assert first.document.text.strip() == text.strip()
    assert first.embedded is not None
    assert len(first.embedded.chunks) > 2
    assert first.embedded.vectors_NM.shape == (len(first.embedded.chunks), 256)
    assert all(chunk.text == first.document.text[chunk.start : chunk.end] for chunk in first.embedded.chunks)
    assert second.media_type == "text/markdown"


def test_a_broken_file_fails_with_its_reason_and_the_next_is_read(reader: ReadFiles, tmp_path: Path) -> None:
    broken = reader.read(task(written(tmp_path, "broken.pdf", b"%PDF-1.7 nothing more")))
    assert isinstance(broken, ReadDocument)
    assert "broken.pdf" in (broken.error or "")
    assert broken.data == b"%PDF-1.7 nothing more"
    assert broken.embedded is None
    good = reader.read(task(written(tmp_path, "good.txt", b"All is well.")))
    assert isinstance(good, ReadDocument)
    assert good.error is None


def test_what_is_no_document_is_refused(reader: ReadFiles, tmp_path: Path) -> None:
    for path, cause in (
        (tmp_path / "missing.txt", "does not exist"),
        (written(tmp_path, "empty.txt", b""), "0 bytes"),
        (written(tmp_path, "large.txt", b"x" * 100_001), "max_document_bytes"),
    ):
        refused = reader.read(task(path))
        assert isinstance(refused, Refused)
        assert refused.name == path.name
        assert cause in refused.cause


def test_unchanged_bytes_are_not_read_again(reader: ReadFiles, tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"the same")
    content_hash = hashlib.sha256(b"the same").hexdigest()
    assert reader.read(task(path, Known("id", content_hash, True))) == Unchanged("id")
    assert reader.read(task(path, Known("id", content_hash, False))) == ReadDocument("a.txt", b"the same")
    changed = reader.read(task(path, Known("id", "other", True)))
    assert isinstance(changed, ReadDocument)
    assert changed.embedded is not None


def test_without_an_embedder_documents_are_left_to_the_shard(reader: ReadFiles, tmp_path: Path) -> None:
    outcomes = [*cut(reader, tmp_path, "one", "two"), Unchanged("id")]
    made = embedded(outcomes, Unavailable)
    assert made[:2] == [ReadDocument("0.txt", b"one", "text/plain", made[0].document),  # type: ignore[union-attr]
                        ReadDocument("1.txt", b"two", "text/plain", made[1].document)]  # type: ignore[union-attr]  # fmt: skip
    assert made[2] == Unchanged("id")


def test_one_document_that_cannot_be_embedded_fails_alone(reader: ReadFiles, tmp_path: Path) -> None:
    outcomes = cut(reader, tmp_path, "one", "poison", "three")
    made = embedded(outcomes, NoNumbers)
    assert [isinstance(one, ReadDocument) and one.error is None for one in made] == [True, False, True]
    assert isinstance(made[1], ReadDocument)
    assert "not numbers" in (made[1].error or "")


def test_a_name_that_no_document_may_have_is_refused_alone(reader: ReadFiles, tmp_path: Path) -> None:
    (tmp_path / "good").write_text("The harvest was good.", encoding="utf-8")
    outcomes = [
        reader.read(Task(SourceFile(name, tmp_path / "good"), None)) for name in ("a/b.txt", "a\nb.txt", "..")
    ]
    assert isinstance(outcomes[0], ReadDocument)
    assert [isinstance(one, Refused) and one.name for one in outcomes[1:]] == ["a\nb.txt", ".."]
