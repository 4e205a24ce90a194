"""Inverted lists in host memory or in a memory-mapped file: each list's vectors lie side by side.

On disk, a folder of `vectors.bin` (rows in list order), `ids.npy`, `offsets.npy`, `centroids.npy` and
`manifest.json`, written last. The folder appears whole (temporary name, fsync, rename) or not at all.

Legend: N rows, D dimensions, C lists.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from retrieval.streamed.coarse import assign, train_centroids

_FORMAT = "graft host lists 1"
_COPY_ROWS = 65_536
MAX_ROWS = 2**31 - 1
"""A row's number is half of a 64-bit key, see `keys.py`."""


class InvalidLists(Exception):
    """A folder does not hold lists this version wrote whole."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class HostLists:
    """Rows grouped by list. Row r of the lists is the vector at position `ids_N[r]` of the matrix."""

    centroids_CD: np.ndarray
    """float32[C, D] of unit length."""
    offsets_C1: np.ndarray
    """int64[C + 1]; list c is rows `offsets[c]` to `offsets[c + 1]`."""
    ids_N: np.ndarray
    """int32[N], ascending within a list."""
    vectors_ND: np.ndarray
    """float32 or float16[N, D] in list order; an array or a memory map."""

    @property
    def num_rows(self) -> int:
        """Return the vectors held."""
        return len(self.ids_N)

    @property
    def num_lists(self) -> int:
        """Return the lists they are in."""
        return len(self.centroids_CD)

    @property
    def dim(self) -> int:
        """Return the numbers a vector."""
        return self.centroids_CD.shape[1]

    @property
    def row_bytes(self) -> int:
        """Return the bytes a vector takes, here and on the device."""
        return self.dim * self.vectors_ND.dtype.itemsize

    @classmethod
    def grouped(
        cls,
        matrix_ND: np.ndarray,
        num_lists: int,
        *,
        centroids_CD: np.ndarray | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> HostLists:
        """Return which rows are in which list, without their vectors; see `build` for the arguments."""
        num_rows, dim = matrix_ND.shape
        if not 0 < num_rows <= MAX_ROWS:
            raise ValueError(f"lists hold 1 to {MAX_ROWS} vectors; got {num_rows}")
        if centroids_CD is None:
            centroids_CD = train_centroids(matrix_ND, num_lists, seed=seed, device=device)
        lists_N = assign(matrix_ND, centroids_CD, device)
        ids_N = np.argsort(lists_N, kind="stable").astype(np.int32)
        offsets_C1 = np.zeros(len(centroids_CD) + 1, dtype=np.int64)
        np.cumsum(np.bincount(lists_N, minlength=len(centroids_CD)), out=offsets_C1[1:])
        centroids_CD = np.ascontiguousarray(centroids_CD, dtype=np.float32)
        return cls(centroids_CD, offsets_C1, ids_N, np.empty((0, dim), dtype=np.float32))

    @classmethod
    def build(
        cls,
        matrix_ND: np.ndarray,
        num_lists: int,
        *,
        folder: Path | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        centroids_CD: np.ndarray | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> HostLists:
        """Return lists over a matrix; reads it twice, holding 64k rows at a time besides the result.

        Args:
            matrix_ND: float[N, D] of unit length; may be memory-mapped.
            num_lists: Lists, 1 to N.
            folder: Where to keep them, which must not exist; None keeps them in memory.
            dtype: How vectors are kept.
            centroids_CD: A trained quantizer; None trains one.
            seed: For the training.
            device: Where training and assignment run.

        Raises:
            ValueError: No rows, more lists than rows, or too many rows.
            FileExistsError: The folder exists.
        """
        lists = cls.grouped(matrix_ND, num_lists, centroids_CD=centroids_CD, seed=seed, device=device)
        blocks = lists.blocks_of(matrix_ND, np.dtype(dtype))
        if folder is not None:
            lists._write(folder, np.dtype(dtype), blocks)
            return cls.open(folder)
        vectors_ND, start = np.empty(matrix_ND.shape, dtype=dtype), 0
        for rows in blocks:
            vectors_ND[start : start + len(rows)] = rows
            start += len(rows)
        return replace(lists, vectors_ND=vectors_ND)

    def blocks_of(self, matrix_ND: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Yield the rows of a matrix in the order of the lists, 64k at a time, as a number type."""
        for start in range(0, self.num_rows, _COPY_ROWS):
            yield np.ascontiguousarray(matrix_ND[self.ids_N[start : start + _COPY_ROWS]], dtype=dtype)

    def save(self, folder: Path) -> None:
        """Write the lists into a folder that does not exist yet; it appears whole or not at all.

        Raises:
            FileExistsError: The folder exists.
        """
        steps = range(0, self.num_rows, _COPY_ROWS)
        self._write(
            folder, self.vectors_ND.dtype, (self.vectors_ND[start : start + _COPY_ROWS] for start in steps)
        )

    def _write(self, folder: Path, dtype: np.dtype, blocks: Iterator[np.ndarray]) -> None:
        if folder.exists():
            raise FileExistsError(f"{folder} exists; give a new folder or remove it")
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        temporary.mkdir(parents=True)
        try:
            with (temporary / "vectors.bin").open("wb") as file:
                for rows in blocks:
                    file.write(rows.tobytes())
            np.save(temporary / "ids.npy", self.ids_N)
            np.save(temporary / "offsets.npy", self.offsets_C1)
            np.save(temporary / "centroids.npy", self.centroids_CD)
            sizes = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
            shape = [self.num_rows, self.dim]
            manifest = {"format": _FORMAT, "dtype": dtype.name, "shape": shape, "sizes": sizes}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in temporary.iterdir():
                _sync(path)
            temporary.rename(folder)
            _sync(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    @classmethod
    def open(cls, folder: Path) -> HostLists:
        """Return the lists of a folder, their vectors memory-mapped.

        Raises:
            InvalidLists: The folder is not ours, of another format, or a file has another size than written.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            known, dtype = manifest["format"], manifest["dtype"]
            (num_rows, dim), sizes = manifest["shape"], dict(manifest["sizes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidLists(f"{folder} holds no lists: {error}; build them again") from error
        if known != _FORMAT or dtype not in ("float32", "float16"):
            raise InvalidLists(f"{folder} is {known!r} of {dtype!r}, this version reads {_FORMAT!r}; rebuild")
        for name, size in sizes.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                raise InvalidLists(f"{path} has {found} bytes, {size} were written; build the lists again")
        try:
            vectors_ND = np.memmap(folder / "vectors.bin", dtype=dtype, mode="r", shape=(num_rows, dim))
            lists = cls(
                np.load(folder / "centroids.npy"),
                np.load(folder / "offsets.npy"),
                np.load(folder / "ids.npy"),
                vectors_ND,
            )
        except (OSError, ValueError) as error:
            raise InvalidLists(f"{folder} cannot be read: {error}; build the lists again") from error
        if len(lists.ids_N) != num_rows or lists.offsets_C1[-1] != num_rows or lists.dim != dim:
            raise InvalidLists(f"the files of {folder} do not belong together; build the lists again")
        return lists
