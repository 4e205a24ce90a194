"""Encoders of a few numbers for the index that is searched while training; importable by Ray workers."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DIM = 8
TEXTS = tuple(f"passage {number}" for number in range(50))
QUERIES = tuple(f"question {number}" for number in range(6))


def text_vectors(texts: Sequence[str], salt: str) -> np.ndarray:
    """Return a fixed random vector for each text."""
    rows = [np.random.default_rng(zlib.crc32((salt + text).encode())).standard_normal(DIM) for text in texts]
    return np.asarray(rows, dtype=np.float32)


@dataclass(frozen=True)
class DriftingEncoder:
    """Vectors that move away from where they began as steps go on."""

    step: int
    rate: float = 0.05

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return text_vectors(texts, "start") + np.float32(self.rate * self.step) * text_vectors(texts, "end")

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        return text_vectors(queries, "query")


def saver(step: int, rate: float = 0.05) -> Callable[[Path], None]:
    """Return what writes the weights of a step."""

    def save(folder: Path) -> None:
        (folder / "weights.json").write_text(json.dumps({"step": step, "rate": rate}))

    return save


def load_drifting(folder: Path) -> DriftingEncoder:
    return DriftingEncoder(**json.loads((folder / "weights.json").read_text()))


@dataclass(frozen=True)
class Troubled:
    """Loads encoders that fail, die, hang or dawdle, a number of times counted over all processes."""

    marks: Path
    """Folder of one file per trouble made."""
    kind: str
    """`raise`, `exit`, `nan` or `slow`."""
    times: int
    """Troubles before all is well."""
    slow_s: float = 0.0
    """Seconds that `slow` adds to a block."""
    only_from: int = 0
    """First trouble starts after so many blocks."""

    def __call__(self, folder: Path) -> TroubledEncoder:
        return TroubledEncoder(load_drifting(folder), self)

    def makes_trouble(self) -> bool:
        self.marks.mkdir(parents=True, exist_ok=True)
        for number in range(self.only_from + self.times):
            try:
                os.close(os.open(self.marks / str(number), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return number >= self.only_from
        return False


@dataclass(frozen=True)
class TroubledEncoder:
    inner: DriftingEncoder
    trouble: Troubled

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows_ND = self.inner.encode(texts)
        if not self.trouble.makes_trouble():
            return rows_ND
        if self.trouble.kind == "raise":
            raise RuntimeError("the device fell off the bus")
        if self.trouble.kind == "exit":
            os._exit(1)
        if self.trouble.kind == "nan":
            return np.full_like(rows_ND, np.nan)
        time.sleep(self.trouble.slow_s)
        return rows_ND


def spec_of(number: int = 0, step: int = 0, *, weights_hash: str = "w", block_rows: int = 7, dtype="float32"):
    """Return the spec of a version of `TEXTS`."""
    from training.index.encoding import corpus_fingerprint
    from training.index.version_rows import VersionSpec

    return VersionSpec(
        number=number,
        step=step,
        weights_hash=weights_hash,
        corpus_fingerprint=corpus_fingerprint(TEXTS),
        num_rows=len(TEXTS),
        dim=DIM,
        dtype=dtype,
        block_rows=block_rows,
    )


def write_version(folder: Path, spec, vectors_ND: np.ndarray):
    """Write and finish a version."""
    from training.index.version_rows import VersionRows

    rows = VersionRows(folder, spec)
    for block in spec.ranges:
        rows.write(block, vectors_ND[block.first : block.last])
    rows.finish()
    return rows


def version_bytes(folder: Path, number: int) -> dict[str, bytes]:
    """Return every file of a version by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / f"v{number}").iterdir())}
