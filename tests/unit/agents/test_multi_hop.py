"""The `multi_hop` graph: hops, evidence of all hops, limits, and models that do not speak the format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from fakes_agents import MemoryRetriever, passage
from fakes_serving import ScriptedGenerator

from agents import AgentsConfig, Budget, Pipeline, RunEvent, RunResult, open_threads
from agents.nodes.search_hops import AnswerStream
from agents.search_loop import SEARCH_SYSTEM, SearchLimits
from serving.types import GenerateRequest

PASSAGES = [
    passage("The lighthouse of Skarn was designed by Ida Vell.", document="skarn.md"),
    passage("Ida Vell was born in Tromsk in 1862.", document="vell.md"),
    passage("Unrelated words about boats.", document="boats.md"),
]
QUESTION = "Where was the designer of the lighthouse of Skarn born?"
SIMPLE = "Where was Ida Vell born?"
HOPS = ["search: lighthouse of Skarn", "search: Ida Vell born", "answer: Ida Vell was born in Tromsk [2]."]


class Turns(ScriptedGenerator):
    """Writes given turns in a search loop, the last one for ever, and `plain` where no tools are offered."""

    def __init__(self, turns: Sequence[str], plain: str = "Ida Vell was born in Tromsk.") -> None:
        super().__init__(self._next, max_model_len=100_000)
        self.turns = list(turns)
        self.plain = plain

    def _next(self, request: GenerateRequest) -> str:
        if SEARCH_SYSTEM not in request.prompt.text:
            return self.plain
        return self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]


def pipeline(
    generator: ScriptedGenerator, retriever: MemoryRetriever | None = None, **limits: int
) -> Pipeline:
    config = AgentsConfig(search_loop=SearchLimits(**{"k_passages": 1, **limits}))
    return Pipeline("multi_hop", retriever or MemoryRetriever(PASSAGES), generator, config=config)


async def collect(
    pipe: Pipeline, budget: Budget | None = None, question: str = QUESTION
) -> tuple[list[RunEvent], RunResult]:
    events = [event async for event in pipe.run(question, budget=budget)]
    last = events[-1]
    assert last.type == "run_finished"
    return events, last.result


async def test_the_second_hop_finds_what_the_first_named_and_is_cited():
    generator = Turns(HOPS)
    events, result = await collect(pipeline(generator))
    assert result.stop_reason == "answered"
    assert result.answer == "Ida Vell was born in Tromsk [1]."
    assert [citation.document for citation in result.citations] == ["vell.md"]
    searches = [event for event in events if event.type == "retrieval"]
    assert [event.query for event in searches] == ["lighthouse of Skarn", "Ida Vell born"]
    assert [event.passages[0].document for event in searches] == ["skarn.md", "vell.md"]
    assert (
        "".join(event.text for event in events if event.type == "token") == "Ida Vell was born in Tromsk [2]."
    )
    assert len(generator.requests) == 3
    shown = generator.requests[-1].prompt.text
    assert "[1] skarn.md" in shown
    assert "[2] vell.md" in shown


async def test_evidence_of_every_hop_can_be_cited():
    both = "answer: The lighthouse of Skarn was designed by Ida Vell. Ida Vell was born in Tromsk."
    _, result = await collect(pipeline(Turns([*HOPS[:2], both])))
    assert [citation.document for citation in result.citations] == ["skarn.md", "vell.md"]


@pytest.mark.parametrize(
    "turn", ["no", "", "Tromsk.", '{"name": "search"}', "search:", "word " * 300, "open: 7", "search: boats"]
)
async def test_a_model_that_never_answers_is_bounded_and_answers_without_tools(turn: str):
    generator = Turns([turn])
    budget = Budget(max_steps=60, max_model_calls=60, max_completion_tokens=5_000)
    _, result = await collect(pipeline(generator, k_passages=3), budget, SIMPLE)
    assert result.stop_reason == "answered"
    assert result.answer == "Ida Vell was born in Tromsk [1]."
    in_loop = [request for request in generator.requests if SEARCH_SYSTEM in request.prompt.text]
    assert len(in_loop) <= SearchLimits().max_turns
    assert len(generator.requests) == len(in_loop) + 1


async def test_a_query_of_the_models_own_words_does_not_widen_what_was_asked():
    guess = ["search: boats", "answer: Unrelated words about boats."]
    _, result = await collect(pipeline(Turns(guess)))
    assert result.stop_reason == "abstained"


async def test_a_search_that_finds_nothing_is_told_to_the_model():
    generator = Turns(["search: x", "answer: Tromsk"], plain="Tromsk")
    _, result = await collect(pipeline(generator, MemoryRetriever([])))
    assert "Nothing was found." in generator.requests[1].prompt.text
    assert result.stop_reason == "abstained"


async def test_a_repeated_search_is_not_sent_twice():
    retriever = MemoryRetriever(PASSAGES)
    await collect(pipeline(Turns(["search: boats", "search: Boats", *HOPS]), retriever))
    assert [request.query for request in retriever.requests] == [
        "boats",
        "lighthouse of Skarn",
        "Ida Vell born",
    ]


async def test_an_opened_passage_is_shown_in_full_and_costs_no_search():
    long = replace(PASSAGES[1], text=PASSAGES[1].text + " More." * 100)
    retriever = MemoryRetriever([long])
    generator = Turns(["search: Ida Vell", "open: 1", HOPS[2]])
    await collect(pipeline(generator, retriever, max_snippet_chars=60))
    assert long.text not in generator.requests[1].prompt.text
    assert long.text in generator.requests[2].prompt.text
    assert len(retriever.requests) == 1


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(max_model_calls=2), "model_calls"),
        (Budget(max_retrievals=1), "retrievals"),
        (Budget(max_completion_tokens=80), "tokens"),
        (Budget(max_prompt_tokens=1_500), "tokens"),
        (Budget(max_steps=6), "steps"),
    ],
)
async def test_a_spent_meter_routes_to_one_answer_without_tools(budget: Budget, reason: str):
    turns = ["search: lighthouse Ida Vell", "search: designer", "search: boats", "search: more"]
    generator = Turns(turns)
    _, result = await collect(pipeline(generator, k_passages=2), budget, SIMPLE)
    assert result.stop_reason == reason
    assert result.answer == "Ida Vell was born in Tromsk [1]."
    assert SEARCH_SYSTEM not in generator.requests[-1].prompt.text
    assert result.usage.completion_tokens <= budget.max_completion_tokens
    assert result.usage.prompt_tokens <= budget.max_prompt_tokens
    assert len(generator.requests) <= budget.max_model_calls


@pytest.mark.parametrize("max_steps", range(1, 30))
async def test_no_number_of_steps_breaks_a_run(max_steps: int):
    _, result = await collect(pipeline(Turns(HOPS)), Budget(max_steps=max_steps))
    assert result.stop_reason in ("steps", "answered")
    assert result.error is None
    assert result.answer


async def test_a_run_does_not_inherit_the_hops_of_the_threads_last_run(tmp_path: Path):
    async with open_threads(tmp_path / "threads.sqlite", ttl_s=60) as threads:
        generator = Turns([*HOPS, *HOPS])
        pipe = Pipeline("multi_hop", MemoryRetriever(PASSAGES), generator, threads)
        assert (await pipe.invoke(QUESTION, thread_id="t")).stop_reason == "answered"
        await pipe.invoke("And the lighthouse?", thread_id="t")
        again = generator.requests[3].prompt
        assert not [segment for segment in again.segments if segment.kind == "passage"]
        assert "Where was the designer" in again.text  # the exchange before is history
        assert [turn.role for turn in await pipe.history("t")] == ["user", "assistant"] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_only_an_answer_is_streamed_however_it_arrives(size: int):
    def shown(text: str) -> str:
        stream = AnswerStream()
        pieces = [stream.push(text[i : i + size]) for i in range(0, len(text), size)]
        return "".join(pieces) + stream.flush()

    assert shown("answer: In 1701 [1].") == "In 1701 [1]."
    assert shown("  Answer :\nIn 1701.") == "In 1701."
    assert shown("search: answer: no") == ""
    assert shown("answering is hard: no") == ""
    assert shown("a") == ""
