"""A batch of queries turned inside out: from the lists of each query to the queries of each page.

Lists are cut into pages of equal capacity, so that a long list is several pieces of work and short ones fill
one kernel together. `invert` finds which queries want each page, `schedule` orders pages into steps whose
copies and scoring overlap, `tiles` cuts a step into kernels.

Legend: C lists, P pages, Q queries, B pages of a kernel, q queries a page of it.

Source: Zhang et al., RUMMY: Fast Vector Query Processing for Large Datasets Beyond GPU Memory with Reordered
Pipelining, NSDI 2024: cluster-based retrofitting, dynamic kernel padding with cluster balancing, query-aware
reordering and grouping.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pages:
    """How lists are cut into pages of at most `page_rows` rows."""

    page_rows: int
    """Rows a page has room for."""
    list_P: np.ndarray
    """int64[P], each page's list, ascending."""
    start_P: np.ndarray
    """int64[P], its first row."""
    length_P: np.ndarray
    """int64[P], its rows, 1 to `page_rows`."""
    first_C1: np.ndarray
    """int64[C + 1]; list c is pages `first[c]` to `first[c + 1]`."""

    @classmethod
    def cut(cls, offsets_C1: np.ndarray, page_rows: int) -> Pages:
        """Return the pages of lists that begin at `offsets_C1`."""
        lengths_C = np.diff(offsets_C1)
        num_pages_C = -(-lengths_C // page_rows)
        first_C1 = np.concatenate(([0], np.cumsum(num_pages_C)))
        list_P = np.repeat(np.arange(len(lengths_C)), num_pages_C)
        start_P = offsets_C1[list_P] + (np.arange(len(list_P)) - first_C1[list_P]) * page_rows
        length_P = np.minimum(page_rows, offsets_C1[list_P + 1] - start_P)
        return cls(page_rows, list_P, start_P, length_P, first_C1)

    def holding(self, kept_N: np.ndarray) -> np.ndarray:
        """Return bool[P], pages with a row that `kept_N`, bool by row of the lists, keeps."""
        return np.add.reduceat(kept_N, self.start_P, dtype=np.int64) > 0


@dataclass(frozen=True, slots=True)
class Inverted:
    """The pages a batch wants, and who wants each."""

    page_W: np.ndarray
    """int64[W], wanted pages, ascending."""
    first_W: np.ndarray
    """int64[W]; page w is wanted by `query[first[w] : first[w] + count[w]]`."""
    count_W: np.ndarray
    """int64[W], at least 1."""
    query: np.ndarray
    """int64[pairs], queries by list."""
    lists: np.ndarray
    """int64, distinct lists with wanted pages or not, ascending."""
    num_queries: np.ndarray
    """int64, queries of each of `lists`."""


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the integers of several ranges, one after the other."""
    ends = np.cumsum(counts)
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def invert(probes_QN: np.ndarray, pages: Pages, wanted_P: np.ndarray | None) -> Inverted:
    """Return the queries of each page.

    Args:
        probes_QN: int64[Q, nprobe], the lists each query looks into; negative is none, repeats count once.
        pages: The page table.
        wanted_P: bool[P], pages with a row that may be returned; None for all.
    """
    num_queries = len(probes_QN)
    valid_QN = probes_QN >= 0
    queries = np.broadcast_to(np.arange(num_queries)[:, None], probes_QN.shape)[valid_QN]
    pairs = np.unique(probes_QN[valid_QN] * num_queries + queries)
    list_of_pair, query = np.divmod(pairs, num_queries) if num_queries else (pairs, pairs)
    lists, first, count = np.unique(list_of_pair, return_index=True, return_counts=True)
    num_pages = pages.first_C1[lists + 1] - pages.first_C1[lists]
    page_W = _ranges(pages.first_C1[lists], num_pages)
    first_W, count_W = np.repeat(first, num_pages), np.repeat(count, num_pages)
    if wanted_P is not None:
        keep = wanted_P[page_W]
        page_W, first_W, count_W = page_W[keep], first_W[keep], count_W[keep]
    return Inverted(page_W, first_W, count_W, query, lists, count)


@dataclass(frozen=True, slots=True)
class Step:
    """Copies and scoring that run at once. Indices are into `Inverted.page_W`."""

    copy: np.ndarray
    """Pages brought to the device; scored in the next step."""
    score: np.ndarray
    """Pages scored; they arrived in an earlier step or were there."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the machine copies and scores: what makes a copy and a piece of scoring equally long."""

    copy_bytes_per_s: float
    """Host to device."""
    score_bytes_per_s: float
    """Bytes of rows scored, counted once for every query that scores them."""

    def after(self, copied: tuple[float, float], scored: tuple[float, float]) -> Pace:
        """Return the pace with half its weight on a batch's (bytes, seconds) and (bytes scored, seconds)."""

        def mixed(old: float, amount: float, seconds: float) -> float:
            return 0.5 * (old + amount / seconds) if amount and seconds > 0 else old

        return Pace(mixed(self.copy_bytes_per_s, *copied), mixed(self.score_bytes_per_s, *scored))


def schedule(
    inverted: Inverted,
    pages: Pages,
    resident_W: np.ndarray,
    frequency_W: np.ndarray,
    *,
    group_pages: int,
    num_slots: int,
    pace: Pace,
    row_bytes: int,
) -> list[Step]:
    """Return the steps of a batch: two groups of pages are in flight, one being copied, one being scored.

    Pages already there hide the copies: beside a group's copy run the group before it and as many resident
    pages as make the scoring last as long as the copy. Missing pages go by how many queries share
    them. At any copy at least `group_pages` slots are free or hold released pages: resident pages that would
    leave less are scored before the first copy, rarest list first.

    Args:
        inverted: The batch.
        pages: The page table.
        resident_W: bool[W], pages on the device.
        frequency_W: float[W], how often each page's list is asked for.
        group_pages: Pages copied in one step, at most half of `num_slots`.
        num_slots: Pages the device holds.
        pace: Expected speeds.
        row_bytes: Bytes a row.
    """
    hits = np.flatnonzero(resident_W)
    hits = hits[np.argsort(frequency_W[hits], kind="stable")]
    misses = np.flatnonzero(~resident_W)
    misses = misses[np.argsort(-inverted.count_W[misses], kind="stable")]
    groups = [misses[start : start + group_pages] for start in range(0, len(misses), group_pages)]
    steps: list[Step] = []
    none = np.empty(0, dtype=np.int64)
    if not groups:
        return [Step(none, hits)] if len(hits) else []
    lead = max(0, len(hits) - (num_slots - 2 * group_pages))
    if lead:
        steps.append(Step(none, hits[:lead]))
    length_W = pages.length_P[inverted.page_W]
    score_s = inverted.count_W * length_W * row_bytes / pace.score_bytes_per_s
    copy_s = length_W * row_bytes / pace.copy_bytes_per_s
    hits_s = np.cumsum(score_s[hits])
    place, before = lead, none
    for group in groups:
        done_s = hits_s[place - 1] if place else 0.0
        idle_s = copy_s[group].sum() - score_s[before].sum()
        end = int(np.searchsorted(hits_s, done_s + idle_s)) if idle_s > 0 else place
        end = max(place, min(len(hits), end))
        steps.append(Step(group, np.concatenate((before, hits[place:end]))))
        place, before = end, group
    steps.append(Step(none, np.concatenate((before, hits[place:]))))
    return steps


@dataclass(frozen=True, slots=True)
class Tile:
    """One kernel: the same number of queries against each of several pages."""

    place_B: np.ndarray
    """int64[B], indices into `Inverted.page_W`."""
    query_Bq: np.ndarray
    """int64[B, q], queries of each page; -1 pads."""


def tiles(inverted: Inverted, places: np.ndarray, max_queries: int, max_pages: int) -> Iterator[Tile]:
    """Yield the kernels of some pages.

    With `max_pages` 1 every page is a kernel with exactly its queries, which a CPU likes. Otherwise pages
    with alike numbers of queries share a kernel: queries are padded to the next power of two, so that less
    than half of a kernel is padding. A page wanted by more than `max_queries` comes several times.
    """
    repeats = -(-inverted.count_W[places] // max_queries)
    place = np.repeat(places, repeats)
    part = _ranges(np.zeros(len(places), dtype=np.int64), repeats)
    first = inverted.first_W[place] + part * max_queries
    count = np.minimum(inverted.count_W[place] - part * max_queries, max_queries)
    if max_pages == 1:
        for index in range(len(place)):
            query = inverted.query[first[index] : first[index] + count[index]]
            yield Tile(place[index : index + 1], query[None])
        return
    width = np.minimum(max_queries, 2 ** np.ceil(np.log2(count)).astype(np.int64))
    for size in np.unique(width):
        same = np.flatnonzero(width == size)
        for start in range(0, len(same), max_pages):
            chosen = same[start : start + max_pages]
            column = np.arange(size)
            index = np.minimum(first[chosen, None] + column, len(inverted.query) - 1)
            yield Tile(place[chosen], np.where(column < count[chosen, None], inverted.query[index], -1))
