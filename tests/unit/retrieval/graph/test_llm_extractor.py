"""What a model says enters the graph only where the chunk bears it out."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from retrieval.graph import Alias, Extraction, LlmExtractor, Mention, Relation
from retrieval.graph.llm_extractor import MAX_TEXT_CHARS, parsed

TEXT = "Chunked prefill (CP) splits a prompt. Sarathi-Serve uses chunked prefill. Chunked prefill is cheap."


class Model:
    name = "tiny"

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.prompts: list[str] = []
        self.most = 0
        self._under_way = 0

    async def complete(self, prompt: str, max_tokens: int) -> str:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        await asyncio.sleep(0)
        self.prompts.append(prompt)
        self._under_way -= 1
        return self.answer


def test_lines_become_entities_aliases_and_relations() -> None:
    answer = """Here you are:
    - entity | Chunked prefill | Chunked prefill is cheap.
    entity | Sarathi-Serve |
    alias | CP | chunked prefill
    relation | Sarathi-Serve | chunked prefill | Uses
    """
    assert parsed(answer, TEXT) == Extraction(
        mentions=(
            Mention("Chunked prefill", "name", 3, "Chunked prefill is cheap."),
            Mention("Sarathi-Serve", "name", 1),
            Mention("CP", "name", 1),
        ),
        relations=(Relation("Sarathi-Serve", "chunked prefill", "uses"),),
        aliases=(Alias("CP", "chunked prefill"),),
    )


def test_what_the_text_does_not_say_is_dropped() -> None:
    answer = """entity | Napoleon | He invented it.
    entity | chunked prefill | It was invented by Napoleon.
    relation | Napoleon | chunked prefill | invented
    alias | NP | Napoleon"""
    assert parsed(answer, TEXT) == Extraction((Mention("chunked prefill", "term", 3),))


def test_an_answer_in_no_known_form_is_a_failure_with_its_words() -> None:
    found = parsed("I cannot help with that.", TEXT)
    assert found.failure is not None
    assert "I cannot help" in found.failure
    assert parsed("none", TEXT) == parsed("", TEXT) == Extraction()


@given(st.text(max_size=200), st.text(max_size=100))
def test_any_answer_is_read(answer: str, text: str) -> None:
    found = parsed(answer, text)
    assert found.failure is None or not found.mentions


def test_texts_are_answered_in_order_few_at_a_time() -> None:
    model = Model("entity | Sarathi-Serve |")
    extractor = LlmExtractor(model, concurrency=2)
    found = asyncio.run(extractor.extract([TEXT, "nothing", TEXT]))
    assert [len(one.mentions) for one in found] == [1, 0, 1]
    assert model.most == 2
    assert extractor.name == "llm-1-tiny"


def test_a_long_chunk_is_shown_in_part() -> None:
    model = Model("none")
    asyncio.run(LlmExtractor(model).extract(["x" * 50_000]))
    assert len(model.prompts[0]) < MAX_TEXT_CHARS + 1000
