"""Batches hold every text once, fit their budgets, and pad little."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retrieval.embedding.batches import cut_batches


@given(
    st.lists(st.integers(0, 300), max_size=200),
    st.integers(1, 1000),
    st.integers(1, 64),
)
def test_every_text_is_in_one_batch_within_both_budgets(
    lengths: list[int], max_tokens: int, max_texts: int
) -> None:
    batches = cut_batches(lengths, max_tokens=max_tokens, max_texts=max_texts)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[index] for index in batch)
        assert len(batch) <= max_texts
        assert len(batch) == 1 or len(batch) * width <= max_tokens


def test_the_longest_come_first_so_that_memory_peaks_at_once() -> None:
    assert cut_batches([3, 9, 1, 9], max_tokens=20, max_texts=8) == [[1, 3], [0, 2]]
