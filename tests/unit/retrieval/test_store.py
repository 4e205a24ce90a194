"""Documents in the store: atomic replacement, recovery, real deletes, metadata, a full disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_store import LIBRARY, TENANT, finish, opened, postings, put, seen

from retrieval.errors import IndexUnavailable, InvalidMetadata, StorageFull, UnknownDocument
from retrieval.truth.store import Store
from retrieval.types import DocumentState


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple pear", {"year": 1990})
        before = seen(store), store.seq(), store.document(document.document_id, TENANT)
    with opened(tmp_path) as store:
        assert (seen(store), store.seq(), store.document(document.document_id, TENANT)) == before
        assert before[0] == {"a.txt": ["apple", "pear"]}
        assert before[2].metadata == {"year": 1990}
        assert before[2].num_chunks == 2


@pytest.mark.parametrize("state", [DocumentState.READING, DocumentState.CHUNKING, DocumentState.EMBEDDING])
def test_unfinished_documents_go_back_to_the_queue_when_opened(tmp_path: Path, state: DocumentState) -> None:
    with opened(tmp_path) as store:
        document = store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple")
        work = store.claim()
        assert work is not None
        assert store.advance(work, state)
    with opened(tmp_path) as store:
        assert store.document(document.document_id, TENANT).state is DocumentState.QUEUED
        assert store.claim() == work


def test_old_content_answers_until_the_new_is_ready(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple")
        changed = store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"banana")
        assert changed.state is DocumentState.QUEUED
        assert changed.document_id == document.document_id
        work = store.claim()
        assert work is not None
        for state in (DocumentState.CHUNKING, DocumentState.EMBEDDING):
            store.advance(work, state)
            assert seen(store) == {"a.txt": ["apple"]}
            assert store.text(document.document_id, TENANT).text == "apple"
            assert store.content(document.document_id, TENANT) == b"apple"
        assert finish(store, work)
        assert seen(store) == {"a.txt": ["banana"]}
        assert store.content(document.document_id, TENANT) == b"banana"


def test_failed_replacement_leaves_the_old_content(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple")
        store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"banana")
        work = store.claim()
        assert work is not None
        store.advance(work, DocumentState.FAILED, "broken")
        assert store.document(document.document_id, TENANT).error == "broken"
        assert seen(store) == {"a.txt": ["apple"]}
        back = store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple")
        assert (back.state, back.error) == (DocumentState.READY, None)


def test_failed_document_is_queued_again_when_added_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple")
        work = store.claim()
        assert work is not None
        store.advance(work, DocumentState.FAILED, "took too long")
        again = store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple")
        assert (again.state, again.error) == (DocumentState.QUEUED, None)


def test_content_replaced_or_deleted_meanwhile_is_dropped(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple")
        stale = store.claim()
        assert stale is not None
        store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"banana")
        assert not store.is_current(stale)
        assert not finish(store, stale)
        fresh = store.claim()
        assert fresh is not None
        store.delete(document.document_id, TENANT)
        assert not finish(store, fresh)
        assert seen(store) == {}


def test_deleted_document_leaves_every_table(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        gone = put(store, "gone.txt", "apple walrus")
        put(store, "kept.txt", "apple")
        number, seq = store.version().number, store.seq()
        store.delete(gone.document_id, TENANT)
        assert seen(store) == {"kept.txt": ["apple"]}
        with store.snapshot() as snapshot:
            assert postings(snapshot, number, ["walrus", "appl"]) == {"appl": [(3, 1)]}
            assert snapshot.changes(number, seq).removed == [gone.document_id]
        with pytest.raises(UnknownDocument):
            store.delete(gone.document_id, TENANT)
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3")) as db:
        for table in ("documents", "contents", "texts", f"chunks_{number}", f"held_{number}"):
            sql = f"SELECT count(*) FROM {table} WHERE document_id=?"
            assert db.execute(sql, (gone.document_id,)).fetchone() == (0,)


def test_other_tenant_reads_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple pear")
        number = store.version().number
        for read in (store.document, store.text, store.content, store.delete):
            with pytest.raises(UnknownDocument):
                read(document.document_id, "other")
        with store.snapshot() as snapshot:
            chunk_id = f"{document.document_id}:{document.content_hash[:12]}:0"
            assert set(snapshot.passages(number, [chunk_id], TENANT)) == {chunk_id}
            assert snapshot.passages(number, [chunk_id], "other") == {}
            assert [one.text for one in snapshot.neighbours(number, chunk_id, 0, 1, TENANT)] == [
                "apple",
                "pear",
            ]
            assert snapshot.neighbours(number, chunk_id, 0, 1, "other") == []


@pytest.mark.parametrize("chunk_id", ["", "no", "no:such:1", "a:b:c:d", ":::", "x:y:-1", "x:y:1e9", "x:y:²"])
def test_what_is_no_chunk_id_finds_nothing(tmp_path: Path, chunk_id: str) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "apple")
        number = store.version().number
        with store.snapshot() as snapshot:
            assert snapshot.passages(number, [chunk_id], TENANT) == {}
            assert snapshot.neighbours(number, chunk_id, 1, 1, TENANT) == []


def test_metadata_change_alone_keeps_the_rows(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple", {"year": 1990})
        number, seq = store.version().number, store.seq()
        with store.snapshot() as snapshot:
            (before,) = snapshot.changes(number, 0).documents
        again = store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple", {"year": 2001, "tags": ("x",)})
        assert again.state is DocumentState.READY
        assert store.claim() is None
        with store.snapshot() as snapshot:
            (after,) = snapshot.changes(number, seq).documents
            assert snapshot.fields() == {"year": "number", "tags": "texts"}
        assert after.metadata == {"year": 2001, "tags": ("x",)}
        assert after.row_ids.tolist() == before.row_ids.tolist()
        assert store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple") == again  # None leaves it.
        assert store.seq() == seq + 1
        assert store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple", {}).metadata == {}
        assert store.document(document.document_id, TENANT).metadata == {}


def test_a_field_keeps_its_type(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "apple", {"year": 1990})
        with pytest.raises(InvalidMetadata, match="'year' holds number in this shard; got '1990'"):
            store.add(TENANT, LIBRARY, "b.txt", "text/plain", b"pear", {"year": "1990"})
        assert [document.name for document in store.documents(None, TENANT)] == ["a.txt"]
        put(store, "b.txt", "pear", {"year": 19.5})  # Whole or not, a number is a number.


def test_queue_counts_and_what_lies_ahead(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "apple")
        store.add(TENANT, LIBRARY, "b.txt", "text/plain", b"12345")
        store.add(TENANT, "other", "c.txt", "text/plain", b"123")
        store.add(TENANT, LIBRARY, "d.txt", "text/plain", b"12")
        mine, other = store.queue(LIBRARY, TENANT), store.queue("other", TENANT)
        assert (mine.num_documents, mine.num_ready, mine.num_under_way, mine.bytes_ahead) == (3, 1, 2, 10)
        assert (other.num_documents, other.num_under_way, other.bytes_ahead) == (1, 1, 8)
        assert store.queue(None, "nobody").bytes_ahead == 0


def test_snapshot_sees_one_moment_while_writers_go_on(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple pear")
        number = store.version().number
        with store.snapshot() as snapshot:
            blocks = snapshot.blocks(number, block_rows=1, with_terms=True)
            first = next(blocks)
            store.delete(document.document_id, TENANT)
            put(store, "b.txt", "banana")
            second = next(blocks)
            assert (first.terms, second.terms) == ([["appl"]], [["pear"]])
            assert [one.name for one in second.documents] == ["a.txt"]
            assert next(blocks, None) is None
        assert seen(store) == {"b.txt": ["banana"]}


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.truth.folder_lock._WAIT_S", 0.1)
    with opened(tmp_path), pytest.raises(IndexUnavailable, match=f"in use by process {os.getpid()}; stop it"):
        Store(tmp_path)
    with opened(tmp_path) as store:  # Released when closed.
        assert store.documents(None, TENANT) == []


def test_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "shard.sqlite3").write_bytes(b"not a database, only words" * 100)
    for _ in range(2):  # The lock is released again.
        with pytest.raises(IndexUnavailable, match=r"shard\.sqlite3.*restore a backup"):
            Store(tmp_path)


def test_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3")) as db:
        db.execute("CREATE TABLE t(x)")
        db.execute("PRAGMA user_version=99")
    with pytest.raises(IndexUnavailable, match="schema version 99, this release reads 3"):
        Store(tmp_path)


def test_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.close()
    with pytest.raises(IndexUnavailable, match="is closed"):
        store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple")
    with pytest.raises(IndexUnavailable, match="is closed"), store.snapshot():
        pass


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
    with opened(small_disk) as store:
        put(store, "a.txt", "apple")
        with pytest.raises(StorageFull, match=r"is full .* Free some space"):
            store.add(TENANT, LIBRARY, "big.txt", "text/plain", os.urandom(5_000_000))
        assert [document.name for document in store.documents(None, TENANT)] == ["a.txt"]
        put(store, "b.txt", "pear")  # A small file still fits.
    with opened(small_disk) as store:
        assert seen(store) == {"a.txt": ["apple"], "b.txt": ["pear"]}


def test_backup_onto_a_full_disk_leaves_nothing_there(small_disk: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "shard") as store:
        store.add(TENANT, LIBRARY, "big.txt", "text/plain", os.urandom(5_000_000))
        with pytest.raises(StorageFull):
            store.backup(small_disk / "copy" / "shard.sqlite3")
        assert list((small_disk / "copy").iterdir()) == []
        assert len(store.documents(None, TENANT)) == 1


def test_full_database_is_storage_full_wherever_it_runs(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "apple")
        writer = store._database._writer
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count={pages + 4}")
        with pytest.raises(StorageFull, match="nothing was stored"):
            store.add(TENANT, LIBRARY, "big.txt", "text/plain", os.urandom(1_000_000))
        assert len(store.documents(None, TENANT)) == 1
        writer.execute("PRAGMA max_page_count=1000000")
        store.add(TENANT, LIBRARY, "big.txt", "text/plain", os.urandom(1_000_000))


def test_backup_is_a_whole_shard(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as store:
        put(store, "a.txt", "apple pear")
        store.backup(tmp_path / "two" / "shard.sqlite3")
        put(store, "b.txt", "banana")
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["shard.sqlite3"]
    with opened(tmp_path / "two") as copy:
        assert seen(copy) == {"a.txt": ["apple", "pear"]}


def test_asking_for_work_where_none_is_queued_waits_for_no_write(tmp_path: Path) -> None:
    found: list[object] = []
    with opened(tmp_path) as store, store.held():
        asking = threading.Thread(target=lambda: found.append(store.claim()), daemon=True)
        asking.start()
        asking.join(5.0)
        assert found == [None]
