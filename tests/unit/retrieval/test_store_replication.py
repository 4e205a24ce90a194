"""Replicas and moved documents: batches are idempotent and lead to the same documents and log position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_store import DIM, LIBRARY, SPEC, TENANT, embedded, opened, postings, put, seen, upsert

from retrieval.truth.records import Vectors
from retrieval.truth.store import Holding, Store, document_id_of
from retrieval.types import DocumentState, Record
from retrieval.versions import VersionState

OTHER = replace(SPEC, model_hash="hash9", tokens="int8")


def _follow(replica: Store, primary: Store, limit: int) -> None:
    """Take up everything, each batch twice and each after the one before it once more."""
    before = None
    while True:
        batch = primary.changes_since(replica.seq(), limit)
        if batch.seq == replica.seq():
            replica.apply(batch)
            return
        assert replica.apply(batch) == batch.seq
        for again in (batch, before):
            if again is not None:
                assert replica.apply(again) == batch.seq
        before = batch


def _same(replica: Store, primary: Store) -> None:
    assert replica.seq() == primary.seq()
    assert replica.documents(None, TENANT) == primary.documents(None, TENANT)
    assert [(one.version_id, one.state, one.aliases, one.num_documents) for one in replica.versions()] == [
        (one.version_id, one.state, one.aliases, one.num_documents) for one in primary.versions()
    ]
    for version in primary.versions():
        assert seen(replica, version.version_id) == seen(primary, version.version_id)


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_replica_ends_in_the_primarys_documents(tmp_path: Path, limit: int) -> None:
    replica = Store(tmp_path / "replica")
    with opened(tmp_path / "primary") as primary:
        put(primary, "a.txt", "apple pear", {"year": 1990})
        gone = put(primary, "b.txt", "banana")
        upsert(primary, ("1", "cherry"), ("2", "dates"), tag="x")
        primary.add(TENANT, LIBRARY, "waits.txt", "text/plain", b"elder")
        _follow(replica, primary, limit)
        _same(replica, primary)
        primary.delete(gone.document_id, TENANT)
        upsert(primary, ("1", "figs"), tag="y")
        primary.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple pear", {"year": 1991})
        work = primary.claim()
        assert work is not None
        primary.advance(work, DocumentState.FAILED, "torn")
        _follow(replica, primary, limit)
        _same(replica, primary)
        assert replica.content(document_id_of(TENANT, LIBRARY, "a.txt"), TENANT) == b"apple pear"
        assert replica.text(document_id_of(TENANT, LIBRARY, "1"), TENANT).text == "figs"
    replica.close()


def test_replica_follows_versions_aliases_and_switches(tmp_path: Path) -> None:
    replica = Store(tmp_path / "replica")
    with opened(tmp_path / "primary") as primary:
        document = put(primary, "a.txt", "apple")
        other = primary.make_version(OTHER)
        part = embedded("APPLE")
        part = replace(part, token_codes=[b"codes"])
        primary.hold(other.number, [Holding(document.document_id, document.content_hash, part)])
        primary.set_alias("stable", SPEC.version_id)
        _follow(replica, primary, 10)
        _same(replica, primary)
        chunk_id = f"{document.document_id}:{document.content_hash[:12]}:0"
        with replica.snapshot() as snapshot:
            assert snapshot.token_codes(other.number, [chunk_id]) == {chunk_id: b"codes"}
            assert postings(snapshot, other.number, ["appl"]) == {"appl": [(1, 1)]}
        primary.set_state(OTHER.version_id, VersionState.ACTIVE)
        primary.set_alias("stable", None)
        primary.drop_version(SPEC.version_id)
        _follow(replica, primary, 10)  # Nothing is in the log; the versions come all the same.
        _same(replica, primary)
        assert replica.version().version_id == OTHER.version_id
    replica.close()


def test_row_ids_of_a_replica_ascend_in_the_order_it_took_changes_up(tmp_path: Path) -> None:
    replica = Store(tmp_path / "replica")
    with opened(tmp_path / "primary") as primary:
        upsert(primary, ("1", "apple"), ("2", "pear"), ("3", "banana"))
        upsert(primary, ("1", "cherry"))
        number, highest = primary.version().number, 0
        while (batch := primary.changes_since(replica.seq(), 1)).seq != replica.seq():
            seq = replica.seq()
            replica.apply(batch)
            with replica.snapshot() as snapshot:
                for document in snapshot.changes(number, seq).documents:
                    assert document.row_ids[0] > highest
                    highest = int(document.row_ids[-1])
        _same(replica, primary)
    replica.close()


def test_batch_is_cut_where_documents_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrieval.truth.oplog._BATCH_BYTES", 10)
    replica = Store(tmp_path / "replica")
    with opened(tmp_path / "primary") as primary:
        upsert(primary, ("1", "apple"), ("2", "pear"), ("3", "banana split with cream"), ("4", "fig"))
        seqs = []
        while (batch := primary.changes_since(replica.seq())).ops:
            seqs.append(replica.apply(batch))
        assert seqs == [2, 3, 4]
        _same(replica, primary)
    replica.close()


def test_batch_beyond_the_end_of_the_log_is_refused(tmp_path: Path) -> None:
    replica = Store(tmp_path / "replica")
    with opened(tmp_path / "primary") as primary:
        upsert(primary, ("1", "apple"), ("2", "pear"))
        with pytest.raises(ValueError, match="begins after log position 1, this log ends at 0"):
            replica.apply(primary.changes_since(1))
    replica.close()


def test_promoted_replica_goes_on_with_the_log(tmp_path: Path) -> None:
    replica = Store(tmp_path / "replica")
    with opened(tmp_path / "primary") as primary:
        upsert(primary, ("1", "apple"))
        primary.add(TENANT, LIBRARY, "waits.txt", "text/plain", b"pear")
        _follow(replica, primary, 10)
        seq = primary.seq()
    work = replica.claim()
    assert work is not None
    assert work.data == b"pear"
    assert upsert(replica, ("2", "banana")) == seq + 1
    replica.close()


def test_documents_move_to_a_shard_whose_versions_have_other_numbers(tmp_path: Path) -> None:
    with opened(tmp_path / "one", OTHER) as one, opened(tmp_path / "two") as two:
        one.make_version(SPEC)
        two.make_version(OTHER)
        one.upsert(
            TENANT, LIBRARY, [Record("1", "apple", metadata={"year": 1})],
            {one.version(OTHER.version_id).number: Vectors(np.eye(1, DIM), (b"codes",)),
             one.version(SPEC.version_id).number: Vectors(np.eye(1, DIM))},
        )  # fmt: skip
        ids = [document_id_of(TENANT, LIBRARY, "1")]
        upsert(two, ("already", "here"))
        for _ in range(2):  # Again changes nothing but the log.
            assert two.adopt(one.whole_documents(ids)) == two.seq()
            for version in (OTHER.version_id, SPEC.version_id):
                assert seen(two, version)["1"] == ["apple"]
        with two.snapshot() as snapshot:
            assert snapshot.fields() == {"year": "number"}
        assert two.document(ids[0], TENANT).metadata == {"year": 1}
