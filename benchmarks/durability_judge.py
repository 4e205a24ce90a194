"""Opens a shard after a kill and compares everything in it with what was acknowledged.

Read three ways: the file past the store (no row of a deleted document in any table), the store (texts and
vectors of every version), and searches (the vector index lists exactly the live chunks; terms of replaced and
deleted contents find nothing).
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.durability_content import (
    CONFIG,
    TENANT,
    Contents,
    cut,
    hash_of,
    id_of,
    stored_vectors_of,
    text_of,
    vectors_of,
)
from retrieval.errors import IndexUnavailable
from retrieval.shard.shard import Shard
from retrieval.truth.store import DATABASE_NAME
from retrieval.truth.stored import TextRow, chunk_id_of
from retrieval.truth.version_tables import StoredVersion
from retrieval.types import DocumentState, SearchRequest

_ALL = 100_000
_REBUILD_S = 30.0
_SAMPLE = 12


@dataclass(slots=True)
class Verdict:
    """What is wrong, by kind; every list is empty when the shard kept its promises."""

    acknowledged_lost: list[str] = field(default_factory=list[str])
    half_written: list[str] = field(default_factory=list[str])
    deleted_returned: list[str] = field(default_factory=list[str])
    wrong_answers: list[str] = field(default_factory=list[str])
    """Searches that differ from what the store holds, and versions that are mixed."""

    def add(self, other: Verdict) -> None:
        """Take in another verdict."""
        for name in ("acknowledged_lost", "half_written", "deleted_returned", "wrong_answers"):
            getattr(self, name).extend(getattr(other, name))


def judge(
    shard: Shard, possible: Sequence[Contents], gone: Sequence[tuple[str, int]], *, whole: bool
) -> tuple[Verdict, Contents]:
    """Return what is wrong with an open shard, and which of the possible contents it has.

    Args:
        shard: Opened after the kill.
        possible: What was acknowledged, and the same after the operation that was under way.
        gone: Names and tokens that were replaced or deleted lately.
        whole: Whether SQLite's own check reads the whole file.
    """
    verdict = Verdict()
    with shard.store.snapshot() as snapshot:
        active = snapshot.version()
        rows = {version: snapshot.rows_with_text(version.number, 0, None, TENANT, _ALL)
                for version in snapshot.versions()}  # fmt: skip
    found = _tokens(verdict, active, rows[active])
    listed = _listed(shard.store.path)
    queued = {name: digest for name, digest, state in listed if state == DocumentState.QUEUED}
    settled = next(
        (one for one in possible
         if one.answering == found and _hashes(one.queued) == queued),
        None,
    )  # fmt: skip
    if settled is None:
        _explain(verdict, possible, found, queued)
        settled = Contents(found, dict(possible[0].queued))
    live = {*settled.answering, *settled.queued}
    for version, held in rows.items():
        if version is not active:
            _tokens(verdict, version, held)
            stray = {row.name for row in held} - live
            verdict.deleted_returned += [f"{name} in version {version.number}" for name in stray]
    verdict.deleted_returned += [f"{name} is listed" for name, _, _ in listed if name not in live]
    verdict.half_written += broken_rules(shard.store.path, whole=whole)
    _judge_dense(verdict, shard, active, settled)
    _judge_terms(verdict, shard, active, settled, gone)
    return verdict, settled


def _listed(path: Path) -> list[tuple[str, str, str]]:
    """Return name, accepted content hash and state of every document in the file."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT name, content_hash, state FROM documents").fetchall()


def _hashes(queued: dict[str, int]) -> dict[str, str]:
    return {name: hash_of(name, token) for name, token in queued.items()}


def _tokens(verdict: Verdict, version: StoredVersion, rows: Sequence[TextRow]) -> dict[str, int]:
    """Return the token of each document, whose chunks must be whole, and cut and stored as the version is."""
    documents: dict[str, list[TextRow]] = defaultdict(list)
    for row in rows:
        documents[row.name].append(row)
    tokens: dict[str, int] = {}
    texts, vectors = [], []
    for name, chunks in documents.items():
        chunks.sort(key=lambda row: row.ordinal)
        words = " ".join(row.text for row in chunks).split(" ")
        token = int(words[1].removeprefix("tok")) if len(words) > 1 and words[1].startswith("tok") else -1
        wanted = [chunk.text for chunk in cut(name, text_of(name, token), version.spec.chunk_tokens)]
        if [row.text for row in chunks] != wanted or chunks[0].num_chunks != len(chunks):
            verdict.half_written.append(f"version {version.number} holds part of '{name}', or another cut")
        tokens[name] = token
        texts += [row.text for row in chunks]
        vectors += [row.vector_D for row in chunks]
    if texts and not np.array_equal(np.stack(vectors), stored_vectors_of(version.spec, texts)):
        verdict.half_written.append(f"version {version.number} holds vectors of other texts")
    return tokens


