"""Index versions of a shard: making, switching, dropping and naming them, and what each still lacks.

A version lacks a document when another one's chunks of it answer and its own are missing or of older bytes.
Only a version that lacks nothing can become ready or active, so a switch never loses a document.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.errors import InvalidVersion, UnknownVersion
from retrieval.extraction.files import check_name
from retrieval.truth.version_tables import (
    StoredVersion,
    create_tables,
    drop_tables,
    spec_text,
    stored_version,
)
from retrieval.types import DocumentState
from retrieval.versions import VersionInfo, VersionSpec, VersionState

_CONFIGURED = "configured_version"
_TARGET = "target_version"
_EPOCH = "epoch"
_LACKS = (
    "FROM documents AS d LEFT JOIN held_{number} AS h USING (document_id)"
    " WHERE d.active_hash IS NOT NULL AND h.content_hash IS NOT d.active_hash"
)


@dataclass(frozen=True, slots=True)
class NamedVersion:
    """An index version and what it is called."""

    version: StoredVersion
    """The version."""
    aliases: tuple[str, ...]
    """Names that point to it."""


def all_versions(db: sqlite3.Connection) -> list[StoredVersion]:
    """Return the versions, oldest first."""
    return [stored_version(row) for row in db.execute("SELECT * FROM versions ORDER BY number").fetchall()]


def find(db: sqlite3.Connection, name: str | None) -> StoredVersion:
    """Return a version by its id or alias; the active one for None.

    Raises:
        UnknownVersion: There is none.
    """
    if name is None:
        row = db.execute("SELECT * FROM versions WHERE state=?", (VersionState.ACTIVE,)).fetchone()
    else:
        row = db.execute(
            "SELECT * FROM versions WHERE version_id=?"
            " OR version_id=(SELECT version_id FROM aliases WHERE name=?)",
            (name, name),
        ).fetchone()
    if row is None:
        here = ", ".join(repr(version.version_id) for version in all_versions(db)) or "none"
        wanted = "no index version is active" if name is None else f"no index version or alias {name!r}"
        raise UnknownVersion(f"{wanted}; this shard has {here}")
    return stored_version(row)


def numbered(db: sqlite3.Connection, number: int) -> StoredVersion:
    """Return a version by its number; raises UnknownVersion."""
    row = db.execute("SELECT * FROM versions WHERE number=?", (number,)).fetchone()
    if row is None:
        raise UnknownVersion(f"index version number {number} is not here; it was dropped or never made")
    return stored_version(row)


def make(db: sqlite3.Connection, spec: VersionSpec) -> StoredVersion:
    """Return the version of a spec, made if it is not here; the first of a shard is active at once."""
    row = db.execute("SELECT * FROM versions WHERE version_id=?", (spec.version_id,)).fetchone()
    if row is not None:
        return stored_version(row)
    if not 0 <= spec.dim <= spec.model_dim:
        raise InvalidVersion(
            f"dim must be from 0 (all) to the embedder's {spec.model_dim} numbers; got {spec.dim}"
        )
    first = db.execute("SELECT count(*) FROM versions").fetchone()[0] == 0
    state = VersionState.ACTIVE if first else VersionState.BUILDING
    number = db.execute(
        "INSERT INTO versions(version_id, spec, state, made_s) VALUES (?,?,?,?)",
        (spec.version_id, spec_text(spec), state, time.time()),
    ).lastrowid
    if number is None:
        raise InvalidVersion(f"the index version {spec.version_id!r} got no number")
    create_tables(db, number)
    return find(db, spec.version_id)


def configure(db: sqlite3.Connection, spec: VersionSpec) -> StoredVersion:
    """Return the version of the configuration a shard is opened with.

    One that differs from the active version is made the target: it is built beside it and switched to when it
    lacks nothing. A configuration that was there before and is not active now was switched away from on
    purpose; it stays so, also once its version was dropped.
    """
    before = _meta(db, _CONFIGURED)
    _set_meta(db, _CONFIGURED, spec.version_id)
    row = db.execute("SELECT * FROM versions WHERE version_id=?", (spec.version_id,)).fetchone()
    if row is not None and before in (spec.version_id, None):  # None: copied from another shard.
        return stored_version(row)
    if row is None and before == spec.version_id:
        return find(db, None)
    target = target_of(db)
    version = make(db, spec)
    if version.state is VersionState.ACTIVE:
        _set_meta(db, _TARGET, None)
    else:
        _set_meta(db, _TARGET, version.version_id)
        if version.state is VersionState.RETIRED:
            version = set_state(db, version.version_id, VersionState.BUILDING)
    if target is not None and target not in (version.version_id, find(db, None).version_id):
        set_state(db, target, VersionState.RETIRED)  # Nobody waits for it any more.
    return version


def target_of(db: sqlite3.Connection) -> str | None:
    """Return the id of the version that is switched to as soon as it is built, if there is one."""
    return _meta(db, _TARGET)


def epoch_of(db: sqlite3.Connection) -> int:
    """Return how many times the version that answers was switched."""
    return int(_meta(db, _EPOCH) or 0)


def _meta(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
    return None if row is None else row[0]


def _set_meta(db: sqlite3.Connection, key: str, value: str | None) -> None:
    db.execute("DELETE FROM meta WHERE key=?", (key,))
    if value is not None:
        db.execute("INSERT INTO meta VALUES (?,?)", (key, value))


def set_state(db: sqlite3.Connection, name: str, state: VersionState) -> StoredVersion:
    """Move a version; the one that was active is kept, retired.

    Raises:
        UnknownVersion: There is none.
        InvalidVersion: It lacks documents, or it is active and another must become so first.
    """
    version = find(db, name)
    if version.state == state:
        return version
    if version.state is VersionState.ACTIVE:
        raise InvalidVersion(
            f"index version {version.version_id!r} answers; make another active instead of making it {state}"
        )
    if state in (VersionState.READY, VersionState.ACTIVE):
        num_lacking = count_lacking(db, version.number)
        if num_lacking:
            raise InvalidVersion(
                f"index version {version.version_id!r} lacks {num_lacking:,} documents and cannot be "
                f"{state}; wait until it is built"
            )
    if state is VersionState.ACTIVE:
        db.execute("UPDATE versions SET state=? WHERE state=?", (VersionState.RETIRED, VersionState.ACTIVE))
        _set_meta(db, _TARGET, None)
        _set_meta(db, _EPOCH, str(epoch_of(db) + 1))
        # What this version could not take in would be answered by nothing: it must not look ready. What only
        # the version before could not take in answers again.
        db.execute(
            f"UPDATE documents SET state=?, error=NULL FROM held_{version.number} AS h"
            " WHERE h.document_id=documents.document_id AND h.error IS NULL AND state=?"
            " AND documents.content_hash=active_hash",
            (DocumentState.READY, DocumentState.FAILED),
        )
        db.execute(
            f"UPDATE documents SET state=?, error=h.error FROM held_{version.number} AS h"
            " WHERE h.document_id=documents.document_id AND h.error IS NOT NULL AND state=?",
            (DocumentState.FAILED, DocumentState.READY),
        )
    db.execute("UPDATE versions SET state=? WHERE number=?", (state, version.number))
    return find(db, version.version_id)


def drop(db: sqlite3.Connection, name: str) -> None:
    """Remove a version with its tables.

    Raises:
        UnknownVersion: There is none.
        InvalidVersion: It answers, or an alias names it.
    """
    version = find(db, name)
    if version.state is VersionState.ACTIVE:
        raise InvalidVersion(
            f"index version {version.version_id!r} answers and cannot be dropped; switch to another first"
        )
    if aliases := aliases_of(db, version.version_id):
        raise InvalidVersion(
            f"index version {version.version_id!r} is named by the alias {aliases[0]!r}; "
            "point that to another version or remove it first"
        )
    drop_tables(db, version.number)
    db.execute("DELETE FROM versions WHERE number=?", (version.number,))
    if target_of(db) == version.version_id:
        _set_meta(db, _TARGET, None)


def drop_retired(db: sqlite3.Connection, names: Sequence[str]) -> list[StoredVersion]:
    """Remove those of the versions that are retired and that nothing names; return the ones removed."""
    removed = []
    for version in all_versions(db):
        if (
            version.version_id in names
            and version.state is VersionState.RETIRED
            and version.version_id != target_of(db)
            and not aliases_of(db, version.version_id)
        ):
            drop(db, version.version_id)
            removed.append(version)
    return removed


def set_alias(db: sqlite3.Connection, alias: str, name: str | None) -> None:
    """Point an alias to a version, or remove it for None.

    Raises:
        UnknownVersion: There is no such version.
        InvalidVersion: The alias is the id of a version.
    """
    check_name(alias, what="alias")
    if name is None:
        db.execute("DELETE FROM aliases WHERE name=?", (alias,))
        return
    if db.execute("SELECT 1 FROM versions WHERE version_id=?", (alias,)).fetchone():
        raise InvalidVersion(f"{alias!r} is the id of an index version; choose another alias")
    db.execute("INSERT OR REPLACE INTO aliases VALUES (?,?)", (alias, find(db, name).version_id))


def aliases_of(db: sqlite3.Connection, version_id: str) -> tuple[str, ...]:
    """Return the names that point to a version."""
    rows = db.execute("SELECT name FROM aliases WHERE version_id=? ORDER BY name", (version_id,))
    return tuple(row[0] for row in rows)


def count_lacking(db: sqlite3.Connection, number: int) -> int:
    """Return how many documents a version lacks."""
    return db.execute(f"SELECT count(*) {_LACKS.format(number=number)}").fetchone()[0]


def lacking(
    db: sqlite3.Connection, number: int, after_document_id: str, limit: int, since_seq: int
) -> list[str]:
    """Return ids of documents a version lacks, ascending, after an id; see `Store.lacking`."""
    changed = " AND d.document_id IN (SELECT document_id FROM ops WHERE seq>:since)" if since_seq else ""
    rows = db.execute(
        f"SELECT d.document_id {_LACKS.format(number=number)}{changed} AND d.document_id>:after"
        " ORDER BY 1 LIMIT :limit",
        {"since": since_seq, "after": after_document_id, "limit": limit},
    )
    return [row[0] for row in rows]


def named(db: sqlite3.Connection) -> list[NamedVersion]:
    """Return the versions and their aliases, oldest first; unlike `infos`, no table is counted."""
    return [NamedVersion(version, aliases_of(db, version.version_id)) for version in all_versions(db)]


def infos(db: sqlite3.Connection) -> list[VersionInfo]:
    """Return all versions and how far each is, oldest first."""
    num_wanted = db.execute("SELECT count(active_hash) FROM documents").fetchone()[0]
    found = []
    for version in all_versions(db):
        held = db.execute(
            f"SELECT count(*), coalesce(sum(num_chunks), 0) FROM held_{version.number}"
        ).fetchone()
        found.append(
            VersionInfo(
                version_id=version.version_id,
                spec=version.spec,
                state=version.state,
                num_documents=num_wanted - count_lacking(db, version.number),
                num_wanted=num_wanted,
                num_chunks=held[1],
                made_s=version.made_s,
                aliases=aliases_of(db, version.version_id),
            )
        )
    return found
