"""SIGKILL at random moments: what was acknowledged is there, what was deleted is not."""

from __future__ import annotations

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
from retrieval.types import DocumentState, SearchRequest

pytestmark = pytest.mark.integration
ROUNDS = 10


def _run_and_kill(folder: Path, round_number: int, after_s: float) -> list[list[str]]:
    """Return the acknowledgements of one victim, killed `after_s` seconds after it opened the shard."""
    here = Path(__file__).resolve()
    paths = [str(here.parents[2]), str(here.parents[1])]
    victim = subprocess.Popen(
        [sys.executable, str(here.with_name("retrieval_victim.py")), str(folder), str(round_number)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == "open\n"
    time.sleep(after_s)
    victim.send_signal(signal.SIGKILL)
    lines = victim.stdout.read().splitlines()
    victim.wait()
    victim.stdout.close()
    return [line.split() for line in lines if len(line.split()) == 3]


async def test_ten_kills_lose_nothing_acknowledged(tmp_path: Path) -> None:
    choose = random.Random()
    added: dict[str, str] = {}
    maybe_deleted, deleted = set(), set()
    for round_number in range(ROUNDS):
        for verb, document_id, name in _run_and_kill(tmp_path, round_number, choose.uniform(0.0, 0.6)):
            if verb == "added":
                added[document_id] = name
            elif verb == "deleting":
                maybe_deleted.add(document_id)
            else:
                deleted.add(document_id)
    assert len(added) > ROUNDS
    async with await LocalRetrieval.open(tmp_path, RetrievalConfig(), HashEmbedder()) as retrieval:
        certain = [document_id for document_id in added if document_id not in maybe_deleted]
        settled = await retrieval.wait_ready(certain, timeout_s=120)
        assert {document.state for document in settled} == {DocumentState.READY}
        assert [document.name for document in settled] == [added[document_id] for document_id in certain]
        for document in settled[:20]:
            request = SearchRequest("topic", document_ids=(document.document_id,))
            (result,) = await retrieval.search([request])
            assert document.name in result.passages[0].text
            assert document.name.encode() in await retrieval.content(document.document_id)
        here = {document.document_id for document in await retrieval.documents()}
        assert not here & deleted
        if deleted:
            (result,) = await retrieval.search([SearchRequest("topic", k=1000, document_ids=tuple(deleted))])
            assert result.hits == ()
