"""Nodes and graphs, alone and composed by a user."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from fakes_agents import MemoryRetriever, passage
from fakes_serving import ScriptedGenerator
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

import agents
from agents import (
    AgentsConfig,
    Budget,
    ChatTurn,
    InvalidQuestion,
    Pipeline,
    RagState,
    RunContext,
    UnknownGraph,
)
from agents.choice import choose
from agents.graphs import GRAPHS, build
from agents.nodes import begin, cite, finalize, generate, retrieve
from agents.nodes.generate import history
from agents.nodes.retrieve import search_query
from agents.search_loop.prompt import SEARCH_SYSTEM
from retrieval.types import Hit, SearchResult
from serving.types import KVReuse

TEXT = "PagedAttention was created at UC Berkeley in 2023."
QUESTION = "Where was PagedAttention created?"


def context(script: str = "UC Berkeley [1].", **fields: Any) -> RunContext:
    fields = {"retriever": MemoryRetriever([passage(TEXT)]), **fields}
    return RunContext(generator=ScriptedGenerator(script, max_model_len=100_000), **fields)


def test_every_public_name_exists():
    assert set(agents.__all__) == set(dir(agents))
    for name in agents.__all__:
        assert getattr(agents, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        agents.Nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    heavy = ("langgraph", "torch", "faiss", "vllm", "ray", "gradio", "transformers")
    code = f"import sys, agents; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_an_unknown_graph_names_those_there_are():
    with pytest.raises(UnknownGraph, match=r"'nope'; there are: .*rag"):
        build("nope")


@pytest.mark.parametrize("name", sorted(GRAPHS))
async def test_a_graph_answers_without_a_pipeline(name: str):
    graph = build(name).compile()
    output = await graph.ainvoke({"question": QUESTION}, context=context())
    assert output["answer"] == "UC Berkeley [1]."
    assert output["stop_reason"] == "answered"


async def test_a_graph_checks_its_question():
    with pytest.raises(InvalidQuestion, match="empty"):
        await build("rag").compile().ainvoke({"question": " \n "}, context=context())


async def test_a_user_composes_nodes_into_a_graph_of_their_own():
    async def shout(state: RagState) -> dict[str, Any]:
        return {"answer": state["answer"].upper()}

    graph = StateGraph(RagState, context_schema=RunContext)
    for node in (begin, retrieve, generate, cite, shout, finalize):
        graph.add_node(node.__name__, node)
    for left, right in zip(
        [START, "begin", "retrieve", "generate", "cite", "shout", "finalize"],
        ["begin", "retrieve", "generate", "cite", "shout", "finalize", END],
        strict=True,
    ):
        graph.add_edge(left, right)
    pipeline = Pipeline(
        graph,
        MemoryRetriever([passage(TEXT)]),
        ScriptedGenerator("UC Berkeley.", max_model_len=10_000),
        name="loud",
    )
    events = [event async for event in pipeline.run(QUESTION)]
    assert events[0].graph == "loud"
    assert "shout" in [event.node for event in events if event.type == "node_finished"]
    assert events[-1].result.answer == "UC BERKELEY [1]."


async def test_a_loop_of_a_users_graph_ends_at_each_meter():
    graph = StateGraph(RagState, context_schema=RunContext)
    for node in (begin, retrieve, generate, finalize):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "retrieve")
    graph.add_edge("retrieve", "generate")
    graph.add_conditional_edges(
        "generate", lambda state: "finalize" if state.get("stop_reason") else "retrieve"
    )
    graph.add_edge("finalize", END)
    generator = ScriptedGenerator("no", max_model_len=10_000)
    pipeline = Pipeline(graph, MemoryRetriever([passage(TEXT)]), generator)
    for budget, reason in [
        (Budget(max_retrievals=2, max_steps=99), "retrievals"),
        (Budget(max_model_calls=2, max_steps=99), "model_calls"),
        (Budget(max_completion_tokens=3, max_steps=99), "tokens"),
        (Budget(max_prompt_tokens=1_000, max_steps=99), "tokens"),
        (Budget(max_steps=7), "steps"),
    ]:
        generator.requests.clear()
        result = await pipeline.invoke(QUESTION, budget=budget)
        assert result.stop_reason == reason, budget
        assert 1 <= len(generator.requests) <= 3
        assert result.usage.completion_tokens <= budget.max_completion_tokens
        assert result.usage.prompt_tokens <= budget.max_prompt_tokens


async def test_an_endless_graph_of_a_user_ends_at_its_steps():
    async def spin(state: RagState) -> dict[str, Any]:
        return {"draft": "again"}

    graph = StateGraph(RagState, context_schema=RunContext)
    graph.add_node("spin", spin)
    graph.add_edge(START, "spin")
    graph.add_edge("spin", "spin")
    result = await Pipeline(graph, MemoryRetriever([]), ScriptedGenerator("")).invoke(
        QUESTION, budget=Budget(max_steps=5)
    )
    assert result.stop_reason == "steps"
    assert result.error is None


def test_a_follow_up_searches_with_the_turn_before():
    turns = [
        ChatTurn("user", "Who made vLLM?"),
        ChatTurn("assistant", "Berkeley"),
        ChatTurn("user", "And when?"),
    ]
    assert search_query("And when?", turns) == "And when?\nWho made vLLM?"
    assert search_query("Who made vLLM?", turns[:1]) == "Who made vLLM?"


async def test_a_long_query_is_cut_to_what_search_takes():
    retriever = MemoryRetriever([passage(TEXT)])
    pipeline = Pipeline(
        "rag", retriever, ScriptedGenerator("x", max_model_len=10**6), config=AgentsConfig(max_query_chars=50)
    )
    await pipeline.invoke("word " * 100)
    assert len(retriever.requests[0].query) == 50


async def test_passages_that_the_generator_reordered_keep_their_numbers_for_the_citations():
    texts = ["PagedAttention was created at UC Berkeley.", "PagedAttention was created at a desk in 2023."]
    retriever = MemoryRetriever(
        [passage(text, document=f"{n}.md") for n, text in zip("za", texts, strict=True)]
    )
    generator = ScriptedGenerator("UC Berkeley [2].", max_model_len=100_000)
    hits = {}
    for mode in ("exact", "reorder"):
        config = AgentsConfig(reuse=KVReuse(mode, order="canonical"))  # type: ignore[arg-type]
        run = RunContext(retriever=retriever, generator=generator, config=config)
        state = {"question": QUESTION, **await retrieve({"question": QUESTION}, Runtime(context=run))}
        state["hits"] = sorted(state["hits"], key=lambda hit: hit.chunk_id, reverse=True)
        state |= await generate(state, Runtime(context=run))
        hits[mode] = [hit.chunk_id.split(":")[0] for hit in state["hits"]]
        assert state["draft"] == "UC Berkeley [2]."
    assert hits == {"exact": ["doc-z.md", "doc-a.md"], "reorder": ["doc-a.md", "doc-z.md"]}


async def test_the_search_loop_keeps_passages_where_its_calls_name_them():
    config = AgentsConfig(reuse=KVReuse("reorder"))
    run = context(config=config)
    await build("multi_hop").compile().ainvoke({"question": QUESTION}, context=run)
    assert isinstance(run.generator, ScriptedGenerator)
    loop = [request for request in run.generator.requests if SEARCH_SYSTEM in request.prompt.text]
    assert loop
    assert {request.reuse.mode for request in loop} == {"exact"}


def test_history_holds_answered_exchanges_without_marks():
    turns = [
        ChatTurn("user", "a"),
        ChatTurn("assistant", "one [1].", (), "answered"),
        ChatTurn("user", "b"),
        ChatTurn("assistant", "> quote [1]", (), "abstained"),
        ChatTurn("user", "c"),
        ChatTurn("user", "d"),
        ChatTurn("assistant", "two [2][3].", (), "answered"),
        ChatTurn("user", "now"),
    ]
    assert [turn.text for turn in history(turns, 4)] == ["a", "one.", "d", "two."]
    assert [turn.text for turn in history(turns, 1)] == ["d", "two."]
    assert history(turns, 0) == []


def test_passages_that_repeat_a_better_one_are_not_shown():
    whole = passage("one two three four", ordinal=0)
    inside = passage("two three four", ordinal=1, start=4)
    beside = passage("four five six seven", ordinal=2, start=14)
    copy = passage("one two three four", document="copy.md")
    found = (whole, inside, beside, copy)
    result = SearchResult(tuple(Hit(p.chunk_id, 1.0, i) for i, p in enumerate(found)), found, "v", 1)
    hits, passages = choose(result, 3)
    assert passages == (whole, beside)
    assert [hit.chunk_id for hit in hits] == [whole.chunk_id, beside.chunk_id]


async def test_a_small_window_drops_history_then_passages_and_says_so():
    texts = [
        passage(f"PagedAttention fact {i} " + "x" * 300, ordinal=i, document=f"{i}.md") for i in range(4)
    ]
    generator = ScriptedGenerator("none", max_model_len=1_200)
    pipeline = Pipeline("rag", MemoryRetriever(texts), generator)
    earlier = [ChatTurn("user", "hi " * 50), ChatTurn("assistant", "ho " * 50, (), "answered")]
    events = [event async for event in pipeline.run("What is PagedAttention fact 2?", history=earlier)]
    (warning,) = [event.message for event in events if event.type == "warning"]
    assert "1 earlier exchange(s) and 2 of 4 passages" in warning
    prompt = generator.requests[0].prompt
    assert len(prompt.text) + 128 <= 1_200
    assert not any(segment.kind == "history" for segment in prompt.segments)


async def test_a_window_too_small_for_one_passage_gives_quotes():
    pipeline = Pipeline("rag", MemoryRetriever([passage(TEXT)]), ScriptedGenerator("x", max_model_len=200))
    result = await pipeline.invoke(QUESTION)
    assert result.stop_reason == "tokens"
    assert result.citations[0].quote == TEXT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k_passages", 0),
        ("num_candidates", 2),
        ("support_threshold", 0.0),
        ("temperature", 3.0),
        ("thread_ttl_s", 0.0),
    ],
)
def test_config_names_the_field_and_its_bounds(field: str, value: float):
    with pytest.raises(ValueError, match=rf"agents\.{field} must be .*got {value}"):
        AgentsConfig(**{field: value})  # pyright: ignore[reportArgumentType]
