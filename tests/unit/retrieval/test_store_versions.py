"""Index versions in the store: made, filled, switched, named, dropped; what the configuration asks for."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_store import DIM, LIBRARY, SPEC, TENANT, embedded, opened, postings, put, seen, upsert, vector

from retrieval.errors import InvalidVersion, UnknownVersion
from retrieval.truth.store import Holding, Store
from retrieval.types import DocumentState
from retrieval.versions import VersionSpec, VersionState

OTHER = replace(SPEC, model_hash="hash9", chunk_tokens=90)
SMALL = replace(SPEC, vectors="int8", dim=4)


def _fill(store: Store, version_id: str) -> None:
    version = store.version(version_id)
    for document_id in store.lacking(version.number):
        stored = store.stored_text(document_id)
        assert stored is not None
        held = Holding(document_id, stored.content_hash, embedded(stored.document.text.upper()))
        assert store.hold(version.number, [held]) == 1


def test_first_version_is_active_and_later_ones_are_built_beside_it(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "apple pear")
        made = store.make_version(OTHER)
        assert made == store.make_version(OTHER)
        assert [(one.version_id, one.state) for one in store.versions()] == [
            (SPEC.version_id, VersionState.ACTIVE),
            (OTHER.version_id, VersionState.BUILDING),
        ]
        assert [(one.num_documents, one.num_wanted) for one in store.versions()] == [(1, 1), (0, 1)]
        _fill(store, OTHER.version_id)
        assert seen(store, OTHER.version_id) == {"a.txt": ["APPLE", "PEAR"]}
        assert seen(store) == {"a.txt": ["apple", "pear"]}
        assert store.versions()[1].num_documents == 1


def test_version_that_lacks_documents_cannot_answer(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "apple")
        other = store.make_version(OTHER).version_id
        for state in (VersionState.READY, VersionState.ACTIVE):
            with pytest.raises(InvalidVersion, match="lacks 1 documents"):
                store.set_state(other, state)
        _fill(store, other)
        put(store, "a.txt", "banana")  # What it holds is old now.
        with pytest.raises(InvalidVersion, match="lacks 1 documents"):
            store.set_state(other, VersionState.ACTIVE)
        _fill(store, other)
        store.set_state(other, VersionState.READY)
        store.set_state(other, VersionState.ACTIVE)
        assert seen(store) == {"a.txt": ["BANANA"]}
        assert [one.state for one in store.versions()] == [VersionState.RETIRED, VersionState.ACTIVE]


def test_rollback_is_the_same_switch_backwards(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple")
        other = store.make_version(OTHER).version_id
        _fill(store, other)
        store.set_state(other, VersionState.ACTIVE)
        store.set_state(SPEC.version_id, VersionState.ACTIVE)
        assert seen(store) == {"a.txt": ["apple"]}
        store.delete(document.document_id, TENANT)  # From the retired one too.
        assert seen(store, other) == {}
        assert store.set_state(other, VersionState.ACTIVE).state is VersionState.ACTIVE


def test_the_version_that_answers_is_not_dropped_nor_demoted(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        with pytest.raises(InvalidVersion, match="answers and cannot be dropped"):
            store.drop_version(SPEC.version_id)
        with pytest.raises(InvalidVersion, match="make another active"):
            store.set_state(SPEC.version_id, VersionState.RETIRED)


def test_dropped_version_leaves_no_table(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, "a.txt", "apple")
        other = store.make_version(OTHER)
        _fill(store, other.version_id)
        store.set_alias("next", other.version_id)
        with pytest.raises(InvalidVersion, match="named by the alias 'next'"):
            store.drop_version("next")
        store.set_alias("next", None)
        store.drop_version(other.version_id)
        with pytest.raises(UnknownVersion, match=SPEC.version_id):
            store.version(other.version_id)
        with store.snapshot() as snapshot, pytest.raises(UnknownVersion, match="was dropped"):
            snapshot.changes(other.number, 0)
        again = store.make_version(OTHER)
        assert again.number > other.number  # Its rows cannot be taken for the old ones.
        assert seen(store, OTHER.version_id) == {}
        store.drop_version(OTHER.version_id)
    with contextlib.closing(sqlite3.connect(tmp_path / "shard.sqlite3")) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema")]
        for number in (other.number, again.number):
            assert not [name for name in names if f"_{number}" in name]


def test_alias_names_a_version_and_moves(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        other = store.make_version(OTHER).version_id
        store.set_alias("stable", SPEC.version_id)
        assert store.version("stable").version_id == SPEC.version_id
        store.set_alias("stable", other)
        assert store.version("stable").version_id == other
        assert store.versions()[1].aliases == ("stable",)
        with pytest.raises(InvalidVersion, match="is the id of an index version"):
            store.set_alias(other, SPEC.version_id)
        with pytest.raises(UnknownVersion, match="no index version or alias 'nope'"):
            store.set_alias("x", "nope")


def test_variant_copies_rows_without_an_embedder(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple pear")
        upsert(store, ("1", "banana"))
        small = store.make_version(SMALL)
        active = store.version()
        assert store.copy_rows(active, small, store.lacking(small.number)) == 2
        assert seen(store, SMALL.version_id) == {"a.txt": ["apple", "pear"], "1": ["banana"]}
        with store.snapshot() as snapshot:
            (first, _) = snapshot.changes(small.number, 0).documents
            kept_D = vector("apple")[:4] / np.linalg.norm(vector("apple")[:4])
            assert first.document_id == document.document_id or len(first.row_ids) == 1
            assert first.vectors_ND.shape[1] == 4
            chunk_id = f"{document.document_id}:{document.content_hash[:12]}:0"
            assert float(snapshot.vectors(small.number, [chunk_id])[chunk_id] @ kept_D) > 0.99
            assert postings(snapshot, small.number, ["appl", "banana"]).keys() == {"appl", "banana"}
        store.set_state(SMALL.version_id, VersionState.ACTIVE)


def test_document_a_version_cannot_take_in_fails_once_that_answers(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple")
        other = store.make_version(OTHER)
        store.give_up(other.number, document.document_id, document.content_hash, "makes too many chunks")
        assert store.count_lacking(other.number) == 0
        store.set_state(OTHER.version_id, VersionState.ACTIVE)
        failed = store.document(document.document_id, TENANT)
        assert (failed.state, failed.error, failed.num_chunks) == (
            DocumentState.FAILED,
            "makes too many chunks",
            0,
        )
        store.set_state(SPEC.version_id, VersionState.ACTIVE)
        assert store.document(document.document_id, TENANT).state is DocumentState.READY
        store.set_state(OTHER.version_id, VersionState.ACTIVE)
        again = store.add(TENANT, LIBRARY, "a.txt", "text/plain", b"apple")
        assert again.state is DocumentState.QUEUED  # Tried anew, not taken for answered.


def test_bytes_replaced_meanwhile_are_not_held(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        document = put(store, "a.txt", "apple")
        other = store.make_version(OTHER)
        put(store, "a.txt", "banana")
        stale = Holding(document.document_id, document.content_hash, embedded("apple"))
        assert store.hold(other.number, [stale]) == 0
        assert seen(store, OTHER.version_id) == {}


def test_changed_configuration_makes_its_version_the_target(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.target_version() is None
    with opened(tmp_path, OTHER) as store:
        assert store.version().version_id == SPEC.version_id  # Answers until the other is built.
        assert store.target_version() == OTHER.version_id
    with opened(tmp_path, OTHER) as store:  # A restart goes on.
        assert store.target_version() == OTHER.version_id
        store.set_state(OTHER.version_id, VersionState.ACTIVE)
        assert store.target_version() is None


def test_configuration_that_did_not_change_leaves_the_operators_choice(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.make_version(OTHER)
        store.set_state(OTHER.version_id, VersionState.ACTIVE)
    with opened(tmp_path) as store:
        assert store.version().version_id == OTHER.version_id
        assert store.target_version() is None


def test_configured_version_that_was_dropped_stays_dropped(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.make_version(OTHER)
        store.set_state(OTHER.version_id, VersionState.ACTIVE)
        store.drop_version(SPEC.version_id)
    with opened(tmp_path) as store:
        assert [version.version_id for version in store.versions()] == [OTHER.version_id]
        assert store.target_version() is None


def test_configuration_changed_back_stops_the_build(tmp_path: Path) -> None:
    with opened(tmp_path, SPEC), contextlib.nullcontext():
        pass
    with opened(tmp_path, OTHER) as store:
        assert store.target_version() == OTHER.version_id
    with opened(tmp_path, SPEC) as store:
        assert store.target_version() is None
        assert store.version(OTHER.version_id).state is VersionState.RETIRED


@pytest.mark.parametrize("dim", [-1, DIM + 1])
def test_dimension_the_embedder_does_not_make_is_refused(tmp_path: Path, dim: int) -> None:
    with (
        opened(tmp_path) as store,
        pytest.raises(InvalidVersion, match=r"from 0 \(all\) to the embedder's 8"),
    ):
        store.make_version(replace(SPEC, dim=dim))


def test_every_field_of_a_spec_survives_the_file(tmp_path: Path) -> None:
    spec = VersionSpec("e", "h", 8, 1, 2, 3, 4, "int8", "sign", "hnsw")
    with opened(tmp_path, spec) as store:
        assert store.version().spec == spec
