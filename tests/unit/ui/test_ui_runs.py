from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from fakes_graft import sample_graft

import ui.runs
from agents.events import NodeStarted, Retrieval, RunEvent, RunFinished, RunStarted, Token, Warned
from agents.state import ChatTurn, Citation, RunResult
from retrieval.types import Hit, Passage
from ui.runs import RunFeed, RunView, advance, answer_message, failed, messages, stopped, turn_messages

QUESTION = "How does PagedAttention store the KV cache in blocks?"
CITED = Citation(1, "d1", "a.md", "d1:0:0", 2, 0, 9, "the quote", 1.0)


def at(seq: int = 0) -> dict:
    return {"run_id": "r", "seq": seq, "t_ms": 1_500.0}


def finished(
    reason, answer: str = "It does. [1]", citations=(CITED,), error: str | None = None
) -> RunFinished:
    return RunFinished(**at(9), result=RunResult("r", "t", answer, citations, reason, "r0", error=error))


def passage(name: str) -> Passage:
    return Passage("c", "d", name, "default", "text", 0, 4)


def view_after(*events: RunEvent) -> RunView:
    view = RunView(QUESTION)
    for event in events:
        view = advance(view, event)
    return view


def text_of(view: RunView) -> str:
    return " ".join(message["content"] for message in messages(view))


def test_stages_follow_the_run():
    found = Retrieval(
        **at(2),
        query="blocks",
        hits=(Hit("c", 1.0, 0), Hit("c", 0.9, 1)),
        passages=(passage("a.md"), passage("b.md")),
        index_version="v1",
        duration_ms=31.4,
    )
    started = [
        RunStarted(**at(), graph="rag", thread_id="t", release="r0"),
        NodeStarted(**at(1), node="retrieve"),
    ]
    assert view_after(*started).stage == "Searching your documents"
    after = view_after(*started, found)
    assert after.stage == "Reading 2 passages"
    assert after.steps[0].text == "Searched “blocks”: 2 passages in 31 ms"
    assert after.steps[0].detail == ("a.md", "b.md")
    assert view_after(*started, found, NodeStarted(**at(3), node="generate")).stage == "Writing"
    assert view_after(NodeStarted(**at(), node="pick_route")).stage == "Pick route"


def test_running_view_shows_its_steps_open_and_its_draft():
    shown = messages(view_after(NodeStarted(**at(), node="generate"), Token(**at(1), text="Half an ")), 4.0)
    assert [message["role"] for message in shown] == ["user", "assistant", "assistant"]
    assert shown[1]["metadata"]["status"] == "pending"
    assert shown[1]["metadata"]["title"] == "Writing… · 4 s"
    assert "draft" in shown[2]["content"]


def test_answer_replaces_the_draft():
    view = view_after(Token(**at(), text="raw draft"), finished("answered"))
    shown = messages(view)
    assert "raw draft" not in shown[-1]["content"]
    assert 'class="cite opens"' in shown[-1]["content"]
    assert shown[1]["metadata"] == {
        "title": "No passages were read",
        "status": "done",
        "id": 1,
        "duration": 1.5,
    }


def test_abstention_is_a_notice_with_quotes_and_never_an_answer():
    content = messages(
        view_after(Token(**at(), text="guess"), finished("abstained", "Not said. “the quote” [1]"))
    )[-1]
    assert 'class="abstained"' in content["content"]
    assert "the quote" in content["content"]
    assert 'class="answer' not in content["content"]
    assert "guess" not in content["content"]


def test_abstention_without_any_passage_says_what_to_do():
    content = messages(view_after(finished("abstained", "", ())))[-1]["content"]
    assert "Try other words" in content
    assert "<ol" not in content


@pytest.mark.parametrize("reason", ["steps", "model_calls", "retrievals", "tokens", "deadline"])
def test_spent_budget_keeps_the_answer_and_says_why(reason):
    content = messages(view_after(finished(reason)))[-1]["content"]
    assert "It does." in content
    assert "Cut short" in content


