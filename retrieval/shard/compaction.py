"""Building a base segment in the background: from the one before and the log since, or from the store alone.

It reads one snapshot on a connection of its own and files that never change, so neither searches nor writers
wait for it. What it made is checked against the store before anyone opens it.

Legend: N chunks, D dimensions.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.lexical.builder import LexicalBuilder
from retrieval.lexical.lexical_base import LexicalBase
from retrieval.shard.base_segment import (
    LEXICAL_FOLDER,
    MATRIX_NAME,
    VECTORS_FOLDER,
    base_row_id,
    read_contents,
    read_matrix,
    write_contents,
)
from retrieval.shard.columns import Columns
from retrieval.shard.contents import Contents
from retrieval.shard.rows import RowTable
from retrieval.shard.segments_on_disk import Manifest, SegmentFolders
from retrieval.truth.snapshot import Snapshot
from retrieval.truth.store import Store
from retrieval.truth.version_tables import StoredVersion
from retrieval.vectors.kinds import build_base
from retrieval.vectors.settings import VectorSettings
from retrieval.vectors.types import IndexTooLarge, NoSuchDevice, VectorBase

_COPIED_ROWS = 8192
_SAMPLED_ROWS = 64
_YIELD_ROWS = 64
_YIELD_S = 0.0005

_log = logging.getLogger(__name__)


class BuildStopped(Exception):
    """The shard is closing; the segment was given up."""


class SegmentDiffers(IndexUnavailable):
    """What was built is not what the store holds."""


def build_segment(
    store: Store,
    version: StoredVersion,
    folders: SegmentFolders,
    config: RetrievalConfig,
    before: tuple[Path, Manifest] | None,
    stopped: Callable[[], bool],
    queries_QD: np.ndarray | None = None,
) -> tuple[Path, Manifest]:
    """Publish a base segment of everything a version holds now and return its folder.

    Args:
        store: The shard's truth.
        version: Which version.
        folders: Where its segments are.
        config: What the vectors' structure is tuned to.
        before: A checked segment to start from; None to read everything from the store.
        stopped: Asked now and then; once true, the build is given up.
        queries_QD: float32[Q, D] of real queries to tune on; None to hold rows out.

    Raises:
        BuildStopped: `stopped` said so.
        StorageFull: The disk has no room; nothing was published.
        SegmentDiffers: What was built is not what the store holds; it was thrown away.
        IndexUnavailable: The folder cannot be written.
    """

    def fill(folder: Path) -> Manifest:
        with store.snapshot() as snapshot:
            contents = (
                _from_store(snapshot, version, folder, stopped)
                if before is None
                else _from_segment(snapshot, version, folder, before, stopped)
            )
            mark = snapshot.mark(contents.seq)
        manifest = Manifest(
            version.version_id, contents.seq, mark, contents.rows.num_live, version.dim, version.spec.kind
        )
        (folder / VECTORS_FOLDER).mkdir()
        base = _built_base(
            version, read_matrix(folder, manifest), config, folder / VECTORS_FOLDER, queries_QD
        )
        base.save(folder / VECTORS_FOLDER)
        details = {"measured_recall": base.measured_recall}
        return Manifest(
            manifest.version_id, manifest.seq, mark, manifest.num_rows, version.dim, base.kind, details
        )

    return folders.publish(fill)


def _built_base(
    version: StoredVersion,
    matrix_ND: np.ndarray,
    config: RetrievalConfig,
    folder: Path,
    queries_QD: np.ndarray | None,
) -> VectorBase:
    """Return the vectors' structure; the choice is ours where the kind asked for cannot be had here.

    One of our choice has a recall above the floor.
    """
    kind, settings = version.spec.kind, VectorSettings.of(config)
    try:
        base = build_base(matrix_ND, kind, settings, queries_QD, folder)
    except (IndexTooLarge, NoSuchDevice) as error:
        _log.warning(
            "index version '%s' cannot be of kind '%s' on this machine: %s; one that fits stands in for it",
            version.version_id,
            kind,
            error,
        )
        device = "cpu" if isinstance(error, NoSuchDevice) else settings.device
        kind, settings = "auto", replace(settings, device=device)
        _empty(folder)
        base = build_base(matrix_ND, kind, settings, queries_QD, folder)
    recall, floor = base.measured_recall, config.recall_floor
    if recall is None or recall >= floor:
        return base
    _log.warning(
        "index version '%s': %s reaches recall %.3f, below recall_floor=%g; %s",
        version.version_id,
        base.kind,
        recall,
        floor,
        "exact is used instead" if kind == "auto" else "it was asked for by name and is used",
    )
    if kind != "auto":
        return base
    _empty(folder)
    return build_base(matrix_ND, "exact", settings)


def _empty(folder: Path) -> None:
    """Remove what a structure that is not used after all has written."""
    shutil.rmtree(folder)
    folder.mkdir()


def _from_store(
    snapshot: Snapshot, version: StoredVersion, folder: Path, stopped: Callable[[], bool]
) -> Contents:
    """Write everything but the vectors' structure, reading every row of the store."""
    columns, last = Columns(), ""
    parts: dict[str, list[np.ndarray]] = {
        "row_ids": [], "codes": [], "ordinals": [], "pages": [], "num_terms": []
    }  # fmt: skip
    with (folder / MATRIX_NAME).open("wb") as matrix:
        for block in snapshot.blocks(version.number):
            _check(stopped)
            # The first document may go on from the block before.
            goes_on = int(block.documents[0].document_id == last)
            first = columns.extend(block.documents[goes_on:]) - goes_on
            last = block.documents[-1].document_id
            parts["codes"].append((first + block.document_of).astype(np.int32))
            for name in ("row_ids", "ordinals", "pages", "num_terms"):
                parts[name].append(getattr(block, name))
            block.vectors_ND.astype("<f4", copy=False).tofile(matrix)
    arrays = {name: np.concatenate(blocks) if blocks else np.empty(0) for name, blocks in parts.items()}
    contents = Contents(RowTable(arrays), columns, snapshot.seq())
    builder = LexicalBuilder(folder / LEXICAL_FOLDER)
    _add_terms(snapshot, version, builder, contents.rows.row_ids_N, 0, 0, stopped)
    builder.finish(len(contents.rows))
    write_contents(folder, contents)
    _verify(snapshot, version, folder, contents)
    return contents