def _explain(
    verdict: Verdict, possible: Sequence[Contents], found: dict[str, int], queued: dict[str, str]
) -> None:
    """Say what differs from every possible contents: against the acknowledged ones, name by name."""
    acknowledged, last = possible[0], possible[-1]
    changed = {name for name in {*acknowledged.answering, *last.answering}
               if acknowledged.answering.get(name) != last.answering.get(name)}  # fmt: skip
    new = {name for name in changed if found.get(name) == last.answering.get(name)}
    if new and new != changed:
        verdict.half_written.append(f"{len(new)} of {len(changed)} documents of one write")
    for name in {*found, *acknowledged.answering} - changed:
        if name not in acknowledged.answering:
            verdict.deleted_returned.append(f"{name} answers")
        elif found.get(name) != acknowledged.answering[name]:
            verdict.acknowledged_lost.append(
                f"{name}: {found.get(name)} is not {acknowledged.answering[name]}"
            )
    wanted = [_hashes(one.queued) for one in possible]
    if queued not in wanted:
        differs = {name for name in {*queued, *wanted[0]} if queued.get(name) != wanted[0].get(name)}
        verdict.acknowledged_lost.append(f"the queue differs in {sorted(differs)[:5]}")
    if not any((verdict.half_written, verdict.deleted_returned, verdict.acknowledged_lost)):
        verdict.half_written.append("an operation is visible in part: its documents or its queue, not both")


def _judge_dense(verdict: Verdict, shard: Shard, active: StoredVersion, settled: Contents) -> None:
    """The vector index must list exactly the live chunks, each with its own score."""
    texts: dict[str, str] = {}
    for name, token in settled.answering.items():
        digest = hash_of(name, token)
        for chunk in cut(name, text_of(name, token), active.spec.chunk_tokens):
            texts[chunk_id_of(id_of(name), digest, chunk.ordinal)] = chunk.text
    query_1D = np.ascontiguousarray(vectors_of(["probe"])[:, : active.dim])
    request = SearchRequest("probe", max(len(texts), 1) + 50, mode="dense", tenant=TENANT, exact=True)
    (found,) = shard.candidates(None, [request], query_1D)
    listed = dict(found.dense)
    owners = {id_of(name) for name in settled.answering}
    stray = [one for one in listed if one not in texts]
    dead = [one for one in stray if one.partition(":")[0] not in owners]
    verdict.deleted_returned += [f"the vector index returns {one}" for one in dead]
    missing = texts.keys() - listed.keys()
    if missing or len(stray) > len(dead):
        verdict.wrong_answers.append(f"the vector index lacks {len(missing)} chunks, has {len(stray)} strays")
    elif texts:
        ids = list(texts)
        scores_N = (stored_vectors_of(active.spec, [texts[one] for one in ids]) @ query_1D.T)[:, 0]
        if not np.allclose(scores_N, [listed[one] for one in ids if one in listed], atol=1e-4):
            verdict.wrong_answers.append("the vector index gives other scores than the stored vectors")


def _judge_terms(
    verdict: Verdict,
    shard: Shard,
    active: StoredVersion,
    settled: Contents,
    gone: Sequence[tuple[str, int]],
) -> None:
    """A token finds its own document, and nothing once it was replaced or deleted."""
    live = random.Random(len(settled.answering)).sample(
        sorted(settled.answering.items()), min(_SAMPLE, len(settled.answering))
    )
    dead = [(name, token) for name, token in gone if settled.answering.get(name) != token]
    asked = [(name, token, True) for name, token in live] + [(name, token, False) for name, token in dead]
    if not asked:
        return
    requests = [SearchRequest(f"tok{token}", 10, mode="lexical", tenant=TENANT) for _, token, _ in asked]
    results = shard.candidates(None, requests, np.zeros((len(requests), active.dim), dtype=np.float32))
    for (name, token, lives), found in zip(asked, results, strict=True):
        if found.skipped:
            continue  # The lexical leg says that it is being rebuilt; `wait_rebuilt` comes back to it.
        owners = {chunk_id.partition(":")[0] for chunk_id, _ in found.lexical}
        if lives and owners != {id_of(name)}:
            verdict.wrong_answers.append(f"tok{token} finds {len(owners)} documents, not '{name}' alone")
        elif not lives and owners:
            verdict.deleted_returned.append(f"tok{token} of '{name}' is still found")


