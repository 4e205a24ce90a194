"""The gate that holds writes back: nothing passes once it is shut, however it was opened before."""

from __future__ import annotations

import asyncio

import pytest

from retrieval.errors import ShardMoved
from retrieval.sharding.write_gate import WriteGate

LEASE_S = 30.0
TURNS = 5


async def _write(gate: WriteGate, passed: list[str]) -> None:
    async with gate.writing():
        passed.append("written")


async def _settle() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_writer_let_go_by_a_gate_that_is_shut_at_once_waits_again() -> None:
    gate, passed = WriteGate(), []
    await gate.shut(LEASE_S)
    writer = asyncio.create_task(_write(gate, passed))
    await _settle()
    gate.open()
    await gate.shut(LEASE_S)  # Before the writer has had its turn.
    await _settle()
    assert passed == []
    gate.open()
    await writer
    assert passed == ["written"]


async def test_shut_waits_for_writes_under_way() -> None:
    gate, go_on = WriteGate(), asyncio.Event()

    async def write() -> None:
        async with gate.writing():
            await go_on.wait()

    writer = asyncio.create_task(write())
    await _settle()
    shutting = asyncio.create_task(gate.shut(LEASE_S))
    await _settle()
    assert not shutting.done()
    go_on.set()
    await asyncio.gather(writer, shutting)


async def test_writer_that_waits_is_told_that_the_documents_moved() -> None:
    gate, passed = WriteGate(), []
    await gate.shut(LEASE_S)
    writer = asyncio.create_task(_write(gate, passed))
    await _settle()
    gate.move()
    with pytest.raises(ShardMoved):
        await writer
    assert passed == []
