"""Plans: what they refuse, how they travel, and which tokens they leave to compute."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.chunk_kv.blend_plan import BlendPlan, ChunkSpan, ChunkUse, Repair, runs, tokens_to_compute
from serving.chunk_kv.prompt_chunks import prompt_chunks
from serving.prompt import PromptPassage, Turn, encode_segments, rag_prompt


def test_a_plan_travels_as_plain_values():
    plan = BlendPlan((ChunkSpan(2, 5, "a"),), (ChunkSpan(7, 9, "b"),), Repair(3, 0.25))
    assert BlendPlan.from_params(json.loads(json.dumps(plan.params()))) == plan
    use = ChunkUse(5, 6, ("a",))
    assert ChunkUse.from_params(json.loads(json.dumps(use.params()))) == use
    assert BlendPlan.from_params(None) is None
    assert ChunkUse.from_params({"of another connector": 1}) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChunkSpan(5, 5, "a"), "0 <= start < end, got 5 and 5"),
        (lambda: Repair(first_k=-1), "first_k must be >= 0, got -1"),
        (lambda: Repair(share=1.5), r"share must be in \[0, 1\], got 1.5"),
        (lambda: BlendPlan((ChunkSpan(3, 9, "a"), ChunkSpan(8, 12, "b"))), r"must not overlap .* \[3, 9\)"),
    ],
)
def test_plans_that_cannot_be_are_refused(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@given(
    begin=st.integers(0, 50),
    length=st.integers(0, 60),
    loaded=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 20)), max_size=4),
    chosen=st.lists(st.integers(0, 130), max_size=8),
)
def test_a_token_is_computed_unless_it_was_loaded_and_not_chosen(begin, length, loaded, chosen):
    end = begin + length
    ranges = [(start, start + size) for start, size in loaded]
    mask = tokens_to_compute(begin, end, ranges, chosen)
    wanted = [
        position in chosen or not any(start <= position < stop for start, stop in ranges)
        for position in range(begin, end)
    ]
    assert mask.tolist() == wanted
    assert [position for start, stop in runs(mask, begin) for position in range(start, stop)] == [
        position for position, is_computed in zip(range(begin, end), wanted, strict=True) if is_computed
    ]


def test_runs_are_as_long_as_can_be():
    assert runs(np.array([True, True, False, True]), 10) == [(10, 12), (13, 14)]


class Letters:
    """A tokenizer of one token for each character."""

    def encode(self, text: str, *, trusted: bool) -> list[int]:
        return [ord(letter) for letter in text]


def test_a_chunk_has_one_key_wherever_it_stands_in_a_prompt():
    first, second = (PromptPassage(name, "Title", f"text of {name}") for name in "ab")

    def chunks(*passages: PromptPassage, scope: str = "model", history: tuple[Turn, ...] = ()):
        prompt = rag_prompt("Why?", passages, history)
        segment_ids = encode_segments(prompt, Letters())
        found = prompt_chunks(prompt, segment_ids, scope)
        assert found is not None
        return found, [token for ids in segment_ids for token in ids]

    forth, forth_ids = chunks(first, second)
    back, back_ids = chunks(second, first, history=(Turn("user", "Hm."),))
    assert [span.key for span in forth.spans] == [span.key for span in back.spans][::-1]
    for found, ids, names in ((forth, forth_ids, "ab"), (back, back_ids, "ba")):
        texts = ["".join(map(chr, ids[span.start : span.end])) for span in found.spans]
        assert texts == [f"Title\ntext of {name}" for name in names]
    assert forth.alone(forth.spans[1], forth_ids) == back.alone(back.spans[0], back_ids)
    alone, span = forth.alone(forth.spans[1], forth_ids)
    assert alone[: span.start] == forth_ids[: forth.spans[0].start]
    assert forth.spans[0].key != chunks(first, scope="other")[0].spans[0].key


def test_a_prompt_without_passages_has_no_chunks():
    prompt = rag_prompt("Why?", ())
    assert prompt_chunks(prompt, encode_segments(prompt, Letters()), "model") is None
