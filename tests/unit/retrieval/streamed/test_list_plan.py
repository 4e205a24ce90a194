"""The plan of a batch: nothing lost, nothing twice, never more in flight than there is room for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.streamed.keys import EMPTY, pack, unpack
from retrieval.streamed.page_cache import PageCache
from retrieval.streamed.plan import Pace, Pages, invert, schedule, tiles

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(st.tuples(finite, st.integers(0, 2**31 - 1)), min_size=1, max_size=50))
def test_keys_order_by_score_then_by_lower_row(pairs):
    scores = np.array([score for score, _ in pairs], dtype=np.float32)
    rows = np.array([row for _, row in pairs], dtype=np.int64)
    keys = pack(torch.from_numpy(scores), torch.from_numpy(rows)).numpy()
    assert (keys > EMPTY).all()
    order = np.argsort(-keys.astype(object), kind="stable")
    wanted = np.lexsort((rows, -scores))
    np.testing.assert_array_equal(scores[order], scores[wanted])
    np.testing.assert_array_equal(rows[order], rows[wanted])
    back = unpack(keys)
    np.testing.assert_array_equal(back[0], scores)
    np.testing.assert_array_equal(back[1], rows)


def test_an_empty_key_is_no_row():
    scores, rows = unpack(np.array([EMPTY]))
    assert scores[0] == -np.inf
    assert rows[0] == -1


def drawn_batch(data):
    lengths_C = np.array(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=12), label="lengths"))
    pages = Pages.cut(
        np.concatenate(([0], np.cumsum(lengths_C))), data.draw(st.integers(1, 10), label="rows")
    )
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    shape = (data.draw(st.integers(0, 20), label="queries"), data.draw(st.integers(1, 5), label="nprobe"))
    return lengths_C, pages, generator.integers(-1, len(lengths_C), shape), generator


@given(st.data())
def test_pages_cover_every_row_once(data):
    lengths_C, pages, _, _ = drawn_batch(data)
    rows = [
        row
        for start, length in zip(pages.start_P, pages.length_P, strict=True)
        for row in range(start, start + length)
    ]
    assert rows == list(range(lengths_C.sum()))
    assert len(pages.length_P) == 0 or 1 <= pages.length_P.min() <= pages.length_P.max() <= pages.page_rows
    kept_N = np.zeros(lengths_C.sum(), dtype=bool)
    kept_N[::7] = True
    if len(kept_N):
        held = pages.holding(kept_N)
        assert [
            bool(kept_N[s : s + n].any()) for s, n in zip(pages.start_P, pages.length_P, strict=True)
        ] == list(held)


@given(st.data())
def test_inverting_keeps_every_pair_of_page_and_query(data):
    _, pages, probes_QN, _ = drawn_batch(data)
    inverted = invert(probes_QN, pages, None)
    wanted = {
        (page, query)
        for query, probes in enumerate(probes_QN)
        for page, found in enumerate(pages.list_P)
        if found in probes
    }
    max_queries, max_pages = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    pairs = [
        (inverted.page_W[place], query)
        for tile in tiles(inverted, np.arange(len(inverted.page_W)), max_queries, max_pages)
        for place, queries in zip(tile.place_B, tile.query_Bq, strict=True)
        for query in queries
        if query >= 0
    ]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == wanted
    for tile in tiles(inverted, np.arange(len(inverted.page_W)), max_queries, max_pages):
        assert len(tile.place_B) <= max_pages
        assert tile.query_Bq.shape[1] <= max_queries
        assert (tile.query_Bq >= 0).mean() >= 0.5


@settings(max_examples=200)
@given(st.data())
def test_a_schedule_fits_the_slots_and_scores_each_page_after_its_copy(data):
    _, pages, probes_QN, generator = drawn_batch(data)
    num_lists = len(pages.first_C1) - 1
    num_slots = data.draw(st.integers(2, 30), label="slots")
    group_pages = data.draw(st.integers(1, max(1, num_slots // 4)), label="group")
    cache = PageCache(pages.list_P, num_lists, num_slots)
    for _ in range(3):
        inverted = invert(probes_QN, pages, None)
        cache.count(inverted.lists, inverted.num_queries)
        page_W = inverted.page_W
        resident_W = cache.slot_of_page_P[page_W] >= 0
        cache.pin(page_W[resident_W])
        steps = schedule(
            inverted,
            pages,
            resident_W,
            cache.frequency(page_W),
            group_pages=group_pages,
            num_slots=num_slots,
            pace=Pace(data.draw(st.floats(1, 100)), data.draw(st.floats(1, 100))),
            row_bytes=4,
        )
        ready = set(np.flatnonzero(resident_W))
        scored: list[int] = []
        for step in steps:
            assert len(step.copy) <= group_pages
            # `take` raises where a schedule leaves no room; pages still to be scored must stay.
            places = {place: int(cache.slot_of_page_P[page_W[place]]) for place in ready - set(scored)}
            slots = cache.take(page_W[step.copy]) if len(step.copy) else np.empty(0, dtype=np.int64)
            assert len(set(slots.tolist())) == len(step.copy)
            for place, slot in places.items():
                assert cache.slot_of_page_P[page_W[place]] == slot
            assert set(step.score.tolist()) <= ready
            scored += step.score.tolist()
            cache.release(page_W[step.score])
            ready |= set(step.copy.tolist())
        assert sorted(scored) == list(range(len(page_W)))
        assert cache.num_resident <= num_slots
        probes_QN = generator.integers(-1, num_lists, probes_QN.shape)


def test_resident_pages_hide_copies_and_shared_pages_go_first():
    pages = Pages.cut(np.arange(0, 90, 10), 10)
    probes_QN = np.array([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [4, 5, 6, 7, -1]])
    inverted = invert(probes_QN, pages, None)
    resident_W = np.isin(inverted.page_W, [0, 1, 2])
    steps = schedule(
        inverted,
        pages,
        resident_W,
        np.zeros(8),
        group_pages=2,
        num_slots=8,
        pace=Pace(copy_bytes_per_s=1, score_bytes_per_s=2),
        row_bytes=1,
    )
    copied = [inverted.page_W[step.copy].tolist() for step in steps]
    assert copied == [[4, 3], [5, 6], [7], []]
    # A copy of two pages lasts as long as scoring four page-queries: three resident ones are all there are.
    assert [inverted.page_W[step.score].tolist() for step in steps] == [[0, 1, 2], [4, 3], [5, 6], [7]]


def test_pace_moves_towards_what_was_measured():
    pace = Pace(10, 100).after((40, 2), (0, 0))
    assert pace == Pace(15, 100)
    assert pace.after((0, 0), (300, 1)) == Pace(15, 200)
