"""A process to be killed: writes to one store for ever; tells each operation before and after on stdout."""

from __future__ import annotations

import contextlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

from small_store import LIBRARY, SPEC, TENANT, finish, upsert

from retrieval.errors import UnknownDocument
from retrieval.truth.store import Store, document_id_of
from retrieval.versions import VersionState

WORDS = ("apple", "pear", "fig", "date", "x_1", "plum")
VARIANT = replace(SPEC, vectors="float16")


def tell(kind: str, **values: object) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **values}) + "\n")
    sys.stdout.flush()


class Victim:
    """Chooses operations at random; each is told with what every document answers if it happens."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.choose = random.Random(seed)

    def text(self) -> str:
        return " ".join(self.choose.choice(WORDS) for _ in range(self.choose.randint(1, 4)))

    def upsert(self) -> None:
        names = {f"n{self.choose.randrange(60)}" for _ in range(self.choose.choice((1, 1, 8, 40)))}
        records = {name: self.text() for name in names}
        tell("begin", changes={name: [text] for name, text in records.items()})
        upsert(self.store, *records.items(), year=1.0)
        tell("done")

    def add(self) -> None:
        name, text = f"n{self.choose.randrange(60)}", self.text()
        self.store.add(TENANT, LIBRARY, name, "text/plain", text.encode(), {"year": 2})
        tell("added", name=name, text=text)
        work = self.store.claim()
        if work is not None:
            tell("begin", changes={work.name: work.data.decode().split(" ")})
            finish(self.store, work)
            tell("done")

    def delete(self) -> None:
        name = f"n{self.choose.randrange(60)}"
        tell("begin", changes={name: None})
        with contextlib.suppress(UnknownDocument):
            self.store.delete(document_id_of(TENANT, LIBRARY, name), TENANT)
        tell("done")

    def build(self) -> None:
        active = self.store.version()
        other = self.store.make_version(SPEC if active.spec == VARIANT else VARIANT)
        lacking = self.store.lacking(other.number, "", 20)
        self.store.copy_rows(active, other, lacking)
        if len(lacking) < 20:
            self.store.set_state(other.version_id, VersionState.ACTIVE)
            if self.choose.random() < 0.5:
                self.store.drop_version(active.version_id)

    def prune(self) -> None:
        version = self.store.version()
        with self.store.snapshot() as snapshot:
            last = max((int(block.row_ids[-1]) for block in snapshot.blocks(version.number)), default=0)
        self.store.prune_terms(version.number, self.choose.randint(0, last))

    def backup(self) -> None:
        self.store.backup(self.store.path.parent / "backup" / self.store.path.name)


def main(folder: str, seed: str) -> None:
    store = Store(Path(folder))
    store.configure(SPEC)
    tell("open")
    victim = Victim(store, int(seed))
    steps = [victim.upsert] * 6 + [victim.add] * 4 + [victim.delete] * 3 + [victim.build] * 2
    steps += [victim.prune, victim.backup]
    while True:
        victim.choose.choice(steps)()


main(*sys.argv[1:])
