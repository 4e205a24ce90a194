"""Scores are BM25 of the live rows, exactly the same in any sharding, and dead rows are nowhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.lexical import Bm25, LexicalBase, LexicalBuilder, LexicalSegments, added_stats

PARAMETERS = Bm25(k1=0.9, b=0.6)
WORDS = ["a", "b", "c", "d", "e", "rare"]
QUERIES = st.lists(st.sampled_from([*WORDS, "unknown"]), min_size=1, max_size=4, unique=True)


@dataclass
class Shard:
    """Rows as a store holds them: a base of the first ones, the rest in the delta, some removed."""

    names: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    num_base: int = 0
    asked: list[int] = field(default_factory=list)

    def read(self, after_row_id: int) -> list[tuple[int, str]]:
        """Return the terms of live rows as `Snapshot.delta_terms` does; row ids are 10, 20, ..."""
        self.asked.append(after_row_id)
        return [
            (10 * (position + 1), " ".join(row))
            for position, row in enumerate(self.rows)
            if 10 * (position + 1) > after_row_id and position not in self.dead
        ]

    def segments(self, folder: Path) -> LexicalSegments:
        base = None
        if self.num_base:
            builder = LexicalBuilder(folder)
            for position, terms in enumerate(self.rows[: self.num_base]):
                builder.add(position, terms)
            builder.finish(self.num_base)
            base = LexicalBase(folder)
        segments = LexicalSegments(PARAMETERS, base, 10 * self.num_base)
        added = range(self.num_base, len(self.rows))
        if added:
            segments.add(
                np.array([10 * (position + 1) for position in added]),
                np.array([len(self.rows[position]) for position in added]),
            )
        segments.remove(np.array(sorted(self.dead), dtype=np.int64))
        return segments

    def key(self, positions: np.ndarray) -> list[str]:
        return [self.names[position] for position in positions]


def oracle(rows: Mapping[str, list[str]], query: Sequence[str]) -> dict[str, float]:
    """BM25 by the equation, in double precision."""
    mean = sum(map(len, rows.values())) / max(len(rows), 1) or 1.0
    scores: dict[str, float] = {}
    for name, row in rows.items():
        for term in query:
            tf, df = row.count(term), sum(term in other for other in rows.values())
            if tf:
                norm = PARAMETERS.k1 * (1 - PARAMETERS.b + PARAMETERS.b * len(row) / mean)
                idf = math.log(1 + (len(rows) - df + 0.5) / (df + 0.5))
                scores[name] = scores.get(name, 0.0) + idf * tf / (tf + norm)
    return scores


def search(
    shards: Sequence[Shard], query: Sequence[str], k: int, keep: set[str] | None = None
) -> list[tuple[str, float]]:
    """Scatter, gather and merge as a router does."""
    merged: list[tuple[str, float]] = []
    with TemporaryDirectory() as folder:
        parts = [shard.segments(Path(folder) / str(n)) for n, shard in enumerate(shards)]
        stats = added_stats(part.stats(query, shard.read) for part, shard in zip(parts, shards, strict=True))
        for part, shard in zip(parts, shards, strict=True):
            mask = None if keep is None else np.array([name in keep for name in shard.names], dtype=bool)
            scores, positions = part.search(query, k, shard.read, keep=mask, stats=stats, tie_key=shard.key)
            merged += zip(shard.key(positions), scores.tolist(), strict=True)
    return sorted(merged, key=lambda hit: (-hit[1], hit[0]))[:k]


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from(WORDS), max_size=6), max_size=24),
    query=QUERIES,
    k=st.integers(1, 30),
    data=st.data(),
)
def test_any_sharding_returns_the_same_list(
    rows: list[list[str]], query: list[str], k: int, data: st.DataObject
) -> None:
    names = [f"chunk-{number:02d}" for number in range(len(rows))]
    dead = data.draw(st.sets(st.sampled_from(names))) if names else set()
    keep = data.draw(st.none() | st.sets(st.sampled_from(names))) if names else None
    live = {name: row for name, row in zip(names, rows, strict=True) if name not in dead}
    answers = []
    for num_shards in (1, 2, 5):
        shards = [Shard() for _ in range(num_shards)]
        for name, row in zip(names, rows, strict=True):
            shard = shards[data.draw(st.integers(0, num_shards - 1)) if num_shards > 1 else 0]
            if name in dead:
                shard.dead.add(len(shard.rows))
            shard.names.append(name)
            shard.rows.append(row)
        for shard in shards:
            shard.num_base = data.draw(st.integers(0, len(shard.rows)))
        answers.append(search(shards, query, k, keep))
    assert answers[0] == answers[1] == answers[2]
    scores = {name: s for name, s in oracle(live, query).items() if keep is None or name in keep}
    assert len(answers[0]) == min(k, len(scores))
    for name, score in answers[0]:
        assert score == pytest.approx(scores[name], rel=1e-5)
    if answers[0]:
        worst = answers[0][-1][1]
        returned = {name for name, _ in answers[0]}
        assert all(score <= worst * (1 + 1e-5) for name, score in scores.items() if name not in returned)


def test_scores_equal_bm25s_with_lucene(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = [[f"w{n}" for n in random.zipf(1.4, size=random.integers(3, 40)) if n < 60] for _ in range(400)]
    shard = Shard([str(n) for n in range(400)], rows, num_base=250)
    segments = shard.segments(tmp_path)
    reference = bm25s.BM25(k1=PARAMETERS.k1, b=PARAMETERS.b, method="lucene")
    reference.index(rows, show_progress=False)
    for query in (["w1"], ["w2", "w9", "w33"], ["w7", "w1", "w50", "w21"]):
        wanted = reference.get_scores(query)
        scores, positions = segments.search(query, 400, shard.read)
        assert positions.size == np.count_nonzero(wanted)
        np.testing.assert_allclose(scores, wanted[positions], rtol=2e-6)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_leaving_common_terms_out_changes_nothing(tmp_path: Path, k: int) -> None:
    """Rows that only common terms reach are skipped once they are out of reach; the best stay the same."""
    random = np.random.default_rng(4)
    rows = [[f"w{n}" for n in random.zipf(1.3, size=random.integers(3, 60)) if n < 90] for _ in range(900)]
    shard = Shard([str(n) for n in range(900)], rows, num_base=700)
    segments = shard.segments(tmp_path)
    for _ in range(60):
        query = [f"w{n}" for n in random.permutation(np.arange(1, 90))[: random.integers(2, 7)]]
        keep = random.random(900) < 0.7 if random.random() < 0.5 else None
        every = segments.search(query, 900, shard.read, keep=keep)
        best = segments.search(query, k, shard.read, keep=keep)
        assert np.array_equal(best[0], every[0][:k])
        assert np.array_equal(best[1], every[1][:k])


def test_rows_tying_at_the_last_place_are_chosen_by_key(tmp_path: Path) -> None:
    shard = Shard(["d", "c", "b", "a"], [["x"]] * 4, num_base=2)
    segments = shard.segments(tmp_path)
    _, positions = segments.search(["x"], 2, shard.read, tie_key=shard.key)
    assert shard.key(positions) == ["a", "b"]
    _, positions = segments.search(["x"], 2, shard.read)
    assert positions.tolist() == [0, 1]


def test_removed_and_later_rows_show_at_once(tmp_path: Path) -> None:
    shard = Shard(["p", "q", "r"], [["x"], ["x", "y"], ["y"]], num_base=1)
    segments = shard.segments(tmp_path)
    assert segments.stats(["x", "y"], shard.read).chunks_with == {"x": 2, "y": 2}
    shard.dead |= {0, 1}
    segments.remove(np.array([0, 1, 1]))
    segments.remove(np.array([0]))
    shard.names.append("s")
    shard.rows.append(["x", "x", "z"])
    segments.add(np.array([40]), np.array([3]))
    stats = segments.stats(["x", "y"], shard.read)
    assert (stats.num_chunks, stats.num_terms, stats.chunks_with) == (2, 4, {"x": 1, "y": 1})
    everything = np.ones(4, dtype=bool)
    assert segments.search(["x"], 9, shard.read, keep=everything)[1].tolist() == [3]
    assert (segments.num_rows, segments.num_delta_rows) == (4, 3)


def test_the_store_is_asked_only_for_rows_not_read_before(tmp_path: Path) -> None:
    shard = Shard(["p", "q"], [["x"], ["x"]], num_base=1)
    segments = shard.segments(tmp_path)
    segments.search(["x"], 5, shard.read)
    segments.search(["x"], 5, shard.read)
    assert shard.asked == [10]
    shard.names.append("r")
    shard.rows.append(["x"])
    segments.add(np.array([30]), np.array([1]))
    assert segments.search(["x"], 5, shard.read)[1].tolist() == [0, 1, 2]
    assert shard.asked[1:] == [20]


def test_rows_the_index_has_not_followed_to_are_left_out(tmp_path: Path) -> None:
    shard = Shard(["p"], [["x"]])
    segments = shard.segments(tmp_path)
    shard.names.append("q")
    shard.rows.append(["x"])
    assert segments.search(["x"], 5, shard.read)[1].tolist() == [0]
    segments.add(np.array([20]), np.array([1]))
    assert segments.search(["x"], 5, shard.read)[1].tolist() == [0, 1]


def test_a_failed_search_leaves_nothing_behind(tmp_path: Path) -> None:
    shard = Shard(["p", "q"], [["x"], ["y"]], num_base=2)
    segments = shard.segments(tmp_path)
    first = segments.search(["x", "y"], 5, shard.read)
    with pytest.raises(ValueError, match="keep must have 2 entries"):
        segments.search(["x"], 5, shard.read, keep=np.ones(3, dtype=bool))
    again = segments.search(["x", "y"], 5, shard.read)
    assert np.array_equal(first[0], again[0])


def test_no_rows_and_no_terms_find_nothing(tmp_path: Path) -> None:
    segments = Shard().segments(tmp_path)
    assert segments.search(["x"], 5, Shard().read)[0].size == 0
    assert segments.search([], 5, Shard().read)[0].size == 0
    assert segments.stats(["x"], Shard().read).num_chunks == 0


def test_row_ids_must_ascend() -> None:
    segments = LexicalSegments(PARAMETERS, None, 7)
    with pytest.raises(ValueError, match="row ids must ascend from above 7"):
        segments.add(np.array([7]), np.array([1]))