def _from_segment(
    snapshot: Snapshot,
    version: StoredVersion,
    folder: Path,
    before: tuple[Path, Manifest],
    stopped: Callable[[], bool],
) -> Contents:
    """Write everything but the vectors' structure, reading only what changed since a segment."""
    contents, matrix_ND = read_contents(*before), read_matrix(*before)
    num_base, last_row_id = len(contents.rows), base_row_id(contents)
    applied = contents.apply(snapshot.changes(version.number, contents.seq))
    rows = contents.rows
    alive_N = rows.alive_N
    with (folder / MATRIX_NAME).open("wb") as matrix:
        for start in range(0, num_base, _COPIED_ROWS):
            _check(stopped)
            stop = min(start + _COPIED_ROWS, num_base)
            matrix_ND[start:stop][alive_N[start:stop]].tofile(matrix)
        for vectors_ND in applied.vectors:
            vectors_ND.astype("<f4", copy=False).tofile(matrix)
    num_kept = int(np.count_nonzero(alive_N[:num_base]))
    builder = LexicalBuilder(folder / LEXICAL_FOLDER)
    moved = np.where(alive_N[:num_base], np.cumsum(alive_N[:num_base]) - 1, -1)
    builder.add_base(LexicalBase(before[0] / LEXICAL_FOLDER), moved)
    _add_terms(snapshot, version, builder, rows.row_ids_N[num_base:], last_row_id, num_kept, stopped)
    builder.finish(rows.num_live)
    write_contents(folder, contents)
    _verify(snapshot, version, folder, contents)
    return contents


def _add_terms(
    snapshot: Snapshot,
    version: StoredVersion,
    builder: LexicalBuilder,
    row_ids: np.ndarray,
    after_row_id: int,
    first_position: int,
    stopped: Callable[[], bool],
) -> None:
    """Add the terms of rows after a row id, which must be exactly `row_ids`."""
    stored = snapshot.terms(version.number, after_row_id)
    count = 0
    for place, (row_id, terms) in enumerate(stored):
        if place >= len(row_ids) or row_ids[place] != row_id:
            raise _differs(version, f"row {row_id} is not where it should be")
        builder.add(first_position + place, terms)
        count += 1
        if count % _YIELD_ROWS == 0:
            _check(stopped)
            time.sleep(_YIELD_S)  # Searches share the interpreter with this loop.
    if count != len(row_ids):
        raise _differs(version, f"{len(row_ids):,} rows came, {count:,} have terms")


def _verify(snapshot: Snapshot, version: StoredVersion, folder: Path, contents: Contents) -> None:
    """Compare the count, and a sample of ids and vectors as written, with the store.

    Raises:
        SegmentDiffers: They differ.
    """
    num_rows = snapshot.num_rows(version.number)
    if contents.rows.num_live != num_rows:
        raise _differs(version, f"it has {contents.rows.num_live:,} chunks, the store {num_rows:,}")
    if not num_rows:
        return
    manifest = Manifest(version.version_id, contents.seq, "", num_rows, version.dim, "exact")
    matrix_ND = read_matrix(folder, manifest)
    written = read_contents(folder, manifest)
    sample = np.unique(np.linspace(0, num_rows - 1, _SAMPLED_ROWS).astype(np.int64))
    chunk_ids = written.chunk_ids(sample)
    stored = snapshot.vectors(version.number, chunk_ids)
    for chunk_id, vector_D in zip(chunk_ids, matrix_ND[sample], strict=True):
        if chunk_id not in stored or not np.array_equal(stored[chunk_id], vector_D):
            raise _differs(version, f"chunk '{chunk_id}' differs")


def _differs(version: StoredVersion, how: str) -> SegmentDiffers:
    return SegmentDiffers(
        f"the new base segment of index version '{version.version_id}' is not what the store holds ({how}); "
        "it was thrown away and searches go on without it: report this as a bug"
    )


def _check(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise BuildStopped