def test_cancelled_run_keeps_what_was_written():
    view = stopped(view_after(Token(**at(), text="Half an answer")), 2.0)
    assert "Half an answer" in text_of(view)
    assert "Stopped." in text_of(view)
    assert "Stopped." in messages(view_after(finished("cancelled")))[-1]["content"]


def test_error_is_shown_as_text():
    view = view_after(finished("error", "", (), "disk <full>; free 1 GB"))
    content = messages(view)[-1]["content"]
    assert 'class="note error"' in content
    assert "disk &lt;full&gt;; free 1 GB" in content
    assert "broke" in text_of(failed(RunView(QUESTION), "broke", 1.0))


def test_every_stop_reason_ends_in_a_message():
    from typing import get_args

    from agents.state import StopReason

    for reason in get_args(StopReason):
        content = answer_message("Text. [1]", [CITED], reason, "cause")["content"]
        assert content.startswith("<div")
        assert "\n" not in content


def test_warnings_and_lost_shards_become_steps():
    lost = Retrieval(
        **at(), query="q", hits=(), passages=(), index_version="v1", duration_ms=1.0, partial=True
    )
    view = view_after(lost, Warned(**at(1), message="old turns were left out"))
    assert "did not answer" in text_of(view)
    assert "old turns were left out" in text_of(view)


def test_kept_conversation_reads_like_a_fresh_one():
    turns = [
        ChatTurn("user", "<b>why</b>"),
        ChatTurn("assistant", "It does. [1]", (CITED,), "answered"),
        ChatTurn("user", "and?"),
        ChatTurn("assistant", "Not said.", (CITED,), "abstained"),
    ]
    first, second, _, fourth = turn_messages(turns)
    assert "&lt;b&gt;why" in first["content"]
    assert 'class="cite opens"' in second["content"]
    assert 'class="abstained"' in fourth["content"]


async def run(question: str = QUESTION, **pace: float) -> tuple[list[RunView], object]:
    graft = sample_graft(**pace)
    feed = RunFeed(question, graft.rag.stream(question, thread_id="t"))
    views = [view async for view in feed.views()]
    return views, graft.rag.runs[0]


async def test_feed_ends_with_the_answer_and_closes_the_stream():
    views, ran = await run()
    assert views[-1].ending == "answered"
    assert views[-1].citations
    assert ran.closed


async def test_feed_turns_an_exception_into_an_ending(caplog):
    views, ran = await run("please break")
    assert views[-1].ending == "error"
    assert views[-1].error == "the generator stopped; run `graft doctor`"
    assert ran.closed
    assert sum("run failed" in record.message for record in caplog.records) == 1


async def test_stop_closes_the_stream_and_keeps_the_draft():
    graft = sample_graft(token_s=0.005)
    feed = RunFeed("slowly", graft.rag.stream(f"slowly {QUESTION}", thread_id="t"))
    views = []
    async for view in feed.views():
        views.append(view)
        if view.draft:
            feed.stop()
    ran = graft.rag.runs[0]
    assert ran.closed
    assert ran.num_tokens < 200
    assert views[-1].ending == "cancelled"
    assert views[-1].answer == views[-1].draft != ""
    assert "t" not in graft.rag.turns


async def test_closing_the_feed_closes_the_stream():
    graft = sample_graft(token_s=0.005)
    feed = RunFeed("slowly", graft.rag.stream(f"slowly {QUESTION}", thread_id="t"))
    async with aclosing(feed.views()) as views:
        async for view in views:
            if view.draft:
                break
    assert graft.rag.runs[0].closed
    assert graft.rag.runs[0].num_tokens < 200


async def test_feed_beats_while_the_run_is_silent(monkeypatch):
    monkeypatch.setattr(ui.runs, "HEARTBEAT_S", 0.02)
    views, _ = await run(think_s=0.5)
    assert sum(view.stage == "Searching your documents" for view in views) >= 3


async def test_stream_without_an_ending_is_a_failure():
    async def short() -> AsyncIterator[RunEvent]:
        yield RunStarted(**at(), graph="rag", thread_id="t", release="r0")
        await asyncio.sleep(0)

    views = [view async for view in RunFeed("q", short()).views()]
    assert views[-1].ending == "error"
    assert "without an answer" in (views[-1].error or "")
