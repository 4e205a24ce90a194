"""A process to be killed, and the server that forks one a round.

The server imports everything once and never opens a shard or starts a thread, so a fork is safe and takes
milliseconds. A victim tells each operation before and after it on the pipe it inherits, one JSON line each;
one thread writes documents, the other compacts, copies and switches versions beside it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import traceback
from pathlib import Path

import faiss  # noqa: F401 - so that no victim has to import it

from benchmarks.durability_content import (
    CONFIG,
    FIRST_SPEC,
    LIBRARY,
    NUM_FILES,
    NUM_RECORDS,
    SPECS,
    TENANT,
    Contents,
    embedded,
    id_of,
    text_of,
    vectors_of,
)
from retrieval.ingestion.version_builder import copyable
from retrieval.shard.shard import Shard
from retrieval.truth.records import Vectors
from retrieval.truth.store import Holding, Store
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import DocumentText, Record, SearchRequest
from retrieval.versions import VersionState

_COPIED = 200


class Victim:
    """Works on a shard until it is killed."""

    def __init__(self, folder: Path, seed: int, token: int, pipe: int) -> None:
        self._pipe = pipe
        self._choose = random.Random(seed)
        self._aside = random.Random(seed + 1)
        self._token = token
        self._telling = threading.Lock()
        # A version is switched to between two writes of records, as the write gate of retrieval does it.
        self._records = threading.Lock()
        self._copies = folder / "copies"
        self._shard = Shard(folder / "shard", CONFIG)
        self._store: Store = self._shard.store
        if not self._store.stored_versions():
            self._store.configure(FIRST_SPEC)
        self._seen = Contents()
        with self._store.database.read() as db:
            for name, active_hash in db.execute("SELECT name, active_hash FROM documents"):
                (self._seen.answering if active_hash else self._seen.queued)[name] = 0
        self._tell("writer", "open")

    def _tell(self, thread: str, event: str, **values: object) -> None:
        line = json.dumps({"thread": thread, "event": event, **values}) + "\n"
        data = line.encode()
        with self._telling:
            while data:
                data = data[os.write(self._pipe, data) :]

    def run(self) -> None:
        """Work for ever."""
        threading.Thread(target=self._maintain, name="maintenance", daemon=True).start()
        target = self._choose.choice((40, 300, 900, 1700))
        while True:
            grow = len(self._seen.answering) < target
            step = self._choose.random()
            with self._records:
                if step < (0.7 if grow else 0.5):
                    self._upsert()
                elif step < 0.78:
                    self._add()
                elif step < 0.9:
                    self._finish()
                else:
                    self._delete(1 if grow else 60)
                if self._choose.random() < 0.05:
                    self._search()

    def _change(self, kind: str, names: list[str], token: int = 0) -> None:
        self._tell("writer", "begin", kind=kind, names=names, token=token)
        self._seen = self._seen.after({"kind": kind, "names": names, "token": token})

    def _upsert(self) -> None:
        size = self._choose.choice((1, 16, 128, 512, 1000))
        names = [f"r{number}" for number in self._choose.sample(range(NUM_RECORDS), size)]
        first, self._token = self._token, self._token + size
        texts = [text_of(name, first + place) for place, name in enumerate(names)]
        records = [
            Record(name, text, metadata={"year": 1.0}) for name, text in zip(names, texts, strict=True)
        ]
        version = self._store.version()
        self._change("upsert", names, first)
        self._store.upsert(TENANT, LIBRARY, records, {version.number: Vectors(vectors_of(texts))})
        self._tell("writer", "done")

    def _add(self) -> None:
        name, token = f"f{self._choose.randrange(NUM_FILES)}", self._token
        self._token += 1
        self._change("add", [name], token)
        self._store.add(TENANT, LIBRARY, name, "text/plain", text_of(name, token).encode(), {"year": 2.0})
        self._tell("writer", "done")

    def _finish(self) -> None:
        work = self._store.claim()
        if work is None:
            return
        text, version = work.data.decode(), self._store.version()
        self._change("finish", [work.name], int(text.split(" ")[1].removeprefix("tok")))
        made = embedded(work.name, text, version.spec.chunk_tokens)
        if not self._store.finish(work, "text/plain", DocumentText(text), made, version):
            self._tell("writer", "wrong", what=f"'{work.name}' was not taken in")
        self._tell("writer", "done")

    def _delete(self, count: int) -> None:
        names = list(self._seen.answering)
        for name in self._choose.sample(names, min(count, len(names))):
            self._change("delete", [name])
            self._store.delete(id_of(name), TENANT)
            self._tell("writer", "done")

    def _search(self) -> None:
        """Bring the index up to date, which may start a compaction; a deleted document must not be found."""
        name = f"r{self._choose.randrange(NUM_RECORDS)}"
        text = text_of(name, self._choose.randrange(max(self._token, 1)))
        with self._store.snapshot() as snapshot:
            dim = snapshot.version().dim
        request = SearchRequest(text, 50, tenant=TENANT)
        (found,) = self._shard.candidates(None, [request], vectors_of([text])[:, :dim])
        ids = {chunk_id.partition(":")[0] for chunk_id, _ in (*found.dense, *found.lexical)}
        if ids - {id_of(one) for one in self._seen.answering}:
            self._tell("writer", "wrong", what="a search returned a deleted document")

    def _maintain(self) -> None:
        steps = (self._compact, self._copy, self._build, self._build, self._drop)
        try:
            while True:
                self._aside.choice(steps)()
        except Exception as error:
            # The thread's boundary: the judge must hear of it.
            self._tell("maintenance", "wrong", what=f"{type(error).__name__}: {error}")
            raise

    def _compact(self) -> None:
        self._tell("maintenance", "begin", kind="compact")
        self._shard.compact()
        self._tell("maintenance", "done")

    def _copy(self) -> None:
        if self._aside.random() < 0.7:
            return
        with self._records:
            self._tell("maintenance", "begin", kind="snapshot", folder=str(self._copies))
            self._shard.snapshot(self._copies / str(self._aside.randrange(1 << 30)))
            self._tell("maintenance", "done")

    def _build(self) -> None:
        """Make a version beside the active one, fill it while documents change, and switch to it."""
        spec = self._aside.choice(SPECS)
        if spec.version_id == self._store.version().version_id:
            return
        self._tell("maintenance", "begin", kind="make", version=spec.version_id)
        made = self._store.make_version(spec)
        if made.state is VersionState.RETIRED:
            self._store.set_state(made.version_id, VersionState.BUILDING)
        self._tell("maintenance", "done")
        self._tell("maintenance", "begin", kind="fill")
        for _ in range(40):
            if not self._fill(made):
                break
        self._tell("maintenance", "done")
        with self._records:
            while self._fill(made):
                pass
            self._tell("maintenance", "begin", kind="switch", version=made.version_id)
            self._store.set_state(made.version_id, VersionState.ACTIVE)
            self._tell("maintenance", "done")

    def _fill(self, version: StoredVersion) -> int:
        """Give a version some of what it lacks; return how many documents that were."""
        active = self._store.version()
        lacking = self._store.lacking(version.number, "", _COPIED)
        if copyable(active.spec, version.spec):
            self._store.copy_rows(active, version, lacking)
            return len(lacking)
        stored = {document_id: self._store.stored_text(document_id) for document_id in lacking}
        holdings = [
            Holding(document_id, one.content_hash,
                    embedded(one.name, one.document.text, version.spec.chunk_tokens))
            for document_id, one in stored.items()
            if one is not None
        ]  # fmt: skip
        self._store.hold(version.number, holdings)
        return len(lacking)

    def _drop(self) -> None:
        active = self._store.version().version_id
        others = [one for one in self._store.stored_versions() if one.version_id != active]
        if others:
            dropped = self._aside.choice(others).version_id
            self._tell("maintenance", "begin", kind="drop", version=dropped)
            self._shard.drop_version(dropped)
            self._tell("maintenance", "done")


def serve(folder: Path, pipe: int) -> None:
    """Fork a victim for each line `seed token` on stdin; print its id, and `dead` once it is."""
    for line in sys.stdin:
        seed, token = map(int, line.split())
        child = os.fork()
        if not child:
            try:
                Victim(folder, seed, token, pipe).run()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # Never back into the server's loop.
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"dead {os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
