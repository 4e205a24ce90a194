"""Threads on disk: what is kept, for whom, for how long, and what a killed process leaves."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes_agents import MemoryRetriever, passage
from fakes_serving import ScriptedGenerator
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from agents import AgentsConfig, Budget, InvalidThread, Pipeline, ThreadStore, UnknownThread, open_threads
from agents.checkpoints import thread_key

TEXT = "PagedAttention was created at UC Berkeley in 2023."
FILLER = "Nothing else in this passage is ever quoted, whatever the question may be about. " * 40
SECRET = "zebrafish-lighthouse-cantilever"
QUESTION = "Where was PagedAttention created?"
TESTS = Path(__file__).resolve().parents[1]


@dataclass
class Hostile:
    """Leaves a mark when something constructs it."""

    path: str

    def __post_init__(self) -> None:
        Path(self.path).write_text("constructed")


def pipeline(threads: ThreadStore, script: str = "UC Berkeley.", *, delay_s: float = 0.0) -> Pipeline:
    generator = ScriptedGenerator(script, max_model_len=1_000_000, token_delay_s=delay_s)
    retriever = MemoryRetriever([passage(f"{TEXT}\n\n{FILLER}\n\n{SECRET}")])
    return Pipeline("rag", retriever, generator, threads, AgentsConfig())


def file_bytes(path: Path) -> bytes:
    return b"".join(part.read_bytes() for part in sorted(path.parent.glob(path.name + "*")))


async def test_a_thread_goes_on_after_a_restart(tmp_path: Path):
    path = tmp_path / "threads.db"
    async with open_threads(path, ttl_s=60) as threads:
        result = await pipeline(threads).invoke(QUESTION, thread_id="t")
    async with open_threads(path, ttl_s=60) as threads:
        pipe = pipeline(threads)
        await pipe.invoke("And by whom?", thread_id="t")
        turns = await pipe.history("t")
        assert [turn.role for turn in turns] == ["user", "assistant"] * 2
        assert turns[0].text == QUESTION
        assert turns[1].text == result.answer
        assert turns[1].citations == result.citations
        assert isinstance(turns[1].citations, tuple)
        assert turns[1].stop_reason == "answered"
        prompt = pipe._generator.requests[0].prompt  # pyright: ignore[reportAttributeAccessIssue]
        assert [
            segment.text for segment in prompt.segments if segment.kind == "history" and not segment.trusted
        ] == [
            QUESTION,
            "UC Berkeley.",
        ]
    assert path.stat().st_mode & 0o077 == 0


async def test_passages_stay_out_of_the_file_and_the_file_stays_small(tmp_path: Path):
    path = tmp_path / "threads.db"
    async with open_threads(path, ttl_s=60) as threads:
        pipe = pipeline(threads)
        for _ in range(10):
            result = await pipe.invoke(QUESTION, thread_id="t")
        assert len(await pipe.history("t")) == 20
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT COUNT(*) FROM checkpoints").fetchone() == (1,)
        written = file_bytes(path)
    assert result.citations[0].quote.encode() in written
    assert SECRET.encode() not in written
    assert FILLER[:60].encode() not in written
    with closing(sqlite3.connect(path)) as connection:
        kept = sum(
            connection.execute(f"SELECT COALESCE(SUM(LENGTH({column})), 0) FROM {table}").fetchone()[0]
            for table, column in (("checkpoints", "checkpoint"), ("writes", "value"))
        )
    assert kept < 20_000


async def test_no_tenant_sees_anothers_threads(tmp_path: Path):
    async with open_threads(tmp_path / "threads.db", ttl_s=60) as threads:
        pipe = pipeline(threads)
        await pipe.invoke(QUESTION, thread_id="t", tenant="a")
        await pipe.invoke("Where else?", thread_id="t", tenant="b")
        assert [thread.thread_id for thread in await pipe.threads("a")] == ["t"]
        assert (await pipe.history("t", "a"))[0].text == QUESTION
        assert (await pipe.history("t", "b"))[0].text == "Where else?"
        assert await pipe.threads("c") == []
        with pytest.raises(UnknownThread, match="no thread 't'"):
            await pipe.history("t", "c")
        with pytest.raises(UnknownThread):
            await pipe.delete_thread("t", "c")
        await pipe.delete_thread("t", "a")
        assert await pipe.threads("a") == []
        assert len(await pipe.history("t", "b")) == 2


def test_no_two_tenants_can_form_one_key():
    assert thread_key("a", "b:c") != thread_key("a:b", "c")
    assert thread_key("a:1", "x") != thread_key("a", "1:x")
    for bad in ("", "x" * 201):
        with pytest.raises(InvalidThread, match="1 to 200"):
            thread_key("a", bad)


async def test_threads_are_listed_last_used_first_with_their_first_question(tmp_path: Path):
    async with open_threads(tmp_path / "threads.db", ttl_s=60) as threads:
        pipe = pipeline(threads)
        await pipe.invoke(QUESTION, thread_id="one")
        await pipe.invoke("Why\n" + "very " * 40 + "long?", thread_id="two")
        await pipe.invoke("And when?", thread_id="one")
        one, two = await pipe.threads()
        assert (one.thread_id, one.title) == ("one", QUESTION)
        assert two.thread_id == "two"
        assert len(two.title) <= 80
        assert two.title.startswith("Why very very")
        assert one.updated_s >= two.updated_s


async def test_threads_expire(tmp_path: Path):
    async with open_threads(tmp_path / "threads.db", ttl_s=60) as threads:
        pipe = pipeline(threads)
        await pipe.invoke(QUESTION, thread_id="old")
        assert await threads.prune(time.time() + 30) == 0
        assert await threads.prune(time.time() + 61) == 1
        assert await pipe.threads() == []
        with closing(sqlite3.connect(tmp_path / "threads.db")) as connection:
            assert connection.execute("SELECT COUNT(*) FROM writes").fetchone() == (0,)


async def test_a_deleted_thread_is_gone_from_the_file(tmp_path: Path):
    path = tmp_path / "threads.db"
    async with open_threads(path, ttl_s=60) as threads:
        pipe = pipeline(threads)
        await pipe.invoke("Where was the Kumquat system created?", thread_id="t")
        await pipe.delete_thread("t")
        with pytest.raises(UnknownThread):
            await pipe.history("t")
        with closing(sqlite3.connect(path)) as connection:
            for table in ("threads", "checkpoints", "writes"):
                assert connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)
        assert b"Kumquat" not in file_bytes(path)


async def test_leaving_early_keeps_the_question_and_the_partial_answer(tmp_path: Path):
    async with open_threads(tmp_path / "threads.db", ttl_s=60) as threads:
        pipe = pipeline(threads, "UC Berkeley made it " * 20, delay_s=0.002)
        events = pipe.run(QUESTION, thread_id="t")
        async for event in events:
            if event.type == "token" and "made" in event.text:
                break
        await events.aclose()
        question, answer = await pipe.history("t")
        assert question.text == QUESTION
        assert answer.text.startswith("UC Berkeley made")
        assert answer.stop_reason == "cancelled"
        again = await pipeline(threads).invoke(QUESTION, thread_id="t")
        assert again.stop_reason == "answered"
        assert len(await pipe.history("t")) == 4


async def test_runs_of_one_thread_follow_one_another(tmp_path: Path):
    async with open_threads(tmp_path / "threads.db", ttl_s=60) as threads:
        pipe = pipeline(threads, delay_s=0.002)
        await asyncio.gather(*(pipe.invoke(f"Question {i}: {QUESTION}", thread_id="t") for i in range(5)))
        turns = await pipe.history("t")
        assert [turn.role for turn in turns] == ["user", "assistant"] * 5


async def test_meters_begin_anew_with_each_run_of_a_thread(tmp_path: Path):
    async with open_threads(tmp_path / "threads.db", ttl_s=60) as threads:
        pipe = pipeline(threads)
        budget = Budget(max_model_calls=1, max_retrievals=1)
        results = [await pipe.invoke(QUESTION, thread_id="t", budget=budget) for _ in range(3)]
        assert [result.stop_reason for result in results] == ["answered"] * 3
        assert len({result.usage.completion_tokens for result in results}) == 1


async def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    path = tmp_path / "threads.db"
    path.write_bytes(b"not a database, certainly not one " * 100)
    with pytest.raises(OSError, match=r"threads\.db cannot be used.*move it away"):
        async with open_threads(path, ttl_s=60):
            pass


async def test_a_class_the_file_names_is_not_constructed(tmp_path: Path):
    mark = tmp_path / "mark"
    hostile = JsonPlusSerializer().dumps_typed(Hostile(str(mark)))
    mark.unlink()
    async with open_threads(tmp_path / "threads.db", ttl_s=60) as threads:
        assert threads.saver.serde.loads_typed(hostile) == {"path": str(mark)}
        assert not mark.exists()
    async with open_threads(tmp_path / "more.db", ttl_s=60, extra_types=(Hostile,)) as threads:
        assert threads.saver.serde.loads_typed(hostile) == Hostile(str(mark))


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from integration.test_checkpoints import QUESTION, pipeline
from agents import open_threads

async def main():
    async with open_threads(Path({path!r}), ttl_s=3600) as threads:
        await pipeline(threads).invoke(QUESTION, thread_id="t")
        slow = pipeline(threads, "UC Berkeley " * 400, delay_s=0.01)
        async for event in slow.run("And when?", thread_id="t"):
            if event.type == "token":
                print("token", flush=True)

asyncio.run(main())
"""


async def test_a_killed_process_leaves_the_earlier_turns_intact(tmp_path: Path):
    path = tmp_path / "threads.db"
    code = CHILD.format(tests=str(TESTS), root=str(TESTS.parent), path=str(path))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"token\n"
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    async with open_threads(path, ttl_s=3600) as threads:
        pipe = pipeline(threads)
        turns = await pipe.history("t")
        assert [turn.text for turn in turns[:2]] == [QUESTION, "UC Berkeley [1]."]
        assert all(turn.role == "user" for turn in turns[2:])
        assert (await pipe.invoke(QUESTION, thread_id="t")).stop_reason == "answered"
        assert [turn.stop_reason for turn in await pipe.history("t") if turn.role == "assistant"] == [
            "answered"
        ] * 2
