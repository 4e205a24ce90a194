"""SIGKILL while the graph follows: it goes on from where it was, and equals one made at once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes_retrieval import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.service import LocalRetrieval

pytestmark = pytest.mark.integration
ROUNDS = 6


def run_and_kill(folder: Path, round_number: int, after_s: float) -> list[tuple[str, str]]:
    """Return the acknowledgements of one victim, killed `after_s` seconds after it opened the shard."""
    here = Path(__file__).resolve()
    victim = subprocess.Popen(
        [sys.executable, str(here.with_name("graph_victim.py")), str(folder), str(round_number)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parents[2]), str(here.parents[1])])},
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "open\n"
    time.sleep(after_s)
    victim.send_signal(signal.SIGKILL)
    lines = [line.split() for line in victim.stdout.read().splitlines()]
    victim.wait()
    victim.stdout.close()
    return [(line[0], line[1]) for line in lines if len(line) == 2]


async def taken_up(retrieval: LocalRetrieval) -> None:
    async with asyncio.timeout(60):
        while (await retrieval.graph.stats()).num_pending:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


async def opened(folder: Path) -> LocalRetrieval:
    return await LocalRetrieval.open(folder, RetrievalConfig(graph="rules"), HashEmbedder())


async def test_kills_leave_a_graph_that_goes_on_and_equals_one_made_at_once(tmp_path: Path) -> None:
    choose = random.Random()
    added, unsure, deleted = set(), set(), set()
    half_way = 0
    for round_number in range(ROUNDS):
        for verb, name in run_and_kill(tmp_path, round_number, choose.uniform(0.3, 1.0)):
            {"added": added, "deleting": unsure, "deleted": deleted}[verb].add(name)
        async with await opened(tmp_path) as retrieval:
            half_way += (await retrieval.graph.stats()).num_pending > 0
    assert half_way, "no kill fell while chunks waited"
    async with await opened(tmp_path) as retrieval:
        await taken_up(retrieval)
        stats = await retrieval.graph.stats()
        assert stats.num_chunks == len(await retrieval.documents())
        for name in sorted(added - unsure)[:50]:
            assert [one.name for one in (await retrieval.graph.entities(name, limit=1)).entities] == [name]
        for name in sorted(deleted):
            keys = [one.key for one in (await retrieval.graph.entities(name)).entities]
            assert name.lower() not in keys
        grown = [await retrieval.graph.entities(limit=1000), await retrieval.graph.communities(limit=1000)]
    none = await LocalRetrieval.open(tmp_path, RetrievalConfig(), HashEmbedder())
    async with none as retrieval:
        await retrieval.graph.drop()
    async with await opened(tmp_path) as retrieval:
        assert (await retrieval.graph.stats()).num_pending > 0
        await taken_up(retrieval)
        anew = [await retrieval.graph.entities(limit=1000), await retrieval.graph.communities(limit=1000)]
        assert anew == grown
