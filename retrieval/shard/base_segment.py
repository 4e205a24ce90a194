"""What the files of a base segment are called and hold, beside what its vectors and terms write themselves.

| file            | holds                                                                   |
|-----------------|-------------------------------------------------------------------------|
| `matrix.f32`    | float32[N, D], little-endian: the vectors, row by row                   |
| `rows.npz`      | int arrays over positions: row id, document, ordinal, page, length      |
| `documents.npz` | the documents' columns                                                  |
| `vectors/`      | the structure over the matrix; see `retrieval.vectors.kinds`            |
| `lexical/`      | the terms' postings; see `retrieval.lexical.lexical_base`               |

Legend: N chunks, D dimensions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval.shard.columns import Columns
from retrieval.shard.contents import Contents
from retrieval.shard.rows import RowTable
from retrieval.shard.segments_on_disk import Manifest

MATRIX_NAME = "matrix.f32"
ROWS_NAME = "rows.npz"
DOCUMENTS_NAME = "documents.npz"
VECTORS_FOLDER = "vectors"
LEXICAL_FOLDER = "lexical"


def write_contents(folder: Path, contents: Contents) -> None:
    """Write the live chunks and their documents."""
    arrays, codes = contents.rows.live_arrays()
    # Opened here: given a path, numpy would add a suffix of its own.
    with (folder / ROWS_NAME).open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    with (folder / DOCUMENTS_NAME).open("wb") as file:
        np.savez(file, **contents.columns.arrays(codes))  # pyright: ignore[reportArgumentType]


def read_contents(folder: Path, manifest: Manifest) -> Contents:
    """Return the chunks and documents of a base segment."""
    with np.load(folder / ROWS_NAME, allow_pickle=False) as rows:
        table = RowTable(dict(rows))
    with np.load(folder / DOCUMENTS_NAME, allow_pickle=False) as documents:
        columns = Columns(dict(documents))
    return Contents(table, columns, manifest.seq)


def read_matrix(folder: Path, manifest: Manifest) -> np.ndarray:
    """Return the vectors of a base segment, float32[N, D] mapped from their file."""
    shape = (manifest.num_rows, manifest.dim)
    if not manifest.num_rows:
        return np.empty(shape, dtype=np.float32)
    return np.memmap(folder / MATRIX_NAME, dtype="<f4", mode="r", shape=shape).view(np.ndarray)


def base_row_id(contents: Contents) -> int:
    """Return the last row of a base segment's contents; 0 when it has none."""
    return int(contents.rows.row_ids_N[-1]) if len(contents.rows) else 0
