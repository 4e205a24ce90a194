"""The vectors of one index version on disk: blocks of rows, each with its hash, and a manifest written last.

A block is finished when its sidecar names the bytes that are there. Sidecars also name the weights and the
corpus, so a torn block and one that an earlier run left behind both count as missing, and only they do.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training.errors import IndexNotReady, NumericsError
from training.index.durable_files import PARTIAL_SUFFIX, write_durably
from training.index.encoding import RowRange, row_ranges

RowsDtype = Literal["float16", "float32"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """What decides every byte of a version."""

    number: int
    """Its number in the plan."""
    step: int
    """Optimizer updates that its weights have seen."""
    weights_hash: str
    """Hash of the snapshot weights."""
    corpus_fingerprint: str
    """Names the texts and their order."""
    num_rows: int
    """Texts of the corpus, at least 1."""
    dim: int
    """Columns."""
    dtype: RowsDtype
    """How numbers are stored."""
    block_rows: int
    """Rows of a block."""

    @property
    def ranges(self) -> tuple[RowRange, ...]:
        """Return all blocks."""
        return row_ranges(self.num_rows, self.block_rows)


class DamagedBlocks(IndexNotReady):
    """Blocks of a finished version that are torn, foreign or gone; they are encoded again."""

    def __init__(self, number: int, ranges: Iterable[RowRange]) -> None:
        """Name the version and its blocks."""
        self.number = number
        self.ranges = tuple(ranges)
        shown = ", ".join(map(str, self.ranges[:8])) + (", ..." if len(self.ranges) > 8 else "")
        super().__init__(
            f"index version {number} has damaged rows {shown}: encode them again from its snapshot weights"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by arguments, so that it crosses processes."""
        return DamagedBlocks, (self.number, self.ranges)


class VersionRows:
    """Writes and reads the blocks of one version; any number of processes may write at once."""

    def __init__(self, folder: Path, spec: VersionSpec) -> None:
        """Point at the version, without touching the disk.

        Args:
            folder: Holds all versions of a run.
            spec: What the blocks must be.
        """
        self.folder = folder / f"v{spec.number}"
        self.spec = spec

    @classmethod
    def finished(cls, folder: Path, number: int) -> VersionRows:
        """Return a version whose manifest is written.

        Raises:
            IndexNotReady: There is no readable manifest.
        """
        path = folder / f"v{number}" / _MANIFEST
        try:
            return cls(folder, VersionSpec(**json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError as error:
            raise IndexNotReady(f"index version {number} is not finished: {path} is missing") from error
        except (ValueError, TypeError) as error:
            raise IndexNotReady(
                f"{path} is damaged ({error}): delete it and resume, finished blocks are kept"
            ) from error

    @property
    def is_finished(self) -> bool:
        """Return whether the manifest of this very version is there."""
        try:
            return VersionRows.finished(self.folder.parent, self.spec.number).spec == self.spec
        except IndexNotReady:
            return False

    def write(self, rows: RowRange, rows_ND: np.ndarray) -> None:
        """Store one block so that a crash leaves it finished or missing; writing it twice is harmless.

        Args:
            rows: One of `spec.ranges`.
            rows_ND: float32[rows.last - rows.first, dim], finite.

        Raises:
            ValueError: It is no block of the version, or has another shape.
            NumericsError: A number does not fit float16.
        """
        if rows not in self.spec.ranges or rows_ND.shape != (rows.last - rows.first, self.spec.dim):
            raise ValueError(f"rows {rows} of shape {rows_ND.shape} are no block of {self.spec}")
        with np.errstate(over="ignore"):
            stored_ND = np.ascontiguousarray(rows_ND, dtype=self.spec.dtype)
        if not np.isfinite(stored_ND).all():
            raise NumericsError(
                f"rows {rows} of index version {self.spec.number} hold numbers beyond {self.spec.dtype} "
                f"(largest {np.abs(rows_ND).max():g}): normalise the vectors or set dtype float32"
            )
        buffer = io.BytesIO()
        np.save(buffer, stored_ND)
        data = buffer.getvalue()
        sidecar = json.dumps({"sha256": hashlib.sha256(data).hexdigest(), **asdict(self.spec)}).encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Between the two the block is unsound, unless the same bytes were there before.
        write_durably(self._path(rows), lambda file: file.write(data))
        write_durably(self._sidecar(rows), lambda file: file.write(sidecar))

    def missing(self, within: RowRange | None = None) -> list[RowRange]:
        """Return blocks that are not finished, torn or of another origin; reads and hashes the others.

        Args:
            within: Check only blocks that overlap these rows; None for all.
        """
        return [
            rows
            for rows in self.spec.ranges
            if (within is None or (rows.first < within.last and within.first < rows.last))
            and not self._is_sound(rows)
        ]

    def begin(self) -> list[RowRange]:
        """Make room for writers and return the blocks that are missing; only one process may do so.

        A manifest of another version under this number goes first: nobody may open what is being replaced.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.is_finished:
            (self.folder / _MANIFEST).unlink(missing_ok=True)
        for partial in self.folder.glob(f"*{PARTIAL_SUFFIX}"):
            partial.unlink(missing_ok=True)
        return self.missing()

    def finish(self) -> None:
        """Write the manifest, once every block is written.

        Raises:
            IndexNotReady: A block has no sidecar; the message names the first.
        """
        for rows in self.spec.ranges:
            if not self._sidecar(rows).exists():
                raise IndexNotReady(f"index version {self.spec.number} lacks rows {rows}")
        manifest = json.dumps(asdict(self.spec), indent=1).encode()
        write_durably(self.folder / _MANIFEST, lambda file: file.write(manifest))

    def open(self, first_row: int, last_row: int) -> list[tuple[RowRange, np.ndarray]]:
        """Return the blocks that overlap rows [first_row, last_row), verified and memory-mapped.

        Returns:
            Blocks in order, each with its whole array, `spec.dtype`[block, dim].

        Raises:
            DamagedBlocks: Some of them are torn, foreign or gone.
        """
        within = RowRange(first_row, last_row)
        if damaged := self.missing(within):
            raise DamagedBlocks(self.spec.number, damaged)
        return [
            # Copy on write, because torch refuses memory that it may not write; nothing is ever written.
            (rows, np.load(self._path(rows), mmap_mode="c"))
            for rows in self.spec.ranges
            if rows.first < last_row and first_row < rows.last
        ]

    def vectors(self, rows_N: np.ndarray) -> np.ndarray:
        """Return single rows, float32[N, dim], without verifying the blocks they are in.

        Args:
            rows_N: int64[N], rows of the corpus.
        """
        vectors_ND = np.empty((len(rows_N), self.spec.dim), dtype=np.float32)
        blocks_N = np.asarray(rows_N) // self.spec.block_rows
        for block in np.unique(blocks_N):
            rows, at_N = self.spec.ranges[block], blocks_N == block
            stored_ND = np.load(self._path(rows), mmap_mode="r")
            vectors_ND[at_N] = stored_ND[rows_N[at_N] - rows.first]
        return vectors_ND

    def _is_sound(self, rows: RowRange) -> bool:
        try:
            sidecar = json.loads(self._sidecar(rows).read_bytes())
            return sidecar == {"sha256": _sha256(self._path(rows)), **asdict(self.spec)}
        except (FileNotFoundError, ValueError):
            return False

    def _path(self, rows: RowRange) -> Path:
        return self.folder / f"rows-{rows.first:09d}-{rows.last:09d}.npy"

    def _sidecar(self, rows: RowRange) -> Path:
        return self._path(rows).with_suffix(".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
