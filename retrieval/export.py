"""Reading every searchable chunk out of a store, page by page."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.truth.snapshot import Snapshot
from retrieval.types import Record


def export_page(
    snapshot: Snapshot, version_number: int, after_row_id: int, library: str | None, tenant: str, limit: int
) -> tuple[Sequence[Record], int | None]:
    """Return the next records after a row id, and where the page after them begins; None at the end.

    A chunk of a document that has several is named `<document>#<ordinal>`. Pages of a changing store may miss
    what changes meanwhile; what stays as it is comes exactly once.
    """
    rows = snapshot.rows_with_text(version_number, after_row_id, library, tenant, limit)
    records = [
        Record(
            name=row.name if row.num_chunks == 1 else f"{row.name}#{row.ordinal}",
            text=row.text,
            vector=row.vector_D.tolist(),
            metadata=row.metadata,
        )
        for row in rows
    ]
    return records, rows[-1].row_id if len(rows) == limit else None
