"""Prompts whose passages are arranged: exactly the prompt that would have been written in that order."""

from __future__ import annotations

import pytest
from tiny_model import build_tiny_model

from serving.passage_order import PassageArranger, chunk_ids
from serving.prompt import PromptPassage, encode_segments, rag_prompt
from serving.tokenizer import ModelTokenizer
from serving.types import PassageOrder, Prompt, Segment


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(build_tiny_model(tmp_path_factory.mktemp("model")) / "tokenizer.json")


def prompt_of(ids: str, question: str = "why?") -> Prompt:
    return rag_prompt(question, [PromptPassage(one, f"title {one}", f"text of {one} " * 3) for one in ids])


def arranged(
    arranger: PassageArranger,
    prompt: Prompt,
    tokenizer: ModelTokenizer,
    order: PassageOrder,
    tenant: str = "t",
) -> Prompt:
    sources = arranger.arrange(prompt, encode_segments(prompt, tokenizer), order, tenant)
    assert sorted(sources) == list(range(len(prompt.segments)))
    return Prompt(tuple(prompt.segments[source] for source in sources))


def test_a_canonical_order_is_what_the_template_would_have_written(tokenizer: ModelTokenizer) -> None:
    found = arranged(PassageArranger(0), prompt_of("cab"), tokenizer, "canonical")
    assert found == prompt_of("abc")
    assert encode_segments(found, tokenizer) == encode_segments(prompt_of("abc"), tokenizer)


def test_the_greedy_tree_begins_as_an_earlier_prompt(tokenizer: ModelTokenizer) -> None:
    arranger = PassageArranger(10_000)
    orders = []
    for ids in ("abc", "xcba"):
        found = arranged(arranger, prompt_of(ids, f"{ids}?"), tokenizer, "greedy_tree")
        orders.append("".join(chunk_ids(found)))
        assert found == prompt_of(orders[-1], f"{ids}?")
    assert orders == ["abc", "abcx"]


def test_tenants_and_other_beginnings_share_no_order(tokenizer: ModelTokenizer) -> None:
    arranger = PassageArranger(10_000)

    def order(arranger: PassageArranger, prompt: Prompt, tenant: str) -> str:
        return "".join(chunk_ids(arranged(arranger, prompt, tokenizer, "greedy_tree", tenant)))

    assert order(arranger, prompt_of("ab"), "one") == "ab"
    assert order(arranger, prompt_of("xab"), "one") == "abx"
    other = PassageArranger(10_000)
    order(other, prompt_of("ab"), "one")
    other._tree._uses.clear()
    beginning = Prompt((Segment("system", "Another system turn."), *prompt_of("xab").segments))
    assert order(other, beginning, "one") == "xab"


@pytest.mark.parametrize("ids", ["", "a", "aba"])
def test_what_cannot_be_arranged_stays(tokenizer: ModelTokenizer, ids: str) -> None:
    assert arranged(PassageArranger(100), prompt_of(ids), tokenizer, "canonical") == prompt_of(ids)


def test_only_the_first_stretch_of_passages_is_arranged(tokenizer: ModelTokenizer) -> None:
    first, second = prompt_of("ba"), prompt_of("dc")
    prompt = Prompt((*first.segments, *second.segments))
    found = arranged(PassageArranger(0), prompt, tokenizer, "canonical")
    assert found == Prompt((*prompt_of("ab").segments, *second.segments))
    assert chunk_ids(found) == ("a", "b", "d", "c")
