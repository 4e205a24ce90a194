"""Building a lexical base with bounded memory: sorted blocks on disk, then one merge.

Memory is one block of postings, 4 bytes a row and about 40 bytes a distinct term; the collection itself is
never held.

Source: single-pass in-memory indexing, Heinz and Zobel, JASIST 54(8), 2003.
"""

from __future__ import annotations

import heapq
import shutil
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.lexical.lexical_base import ARRAY_DTYPES, MAX_FREQUENCY, TERMS_FILE, LexicalBase

BLOCK_POSTINGS = 4_000_000
"""Postings sorted in memory at once: about 100 MB."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Postings sorted by term, then position."""

    terms: Path | LexicalBase
    """Its distinct terms, sorted: a file with one a line, or the base they come from."""
    indptr: np.ndarray
    positions: np.ndarray
    frequencies: np.ndarray
    moved: np.ndarray | None = None
    """By position: where it goes, -1 to leave it out; None when nothing moves."""

    def lines(self) -> Iterator[str]:
        if isinstance(self.terms, LexicalBase):
            for number in range(self.terms.num_distinct):
                yield self.terms.term(number)
            return
        with self.terms.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line[:-1]

    def pieces(self, max_postings: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (terms, postings of each, positions, frequencies) of stretches of whole terms."""
        num_terms, first = self.indptr.size - 1, 0
        while first < num_terms:
            limit = self.indptr[first] + max_postings
            last = max(first + 1, int(np.searchsorted(self.indptr, limit, side="right")) - 1)
            start, stop = self.indptr[first], self.indptr[last]
            positions, frequencies = self.positions[start:stop], self.frequencies[start:stop]
            counts = np.diff(self.indptr[first : last + 1])
            if self.moved is not None:
                positions = self.moved[positions]
                kept = positions >= 0
                # Differences of a running sum: unlike reduceat, right for terms without postings.
                running = np.concatenate(([0], np.cumsum(kept)))
                counts = np.diff(running[self.indptr[first : last + 1] - start])
                positions, frequencies = positions[kept], frequencies[kept]
            yield slice(first, last), counts, positions, frequencies
            first = last


class LexicalBuilder:
    """Takes rows in ascending position and writes a base into a folder."""

    def __init__(self, folder: Path, block_postings: int = BLOCK_POSTINGS) -> None:
        """Start a base in `folder`, which is created; files of an earlier attempt are overwritten."""
        self._folder = folder
        self._block_postings = block_postings
        self._scratch = folder / "runs"
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        self._lengths = array("i")
        self._runs: list[_Run] = []
        self._start_block()

    def add_base(self, base: LexicalBase, new_positions: np.ndarray) -> None:
        """Take over the rows of an older base, so that compaction tokenises nothing again.

        Args:
            base: The older base; kept open until `finish`.
            new_positions: int[base.num_rows], where each row goes: -1 to drop it, else ascending.
        """
        moved = np.ascontiguousarray(new_positions, dtype=np.int32)
        kept = moved >= 0
        if moved.shape != (base.num_rows,) or np.any(np.diff(moved[kept]) <= 0):
            raise ValueError(f"new_positions must ascend and have {base.num_rows} entries; got {moved.shape}")
        if not kept.any():
            return
        targets = moved[kept]
        self._pad(int(targets[0]))
        lengths = np.zeros(int(targets[-1]) + 1 - len(self._lengths), dtype=np.int32)
        lengths[targets - len(self._lengths)] = base.lengths[kept]
        self._flush()
        self._lengths.frombytes(lengths.tobytes())
        self._runs.append(_Run(base, base.indptr, base.positions, base.frequencies, moved))

    def add(self, position: int, terms: Sequence[str]) -> None:
        """Add a row; positions must ascend, and those left out are empty rows."""
        self._pad(position)
        self._lengths.append(len(terms))
        counts = Counter(terms)
        self._ids.extend(map(self._vocabulary.__getitem__, counts))
        self._frequencies.extend(counts.values())
        self._positions.extend([position] * len(counts))
        if len(self._ids) >= self._block_postings:
            self._flush()

    def finish(self, num_rows: int) -> list[Path]:
        """Write the base of `num_rows` rows and return its files; the caller makes them durable."""
        self._pad(num_rows)
        self._flush()
        kept = [_kept_counts(run, self._block_postings) for run in self._runs]
        numbers, num_distinct = self._merge_terms(kept)
        totals = np.zeros(num_distinct + 1, dtype=np.int64)
        for own, counts in zip(numbers, kept, strict=True):
            totals[own[counts > 0] + 1] += counts[counts > 0]
        indptr = np.cumsum(totals)
        self._save("indptr", indptr)
        self._save("lengths", np.frombuffer(self._lengths, dtype=np.int32))
        self._scatter(numbers, indptr)
        shutil.rmtree(self._scratch)
        return [self._folder / TERMS_FILE, *(self._folder / f"{name}.npy" for name in ARRAY_DTYPES)]

    def _start_block(self) -> None:
        self._vocabulary: defaultdict[str, int] = defaultdict()
        self._vocabulary.default_factory = self._vocabulary.__len__
        self._ids, self._positions, self._frequencies = array("i"), array("i"), array("i")

    def _pad(self, position: int) -> None:
        missing = position - len(self._lengths)
        if missing < 0:
            raise ValueError(f"positions must ascend: {position} comes after {len(self._lengths) - 1}")
        self._lengths.frombytes(bytes(4 * missing))

    def _flush(self) -> None:
        """Sort the block by term and write it out."""
        if not self._ids:
            return
        # The order of code points is the order of their UTF-8 bytes.
        terms = sorted(self._vocabulary)
        rank = np.empty(len(terms), dtype=np.int32)
        rank[[self._vocabulary[term] for term in terms]] = np.arange(len(terms), dtype=np.int32)
        ranks = rank[np.frombuffer(self._ids, dtype=np.int32)]
        order = np.argsort(ranks, kind="stable")
        indptr = np.concatenate(([0], np.cumsum(np.bincount(ranks, minlength=len(terms)))))
        frequencies = np.minimum(np.frombuffer(self._frequencies, dtype=np.int32), MAX_FREQUENCY)
        stem = self._scratch / str(len(self._runs))
        with stem.with_suffix(".terms").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{term}\n" for term in terms)
        np.save(stem.with_suffix(".positions.npy"), np.frombuffer(self._positions, dtype=np.int32)[order])
        np.save(stem.with_suffix(".frequencies.npy"), frequencies[order].astype(np.uint16))
        self._runs.append(
            _Run(
                stem.with_suffix(".terms"),
                indptr.astype(np.int64),
                np.load(stem.with_suffix(".positions.npy"), mmap_mode="r"),
                np.load(stem.with_suffix(".frequencies.npy"), mmap_mode="r"),
            )
        )
        self._start_block()

    def _merge_terms(self, kept: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
        """Write the terms that have postings left; return their numbers by run, and how many there are."""
        numbers = [np.full(counts.size, -1, dtype=np.int64) for counts in kept]
        offsets, num_distinct, last, stop = array("q", [0]), 0, None, 0
        streams = [_live_terms(which, run, kept[which]) for which, run in enumerate(self._runs)]
        with (self._folder / TERMS_FILE).open("wb") as file:
            for term, which, local in heapq.merge(*streams):
                if term != last:
                    last, encoded = term, term.encode()
                    file.write(encoded)
                    stop += len(encoded)
                    offsets.append(stop)
                    num_distinct += 1
                numbers[which][local] = num_distinct - 1
        self._save("term_offsets", np.frombuffer(offsets, dtype=np.int64))
        return numbers, num_distinct

    def _scatter(self, numbers: list[np.ndarray], indptr: np.ndarray) -> None:
        """Write every run's postings behind those of the runs before it, term by term."""
        num_postings = int(indptr[-1])
        if num_postings == 0:
            for name in ("positions", "frequencies"):
                self._save(name, np.zeros(0))
            return
        filled = indptr[:-1].copy()
        out = {
            name: np.lib.format.open_memmap(
                self._folder / f"{name}.npy", mode="w+", dtype=ARRAY_DTYPES[name], shape=(num_postings,)
            )
            for name in ("positions", "frequencies")
        }
        for run, own in zip(self._runs, numbers, strict=True):
            for terms, counts, positions, frequencies in run.pieces(self._block_postings):
                present = own[terms][counts > 0]
                counts = counts[counts > 0]
                begins = np.cumsum(counts) - counts
                targets = np.arange(positions.size) + np.repeat(filled[present] - begins, counts)
                out["positions"][targets] = positions
                out["frequencies"][targets] = frequencies
                filled[present] += counts
        for array_out in out.values():
            array_out.flush()

    def _save(self, name: str, values: np.ndarray) -> None:
        np.save(self._folder / f"{name}.npy", values.astype(ARRAY_DTYPES[name], copy=False))


def _kept_counts(run: _Run, max_postings: int) -> np.ndarray:
    """Return how many postings of each of a run's terms stay."""
    if run.moved is None:
        return np.diff(run.indptr)
    pieces = [counts for _, counts, _, _ in run.pieces(max_postings)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def _live_terms(which: int, run: _Run, counts: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """Yield (term, run, number within the run) of terms with postings: a deleted row's words go with it."""
    for local, term in enumerate(run.lines()):
        if counts[local]:
            yield term, which, local
