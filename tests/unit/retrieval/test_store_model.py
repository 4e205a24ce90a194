"""The store against a dictionary: random operations, reopened at random, one replica that follows."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from small_store import LIBRARY, SPEC, TENANT, broken_rules, finish, seen, upsert

from retrieval.errors import InvalidVersion, UnknownDocument
from retrieval.truth.store import Store, document_id_of
from retrieval.types import DocumentState
from retrieval.versions import VersionState

VARIANT = replace(SPEC, vectors="float16")
NAMES = st.sampled_from([f"n{number}" for number in range(6)])
TEXTS = st.lists(st.sampled_from(["apple", "pear", "fig", "x_1", "date"]), min_size=1, max_size=3).map(
    " ".join
)


class StoreMachine(RuleBasedStateMachine):
    """Every rule is one acknowledged write; the invariants read everything back."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.answers: dict[str, list[str]] = {}
        self.queued: dict[str, str] = {}
        self.seq = 0

    @initialize()
    def open(self) -> None:
        self.store = Store(self.path / "primary")
        self.store.configure(SPEC)
        self.replica = Store(self.path / "replica")

    def teardown(self) -> None:
        try:
            self._follow(3)
        finally:
            self.store.close()
            self.replica.close()
        broken = broken_rules(self.path / "primary"), broken_rules(self.path / "replica")
        self.folder.cleanup()
        assert broken == ([], [])

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.path / "primary")

    @rule(records=st.dictionaries(NAMES, TEXTS, min_size=1, max_size=4))
    def upsert(self, records: dict[str, str]) -> None:
        self.seq = upsert(self.store, *records.items(), words=float(len(records)))
        for name, text in records.items():
            self.answers[name] = [text]
            self.queued.pop(name, None)

    @rule(name=NAMES, text=TEXTS, year=st.none() | st.integers(0, 3))
    def add(self, name: str, text: str, year: int | None) -> None:
        metadata = None if year is None else {"year": year}
        document = self.store.add(TENANT, LIBRARY, name, "text/plain", text.encode(), metadata)
        if document.state is DocumentState.READY:
            self.queued.pop(name, None)
        else:
            self.queued[name] = text
        if year is not None:
            assert document.metadata == {"year": year}

    @rule()
    def finish_one(self) -> None:
        work = self.store.claim()
        assert (work is None) == (not self.queued)
        if work is not None:
            assert finish(self.store, work)
            self.answers[work.name] = self.queued.pop(work.name).split(" ")

    @rule()
    def fail_one(self) -> None:
        work = self.store.claim()
        if work is not None:
            assert self.store.advance(work, DocumentState.FAILED, "torn")
            del self.queued[work.name]

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        here = {document.name for document in self.store.documents(None, TENANT)}
        try:
            self.seq = self.store.delete(document_id_of(TENANT, LIBRARY, name), TENANT)
            assert name in here
        except UnknownDocument:
            assert name not in here
        self.answers.pop(name, None)
        self.queued.pop(name, None)

    @rule()
    def build_and_switch(self) -> None:
        active = self.store.version()
        other = SPEC if active.spec == VARIANT else VARIANT
        target = self.store.make_version(other)
        while lacking := self.store.lacking(target.number):
            assert self.store.copy_rows(active, target, lacking) == len(lacking)
        self.store.set_state(target.version_id, VersionState.ACTIVE)

    @rule()
    def drop_the_other(self) -> None:
        for version in self.store.versions():
            if version.state is not VersionState.ACTIVE:
                self.store.drop_version(version.version_id)
            else:
                try:
                    self.store.drop_version(version.version_id)
                    raise AssertionError("the active version was dropped")
                except InvalidVersion:
                    pass

    @rule(share=st.floats(0, 1))
    def prune(self, share: float) -> None:
        number = self.store.version().number
        with self.store.snapshot() as snapshot:
            rows = [int(row) for block in snapshot.blocks(number) for row in block.row_ids]
        if rows:
            self.store.prune_terms(number, rows[int(share * (len(rows) - 1))])

    @rule(limit=st.integers(1, 5))
    def replicate(self, limit: int) -> None:
        self._follow(limit)

    def _follow(self, limit: int) -> None:
        while True:
            batch = self.store.changes_since(self.replica.seq(), limit)
            self.replica.apply(batch)
            if not batch.ops:
                break
        assert self.replica.seq() == self.store.seq()
        assert seen(self.replica) == self.answers
        assert self.replica.documents(None, TENANT) == self.store.documents(None, TENANT)

    @invariant()
    def everything_is_as_acknowledged(self) -> None:
        if not hasattr(self, "store"):
            return
        assert seen(self.store) == self.answers
        assert self.store.seq() >= self.seq
        waiting = {
            document.name
            for document in self.store.documents(None, TENANT)
            if document.state is DocumentState.QUEUED
        }
        assert waiting == set(self.queued)


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
