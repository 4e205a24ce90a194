"""What one index version holds: its chunks by position and its documents' fields, kept up with the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.shard.columns import Columns
from retrieval.shard.rows import RowTable
from retrieval.truth.stored import Changes, DocumentRows


@dataclass(frozen=True, slots=True)
class Applied:
    """What a vector index must do to follow a change of contents."""

    removed: np.ndarray
    """int64[n]: positions that died."""
    vectors: Sequence[np.ndarray]
    """float32[n, dim] blocks of the positions that came, in order."""


class Contents:
    """Chunks and documents of one version at one log position. Not thread-safe."""

    def __init__(self, rows: RowTable | None = None, columns: Columns | None = None, seq: int = 0) -> None:
        """Start empty, or with a base segment's chunks at its log position."""
        self.rows = RowTable() if rows is None else rows
        self.columns = Columns() if columns is None else columns
        self.seq = seq
        self._codes: dict[str, int] | None = None

    def code_of(self, document_id: str) -> int | None:
        """Return the code of a document that has chunks here, or None."""
        return self._live_codes().get(document_id)

    def chunk_ids(self, positions: np.ndarray) -> list[str]:
        """Return the public ids of chunks, in order."""
        prefixes = self.columns.chunk_prefixes(self.rows.codes_N[positions])
        ordinals = self.rows.ordinals_N[positions].tolist()
        return [f"{prefix}:{ordinal}" for prefix, ordinal in zip(prefixes, ordinals, strict=True)]

    def position_of(self, chunk_id: str) -> int | None:
        """Return the position of a live chunk; None when it is not here, or no longer."""
        prefix, _, ordinal = chunk_id.rpartition(":")
        code = self.code_of(prefix.partition(":")[0])
        if code is None or self.columns.chunk_prefixes(np.array([code])) != [prefix]:
            return None
        if not (ordinal.isascii() and ordinal.isdigit()):
            return None
        positions = self.rows.positions_of(code)
        found = positions[self.rows.ordinals_N[positions] == int(ordinal)]
        return int(found[0]) if found.size else None

    def apply(self, changes: Changes) -> Applied:
        """Go to the log position that `changes` leads to."""
        codes = self._live_codes()
        removed: list[np.ndarray] = []
        for document_id in changes.removed:
            code = codes.pop(document_id, None)
            if code is not None:
                removed.append(self.rows.remove(code))
        fresh: list[tuple[int, DocumentRows]] = []
        moved: list[tuple[int, int]] = []
        for new_code, document in enumerate(changes.documents, self.columns.extend(changes.documents)):
            code = codes.get(document.document_id)
            if code is not None and self._has_rows(code, document):
                moved.append((code, new_code))
            else:
                if code is not None:
                    removed.append(self.rows.remove(code))
                fresh.append((new_code, document))
            codes[document.document_id] = new_code
        self.rows.extend(len(changes.documents), fresh, moved)
        self.seq = changes.seq
        return Applied(
            np.concatenate(removed) if removed else np.empty(0, dtype=np.int64),
            [document.vectors_ND for _, document in fresh],
        )

    def _has_rows(self, code: int, document: DocumentRows) -> bool:
        """Return whether a document's rows are those here already: then only its fields changed."""
        return np.array_equal(self.rows.row_ids_N[self.rows.positions_of(code)], document.row_ids)

    def _live_codes(self) -> dict[str, int]:
        if self._codes is None:
            # Asked before the first change: every document of a segment lives, once.
            self._codes = dict(zip(self.columns.document_ids(), range(len(self.columns)), strict=True))
        return self._codes
