"""Several copies answer as one: failover, hedging, deadlines, and no read behind a write."""

from __future__ import annotations

import asyncio
import time

import pytest
from fakes_sharding import ScriptedCopy

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, ShardRestarting, UnknownDocument
from retrieval.sharding.latency import Latency
from retrieval.sharding.replica_set import ReplicaSet
from retrieval.types import SearchRequest

CONFIG = RetrievalConfig(min_hedge_ms=5.0, call_timeout_s=2.0)


def replica_set(*copies: ScriptedCopy) -> ReplicaSet:
    return ReplicaSet("shard-0", copies, CONFIG)


async def test_reads_go_to_the_copies_in_turn() -> None:
    copies = [ScriptedCopy(slot) for slot in range(3)]
    shard = replica_set(*copies)
    answers = [await shard.term_stats("v", ["word"]) for _ in range(6)]
    assert sorted(answers) == [0, 0, 1, 1, 2, 2]


async def test_failed_copy_is_replaced_by_the_next_at_once() -> None:
    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    copies[0].gone = True
    shard = replica_set(*copies)
    for _ in range(10):
        assert await shard.term_stats("v", ["word"]) == 1
    assert len(copies[0].calls) <= 2  # Then it is asked last.


async def test_slow_copy_is_hedged_and_its_call_cancelled() -> None:
    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    shard = replica_set(*copies)
    for _ in range(40):
        await shard.term_stats("v", ["word"])
    copies[0].delay_s = 30.0
    for _ in range(4):
        assert await shard.term_stats("v", ["word"]) == 1
    assert shard.num_hedged >= 1
    assert copies[0].cancelled == shard.num_hedged


def test_hedges_are_bounded_when_everything_is_slow() -> None:
    latency = Latency(0.005)
    granted = 0
    for _ in range(1000):
        granted += latency.take_hedge()
        latency.add(0.1)
    assert granted <= 110


async def test_hung_copy_ends_at_the_deadline() -> None:
    copy = ScriptedCopy(0)
    copy.delay_s = 30.0
    with pytest.raises(IndexUnavailable, match=r"within 0\.0"):
        await replica_set(copy).term_stats("v", ["word"], deadline_s=0.05)


async def test_restart_is_waited_out_within_the_deadline() -> None:
    copy = ScriptedCopy(0)
    copy.restarting = True
    shard = replica_set(copy)
    asyncio.get_running_loop().call_later(0.15, setattr, copy, "restarting", False)
    assert await shard.term_stats("v", ["word"], deadline_s=5.0) == 0
    copy.restarting = True
    with pytest.raises(ShardRestarting):
        await shard.term_stats("v", ["word"], deadline_s=0.2)


async def test_all_copies_gone_is_said_at_once() -> None:
    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    for copy in copies:
        copy.gone = True
    with pytest.raises(IndexUnavailable, match="is gone"):
        await replica_set(*copies).term_stats("v", ["word"], deadline_s=60.0)
    assert all(len(copy.calls) == 1 for copy in copies)


async def test_reads_after_a_write_carry_its_log_position() -> None:
    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    shard = replica_set(*copies)
    copies[0].seq = 7
    assert await shard.write("delete", "document") == 0
    for _ in range(4):
        await shard.candidates("v", [SearchRequest("q")], [[1.0]], None)  # pyright: ignore[reportArgumentType]
    reads = [call for copy in copies for call in copy.calls if call.method == "candidates"]
    assert {call.min_seq for call in reads} == {7}
    wanted = SearchRequest("q", min_seq={"shard-0": 9, "shard-1": 50})
    await shard.candidates("v", [wanted], [[1.0]], None)  # pyright: ignore[reportArgumentType]
    assert max(call.min_seq for copy in copies for call in copy.calls) == 9


async def test_writes_go_to_the_primary_alone() -> None:
    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    shard = replica_set(*copies)
    assert [await shard.write("add", "x") for _ in range(3)] == [0, 0, 0]
    shard.promote(1)
    assert await shard.write("add", "x") == 1
    copies[1].gone = True
    with pytest.raises(IndexUnavailable):
        await shard.write("add", "x")
    assert len(copies[0].calls) == 3


async def test_callers_fault_is_raised_and_not_asked_again() -> None:
    def refuse(_: object) -> None:
        raise UnknownDocument("no such document")

    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    for copy in copies:
        copy.values["neighbours"] = refuse
    with pytest.raises(UnknownDocument):
        await replica_set(*copies).neighbours("v", "c", 1, 1, "tenant")
    assert sum(len(copy.calls) for copy in copies) == 1


async def test_chunks_a_lagging_copy_lacks_are_asked_of_the_primary() -> None:
    held = {"a": 1, "b": 2}
    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    copies[0].values["vectors"] = lambda call: {key: held[key] for key in call.args[1]}
    copies[1].values["vectors"] = lambda call: {key: held[key] for key in call.args[1] if key != "b"}
    shard = replica_set(*copies)
    for _ in range(4):
        assert await shard.vectors("v", ["a", "b"]) == held
    copies[0].gone = True
    assert [await shard.vectors("v", ["a", "b"]) for _ in range(3)] == [{"a": 1}] * 3


async def test_deadline_covers_all_attempts_together() -> None:
    copies = [ScriptedCopy(0), ScriptedCopy(1)]
    for copy in copies:
        copy.delay_s = 30.0
    began = time.monotonic()
    with pytest.raises(IndexUnavailable):
        await replica_set(*copies).term_stats("v", ["word"], deadline_s=0.2)
    assert time.monotonic() - began < 2.0