def wait_rebuilt(shard: Shard) -> bool:
    """Wait until both legs of the active version answer; False when they do not in time."""
    version = shard.store.version()
    give_up_at = time.monotonic() + _REBUILD_S
    nothing_1D = np.zeros((1, version.dim), dtype=np.float32)
    while time.monotonic() < give_up_at:
        request = SearchRequest("amber", 1, mode="lexical", tenant=TENANT)
        (found,) = shard.candidates(None, [request], nothing_1D)
        if not found.skipped:
            return True
        time.sleep(0.02)
    return False


def broken_rules(path: Path, *, whole: bool) -> list[str]:
    """Return what is wrong inside a shard's file, read past the store."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        found: list[str] = []
        if whole:
            found += [row[0] for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
        numbers = [row[0] for row in db.execute("SELECT number FROM versions")]
        if db.execute("SELECT count(*) FROM versions WHERE state='active'").fetchone() != (1,):
            found.append("not exactly one version is active")
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
        rules = {}
        for table in tables:
            columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            if "document_id" in columns and table not in ("documents", "ops"):
                rules[f"{table} has rows of no document"] = (
                    f"SELECT count(*) FROM {table} WHERE document_id NOT IN"
                    " (SELECT document_id FROM documents)"
                )
            if table.startswith("chunks_") and int(table[7:]) not in numbers:
                found.append(f"table {table} of no version")
        for n in numbers:
            db.execute(f"INSERT INTO fts_{n}(fts_{n}, rank) VALUES ('integrity-check', 1)")
            rules[f"chunks_{n} differ from held_{n}"] = (
                f"SELECT count(*) FROM chunks_{n} AS c LEFT JOIN held_{n} AS h USING (document_id)"
                " WHERE h.content_hash IS NOT c.content_hash"
            )
            for table, key in ((f"fts_{n}", "rowid"), (f"tokens_{n}", "row_id")):
                rules[f"{table} has rows of no chunk"] = (
                    f"SELECT count(*) FROM {table} WHERE {key} NOT IN (SELECT row_id FROM chunks_{n})"
                )
        return found + [rule for rule, sql in rules.items() if db.execute(sql).fetchone()[0]]


def judge_copy(folder: Path, scratch: Path, expected: Contents | None) -> Verdict:
    """Restore a snapshot and judge it; one never acknowledged (None) may be refused, not half restored.

    Args:
        folder: What `Shard.snapshot` wrote or had begun to write.
        scratch: Where to restore it; removed afterwards.
        expected: Contents at the moment of the snapshot, None where it was not acknowledged.
    """
    verdict = Verdict()
    try:
        shard = Shard.restore(scratch, folder, CONFIG)
    except IndexUnavailable as error:
        if expected is not None:
            verdict.acknowledged_lost.append(f"an acknowledged snapshot cannot be restored: {error}")
        return verdict
    try:
        if expected is not None:
            verdict, _ = judge(shard, [expected], [], whole=False)
        else:
            verdict.half_written += broken_rules(shard.store.path, whole=True)
    finally:
        shard.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return verdict


def tear(folder: Path, choose: random.Random) -> bool:
    """Damage one file of the answering version's base segment as a torn write would; False without one."""
    if not (folder / DATABASE_NAME).exists():
        return False
    with contextlib.closing(sqlite3.connect(folder / DATABASE_NAME)) as db:
        active = db.execute("SELECT number FROM versions WHERE state='active'").fetchone()
    segments = folder / "segments" / str(active[0] if active else "none")
    files = [path for path in segments.rglob("*") if path.is_file() and path.stat().st_size]
    if not files:
        return False
    path = choose.choice(files)
    data = bytearray(path.read_bytes())
    how = choose.choice(("cut", "zero", "flip", "remove"))
    at = choose.randrange(len(data))
    if how == "remove":
        path.unlink()
        return True
    if how == "cut":
        del data[at:]
    elif how == "zero":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    else:
        data[at] ^= 0xFF
    path.write_bytes(data)
    return True
