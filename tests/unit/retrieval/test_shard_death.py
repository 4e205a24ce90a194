"""SIGKILL at every step of a compaction: whatever was acknowledged is found when the shard reopens."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_model import Beside, compact_and_die

from retrieval.filters import Compare
from retrieval.types import SearchRequest

REQUESTS = [
    SearchRequest("apple", tenant="t", k=3),
    SearchRequest("plum last", tenant="t", filter=Compare("year", "==", 1)),
    SearchRequest("apple", tenant="u", exact=True),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of fsyncs are what this test is made of."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def test_death_at_any_step_of_a_compaction_loses_nothing(folder: Path) -> None:
    # A server that has never searched: forking after a FAISS search is not safe.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["retrieval.shard.shard", "faiss"])
    origin = Beside(folder / "origin")
    for number in range(12):
        origin.put("tu"[number % 2], f"r{number}", f"{('apple', 'plum')[number % 2]} n{number}", {"year": 1})
    origin.shard.compact()
    for number in range(0, 12, 3):
        origin.put("tu"[number % 2], f"r{number}", f"apple again{number}")
    origin.delete("u", "r1")
    origin.shard.close()
    survived = segments = 0
    for step in range(1, 200):
        copy = folder / str(step)
        shutil.copytree(origin.folder, copy)
        child = context.Process(target=compact_and_die, args=(copy, step))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        survived += child.exitcode == 0
        beside = Beside(copy)
        beside.model.chunks = dict(origin.model.chunks)
        beside.put(
            "t", "last", "apple last", {"year": 1}
        )  # Acknowledged before; writing it again is no change.
        for request in REQUESTS:
            beside.check(request)
        beside.shard.compact()
        for request in REQUESTS:
            beside.check(request)
        assert len(list((copy / "segments" / "1").glob("[0-9]*"))) == 1
        segments += 1
        beside.shard.close()
        shutil.rmtree(copy)
        if survived:
            break
    else:
        pytest.fail("the compaction never came to its end")
    assert segments > 15
