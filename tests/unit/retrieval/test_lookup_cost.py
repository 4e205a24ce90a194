"""What reads cost in steps of SQLite: lookups whatever a shard holds, opening whatever was ever written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval.truth.records import Vectors
from retrieval.truth.store import Store
from retrieval.types import Record
from retrieval.versions import VersionSpec

DIM = 4


def steps_of_a_lookup(folder: Path, num_records: int) -> int:
    """Steps of SQLite's virtual machine, in hundreds, to read three passages, their vectors and codes."""
    store = Store(folder)
    try:
        version = store.configure(VersionSpec("packaged", "model", DIM, 180, 20, 2000))
        vectors_NM = np.random.default_rng(0).standard_normal((num_records, DIM)).astype(np.float32)
        records = [Record(f"r{number}", f"apple number {number}") for number in range(num_records)]
        store.upsert("t", "l", records, {version.number: Vectors(vectors_NM)})
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        with store.snapshot() as snapshot:
            changes = snapshot.changes(version.number, 0)
            some = changes.documents[:: num_records // 3][:3]
            chunk_ids = [f"{rows.document_id}:{rows.content_hash[:12]}:0" for rows in some]
            snapshot._db.set_progress_handler(count, 100)
            assert len(snapshot.passages(version.number, chunk_ids, "t")) == 3
            assert len(snapshot.vectors(version.number, chunk_ids)) == 3
            snapshot.token_codes(version.number, chunk_ids)
            snapshot._db.set_progress_handler(None, 0)
        return steps
    finally:
        store.close()


def test_lookup_does_not_grow_with_the_shard(tmp_path):
    few, many = (steps_of_a_lookup(tmp_path / str(count), count) for count in (100, 2000))
    assert many <= few + 2


def test_reading_a_version_from_nothing_does_not_grow_with_the_log(tmp_path):
    store = Store(tmp_path)
    try:
        version = store.configure(VersionSpec("packaged", "model", DIM, 180, 20, 2000))
        vectors_NM = np.ones((50, DIM), dtype=np.float32)
        records = [Record(f"r{number}", "apple") for number in range(50)]
        steps = []
        for turn in range(41):
            store.upsert("t", "l", records, {version.number: Vectors(vectors_NM)})
            if turn % 40 == 0:
                count = iter(range(1_000_000))
                with store.snapshot() as snapshot:
                    snapshot._db.set_progress_handler(lambda count=count: next(count) < 0, 100)
                    changes = snapshot.changes(version.number, 0)
                    snapshot._db.set_progress_handler(None, 0)
                assert (len(changes.documents), changes.removed) == (50, [])
                steps.append(next(count))
        assert steps[1] <= steps[0] + 2
    finally:
        store.close()
