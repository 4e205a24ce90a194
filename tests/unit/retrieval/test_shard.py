"""The shard: atomic replacement, recovery, real deletes, one moment a search, a full disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, StorageFull, UnknownDocument
from retrieval.shard import IndexShard
from retrieval.store import Work
from retrieval.types import Chunk, Document, DocumentState, DocumentText, SearchRequest

DIM = 8
CONFIG = RetrievalConfig()


def _vector(word: str) -> np.ndarray:
    vector_D = np.random.default_rng(sum(word.encode())).standard_normal(DIM).astype(np.float32)
    return vector_D / np.linalg.norm(vector_D)


def _put(shard: IndexShard, name: str, *words: str, tenant: str = "t", library: str = "l") -> Document:
    """Add a document of one chunk a word and take it to ready."""
    document = shard.add(name, " ".join(words).encode(), library, tenant)
    work = shard.store.claim()
    assert work is not None
    assert _finish(shard, work)
    return document


def _finish(shard: IndexShard, work: Work) -> bool:
    text = work.data.decode()
    chunks, at = [], 0
    for ordinal, word in enumerate(text.split(" ")):
        chunks.append(Chunk(ordinal, word, at, at + len(word)))
        at += len(word) + 1
    vectors_ND = np.stack([_vector(chunk.text) for chunk in chunks])
    return shard.store.finish(work, "text/plain", DocumentText(text), chunks, vectors_ND)


def _found(shard: IndexShard, word: str, tenant: str = "t", **request) -> set[str]:
    (result,) = shard.search([SearchRequest(word, tenant=tenant, k=1000, **request)], _vector(word)[None])
    return {passage.text for passage in result.passages}


@contextlib.contextmanager
def _open(folder: Path, version: str = "v1") -> Iterator[IndexShard]:
    shard = IndexShard(folder, CONFIG, version)
    try:
        yield shard
    finally:
        shard.close()


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        _put(shard, "a.txt", "apple", "pear")
        before = shard.search([SearchRequest("apple", tenant="t")], _vector("apple")[None])
    with _open(tmp_path) as shard:
        after = shard.search([SearchRequest("apple", tenant="t")], _vector("apple")[None])
        assert after[0].hits == before[0].hits
        assert after[0].passages == before[0].passages
        assert after[0].seq == before[0].seq == 1


@pytest.mark.parametrize("state", [DocumentState.READING, DocumentState.CHUNKING, DocumentState.EMBEDDING])
def test_unfinished_documents_go_back_to_the_queue_when_opened(tmp_path: Path, state: DocumentState) -> None:
    with _open(tmp_path) as shard:
        document = shard.add("a.txt", b"apple", "l", "t")
        work = shard.store.claim()
        assert work is not None
        assert shard.store.advance(work, state)
    with _open(tmp_path) as shard:
        assert shard.store.document(document.document_id, "t").state is DocumentState.QUEUED
        assert shard.store.claim() == work


def test_old_version_answers_until_the_new_is_ready(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        document = _put(shard, "a.txt", "apple")
        changed = shard.add("a.txt", b"banana", "l", "t")
        assert changed.state is DocumentState.QUEUED
        assert changed.document_id == document.document_id
        work = shard.store.claim()
        assert work is not None
        for state in (DocumentState.CHUNKING, DocumentState.EMBEDDING):
            shard.store.advance(work, state)
            assert _found(shard, "apple") == {"apple"}
            assert shard.store.text(document.document_id, "t").text == "apple"
            assert shard.store.content(document.document_id, "t") == b"apple"
        assert _finish(shard, work)
        assert _found(shard, "apple") == _found(shard, "banana") == {"banana"}
        assert shard.store.content(document.document_id, "t") == b"banana"


def test_failed_replacement_leaves_the_old_version(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        document = _put(shard, "a.txt", "apple")
        shard.add("a.txt", b"banana", "l", "t")
        work = shard.store.claim()
        assert work is not None
        shard.store.advance(work, DocumentState.FAILED, "broken")
        assert shard.store.document(document.document_id, "t").error == "broken"
        assert _found(shard, "apple") == {"apple"}
        assert shard.add("a.txt", b"apple", "l", "t").state is DocumentState.READY  # Back to what answers.
        assert shard.add("a.txt", b"apple", "l", "t").error is None


def test_failed_document_is_queued_again_when_added_again(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        shard.add("a.txt", b"apple", "l", "t")
        work = shard.store.claim()
        assert work is not None
        shard.store.advance(work, DocumentState.FAILED, "took too long")
        again = shard.add("a.txt", b"apple", "l", "t")
        assert (again.state, again.error) == (DocumentState.QUEUED, None)


def test_version_replaced_or_deleted_meanwhile_is_dropped(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        document = shard.add("a.txt", b"apple", "l", "t")
        stale = shard.store.claim()
        assert stale is not None
        shard.add("a.txt", b"banana", "l", "t")
        assert not shard.store.is_current(stale)
        assert not _finish(shard, stale)
        fresh = shard.store.claim()
        assert fresh is not None
        shard.store.delete(document.document_id, "t")
        assert not _finish(shard, fresh)
        assert _found(shard, "apple") == set()


def test_deleted_document_leaves_every_table(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        gone = _put(shard, "gone.txt", "apple", "walrus")
        _put(shard, "kept.txt", "apple")
        shard.store.delete(gone.document_id, "t")
        for mode in ("hybrid", "dense", "lexical"):
            assert "walrus" not in _found(shard, "walrus", mode=mode)
        with pytest.raises(UnknownDocument):
            shard.store.delete(gone.document_id, "t")
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3")) as db:
        for table in ("documents", "contents", "texts", "chunks"):
            sql = f"SELECT count(*) FROM {table} WHERE document_id=?"
            assert db.execute(sql, (gone.document_id,)).fetchone() == (0,)
        matches = "SELECT count(*) FROM chunks_fts WHERE chunks_fts MATCH 'walrus'"
        assert db.execute(matches).fetchone() == (0,)
        db.execute("INSERT INTO chunks_fts(chunks_fts, rank) VALUES ('integrity-check', 1)")


def test_filters_apply_before_the_candidates_are_cut(tmp_path: Path) -> None:
    config = RetrievalConfig(num_candidates=1)
    shard = IndexShard(tmp_path, config, "v1")
    for number in range(30):
        _put(shard, f"{number}.txt", "apple", "apple", tenant=f"t{number % 3}", library=f"l{number % 2}")
    for mode in ("hybrid", "dense", "lexical"):
        request = SearchRequest("apple", k=10, tenant="t1", library="l1", mode=mode)
        (result,) = shard.search([request], _vector("apple")[None])
        assert len(result.hits) == 10
        assert {passage.library for passage in result.passages} == {"l1"}
    shard.close()


def test_other_index_version_embeds_everything_anew(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        document = _put(shard, "a.txt", "apple")
    with _open(tmp_path, "v2") as shard:
        assert _found(shard, "apple") == set()
        assert shard.store.document(document.document_id, "t").state is DocumentState.QUEUED
        work = shard.store.claim()
        assert work is not None
        assert _finish(shard, work)
        assert _found(shard, "apple") == {"apple"}


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.folder_lock._WAIT_S", 0.1)
    with _open(tmp_path), pytest.raises(IndexUnavailable, match=f"in use by process {os.getpid()}; stop it"):
        IndexShard(tmp_path, CONFIG, "v1")
    with _open(tmp_path) as shard:  # Released when closed.
        assert shard.store.documents(None, "t") == []


def test_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "shard.sqlite3").write_bytes(b"not a database, only words" * 100)
    with pytest.raises(IndexUnavailable, match=r"shard\.sqlite3.*restore a backup"):
        IndexShard(tmp_path, CONFIG, "v1")


def test_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3")) as db:
        db.execute("CREATE TABLE t(x)")
        db.execute("PRAGMA user_version=99")
    with pytest.raises(IndexUnavailable, match="schema version 99, this release reads 1"):
        IndexShard(tmp_path, CONFIG, "v1")


def test_closed_shard_says_so(tmp_path: Path) -> None:
    shard = IndexShard(tmp_path, CONFIG, "v1")
    shard.close()
    with pytest.raises(IndexUnavailable, match="is closed"):
        shard.add("a.txt", b"apple", "l", "t")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_refuses_the_file_and_loses_nothing(small_disk: Path) -> None:
    with _open(small_disk) as shard:
        _put(shard, "a.txt", "apple")
        with pytest.raises(StorageFull, match=r"is full .* Free some space"):
            shard.add("big.txt", os.urandom(5_000_000), "l", "t")
        assert [document.name for document in shard.store.documents(None, "t")] == ["a.txt"]
        assert _found(shard, "apple") == {"apple"}
        _put(shard, "b.txt", "pear")  # A small file still fits.
    with _open(small_disk) as shard:
        assert {document.name for document in shard.store.documents(None, "t")} == {"a.txt", "b.txt"}


def test_full_database_is_storage_full_wherever_it_runs(tmp_path: Path) -> None:
    with _open(tmp_path) as shard:
        _put(shard, "a.txt", "apple")
        pages = shard.store._writer.execute("PRAGMA page_count").fetchone()[0]
        shard.store._writer.execute(f"PRAGMA max_page_count={pages + 4}")
        with pytest.raises(StorageFull, match="nothing was stored"):
            shard.add("big.txt", os.urandom(1_000_000), "l", "t")
        assert len(shard.store.documents(None, "t")) == 1
        shard.store._writer.execute("PRAGMA max_page_count=1000000")
        shard.add("big.txt", os.urandom(1_000_000), "l", "t")
