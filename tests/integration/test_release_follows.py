"""The release that answers name, on a real platform whose index switches versions."""

from __future__ import annotations

import pytest

from agents.events import RunFinished, RunStarted
from graft import Graft
from graft.releases import ReleaseLedger

pytestmark = pytest.mark.integration

QUESTION = "What problem does PagedAttention solve?"


def test_next_answer_names_the_release_of_the_version_switched_to(platform: Graft, platform_url: str, home):
    before = platform.status().release
    made = platform.index.reindex(vectors="float16")
    events = platform.pipeline("rag").stream(QUESTION)
    began = next(events)
    assert isinstance(began, RunStarted)
    assert began.release == before
    with Graft.connect(platform_url) as remote:
        remote.index.switch(made.version_id)
    (ended,) = [event for event in events if isinstance(event, RunFinished)]
    assert ended.result.release == before  # Admitted before the switch.
    after = platform.pipeline("rag").invoke(QUESTION)
    assert after.citations
    assert after.release != before
    ledger = ReleaseLedger(home / "releases")
    assert ledger.current() == after.release == platform.status().release
    assert ledger.get(after.release).index_version == made.version_id
    platform.index.rollback()
    assert platform.pipeline("rag").invoke(QUESTION).release == before == ledger.current()
    platform.index.drop_version(made.version_id)
