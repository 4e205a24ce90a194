"""Prompts whose passages are arranged: exactly the prompt that would have been written in that order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_model import build_tiny_model

from serving.passage_order import PassageArranger, chunk_ids
from serving.prompt import PromptPassage, encode_segments, rag_prompt
from serving.tokenizer import ModelTokenizer
from serving.types import Prompt, Segment


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(build_tiny_model(tmp_path_factory.mktemp("model")) / "tokenizer.json")


def prompt_of(ids: str, question: str = "why?") -> Prompt:
    return rag_prompt(question, [PromptPassage(one, f"title {one}", f"text of {one} " * 3) for one in ids])


def test_a_canonical_order_is_what_the_template_would_have_written(tokenizer: ModelTokenizer) -> None:
    given, wanted = prompt_of("cab"), prompt_of("abc")
    arranged, order = PassageArranger(0).arrange(
        given, encode_segments(given, tokenizer), "canonical", "tenant"
    )
    assert arranged == encode_segments(wanted, tokenizer)
    assert order == ("a", "b", "c")


def test_the_greedy_tree_begins_as_an_earlier_prompt(tokenizer: ModelTokenizer) -> None:
    arranger = PassageArranger(10_000)
    orders = []
    for ids in ("abc", "xcba"):
        prompt = prompt_of(ids, f"{ids}?")
        arranged, order = arranger.arrange(
            prompt, encode_segments(prompt, tokenizer), "greedy_tree", "tenant"
        )
        orders.append("".join(order))
        assert arranged == encode_segments(prompt_of(orders[-1], f"{ids}?"), tokenizer)
    assert orders == ["abc", "abcx"]


def test_tenants_and_other_beginnings_share_no_order(tokenizer: ModelTokenizer) -> None:
    arranger = PassageArranger(10_000)

    def order(prompt: Prompt, tenant: str) -> str:
        return "".join(arranger.arrange(prompt, encode_segments(prompt, tokenizer), "greedy_tree", tenant)[1])

    assert order(prompt_of("ab"), "one") == "ab"
    assert order(prompt_of("xab"), "one") == "abx"
    other = PassageArranger(10_000)
    other.arrange(prompt_of("ab"), encode_segments(prompt_of("ab"), tokenizer), "greedy_tree", "one")
    other._tree._uses.clear()
    segments = prompt_of("xab").segments
    beginning = Prompt((Segment("system", "Another system turn."), *segments))
    ids = encode_segments(beginning, tokenizer)
    assert "".join(other.arrange(beginning, ids, "greedy_tree", "one")[1]) == "xab"


@pytest.mark.parametrize("ids", ["", "a", "aba"])
def test_what_cannot_be_arranged_stays(tokenizer: ModelTokenizer, ids: str) -> None:
    prompt = prompt_of(ids)
    given = encode_segments(prompt, tokenizer)
    assert PassageArranger(100).arrange(prompt, given, "canonical", "t") == (given, tuple(ids))


def test_only_the_first_stretch_of_passages_is_arranged(tokenizer: ModelTokenizer) -> None:
    first, second = prompt_of("ba"), prompt_of("dc")
    prompt = replace(first, segments=(*first.segments, *second.segments))
    arranged, order = PassageArranger(0).arrange(
        prompt, encode_segments(prompt, tokenizer), "canonical", "tenant"
    )
    assert order == ("a", "b", "d", "c")
    assert arranged == [
        *encode_segments(prompt_of("ab"), tokenizer),
        *encode_segments(second, tokenizer),
    ]
    assert chunk_ids(prompt) == ("b", "a", "d", "c")
