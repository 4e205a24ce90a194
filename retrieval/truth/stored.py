"""What a snapshot hands to an index: documents' rows, blocks of rows, changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval.types import MetadataValue

if TYPE_CHECKING:
    import numpy as np

HASH_PREFIX_DIGITS = 12


def chunk_id_of(document_id: str, content_hash: str, ordinal: int) -> str:
    """Return a chunk's public id."""
    return f"{document_id}:{content_hash[:HASH_PREFIX_DIGITS]}:{ordinal}"


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """What filters and chunk ids need to know of a document."""

    document_id: str
    """The document."""
    tenant: str
    """Its tenant."""
    library: str
    """Its library."""
    name: str
    """Its name."""
    media_type: str
    """Its MIME type."""
    metadata: dict[str, MetadataValue]
    """Its own fields."""
    created_s: float
    """Unix time it was first added."""
    updated_s: float
    """Unix time of its last change."""
    content_hash: str
    """sha256 of the bytes whose chunks these are, hex."""


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """A document and all its rows in one version. Legend: N rows, D dimensions."""

    document_id: str
    """The document."""
    tenant: str
    """Its tenant."""
    library: str
    """Its library."""
    name: str
    """Its name."""
    media_type: str
    """Its MIME type."""
    metadata: dict[str, MetadataValue]
    """Its own fields."""
    created_s: float
    """Unix time it was first added."""
    updated_s: float
    """Unix time of its last change."""
    content_hash: str
    """sha256 of the bytes whose chunks these are, hex."""
    row_ids: np.ndarray
    """int64[N], ascending; never used again for another chunk."""
    ordinals: np.ndarray
    """int32[N], positions in the document."""
    pages: np.ndarray
    """int32[N], 1-based; 0 for none."""
    num_terms: np.ndarray
    """int32[N], lengths in stemmed terms."""
    vectors_ND: np.ndarray
    """float32[N, D] of unit length, decoded."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in one version after a log position."""

    seq: int
    """The log position this leads to."""
    removed: list[str]
    """Changed documents that have no rows any more."""
    documents: list[DocumentRows]
    """Changed documents that have rows, ascending in row id."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Consecutive rows of one version, ascending in row id. Legend: N rows, D dimensions."""

    row_ids: np.ndarray
    """int64[N]."""
    documents: list[DocumentInfo]
    """The documents the rows are of, in order of their first row here."""
    document_of: np.ndarray
    """int32[N], each row's place in `documents`."""
    ordinals: np.ndarray
    """int32[N]."""
    pages: np.ndarray
    """int32[N], 1-based; 0 for none."""
    num_terms: np.ndarray
    """int32[N]."""
    vectors_ND: np.ndarray
    """float32[N, D] of unit length, decoded."""
    terms: list[list[str]] | None
    """Stemmed terms of each row, when asked for."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row with its text, as it is exported. Legend: D dimensions."""

    row_id: int
    """The row."""
    name: str
    """Its document's name."""
    metadata: dict[str, MetadataValue]
    """Its document's own fields."""
    ordinal: int
    """Its position in the document."""
    num_chunks: int
    """Rows of the document."""
    text: str
    """The characters."""
    vector_D: np.ndarray
    """float32[D] of unit length, decoded."""


@dataclass(frozen=True, slots=True)
class DeltaStats:
    """What BM25 needs to know of rows after a row id."""

    num_chunks: int
    """Live rows."""
    num_terms: int
    """Sum of their lengths."""
