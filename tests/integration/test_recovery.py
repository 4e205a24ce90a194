"""Killed actors: the platform says so, comes back by itself, and has lost nothing it acknowledged."""

from __future__ import annotations

import os
import signal
import time
import uuid
from contextlib import suppress

import pytest
import ray

from graft import Graft
from retrieval.errors import IndexUnavailable
from retrieval.types import DocumentState
from serving.errors import GeneratorUnavailable

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

QUESTION = "What does FlashAttention avoid writing to GPU memory?"


def kill(actor) -> None:
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)


def test_killed_shard_loses_nothing_acknowledged(platform: Graft):
    library = f"kill-{uuid.uuid4().hex[:8]}"
    names = [f"{library}-{i}.md" for i in range(6)]
    added = [platform.add(name, f"Item {name} is kept.".encode(), library=library) for name in names]
    kill(platform.retriever.shard)
    documents = platform._portal.call(wait_ready, platform, [document.document_id for document in added])
    assert [document.state for document in documents] == [DocumentState.READY] * len(names)
    assert {
        passage.document for passage in platform.search("item kept", k=10, library=library).passages
    } == set(names)


async def wait_ready(platform: Graft, document_ids: list[str]):
    return await platform.retriever.wait_ready(document_ids, timeout_s=120)


def test_killed_embedder_comes_back(platform: Graft):
    kill(platform.retriever.embedder)
    query = f"a query nobody asked before {uuid.uuid4().hex}"
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(IndexUnavailable):
            assert platform.search(query, k=3).hits
            return
        time.sleep(1)
    pytest.fail("the embedder did not come back")


def test_killed_generator_is_named_then_answers_again(platform: Graft):
    ready = platform._portal.call(platform.generator.ready)
    os.kill(ready.pid, signal.SIGKILL)
    seen = platform.pipeline("rag").invoke(QUESTION)
    if seen.stop_reason == "error":
        assert seen.error_kind == GeneratorUnavailable.__name__
        assert "again" in (seen.error or "")
    assert {part.name: part.state for part in platform.status().parts}["retrieval"] == "ready"
    end = time.monotonic() + 120
    while (result := platform.pipeline("rag").invoke(QUESTION)).stop_reason == "error":
        assert time.monotonic() < end, result.error
        time.sleep(1)
    assert result.citations
    assert platform.status().healthy


def test_client_idle_over_a_restart_is_answered_at_once(platform: Graft):
    """The client's session died with the actor; its next request opens another without an error."""
    assert platform.pipeline("rag").invoke(QUESTION).error is None
    before = platform._portal.call(platform.generator.ready).pid
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(GeneratorUnavailable):
            if platform._portal.call(platform.generator.ready).pid != before:
                break
        time.sleep(0.5)
    result = platform.pipeline("rag").invoke(QUESTION)
    assert result.error is None
    assert result.stop_reason in ("answered", "abstained")
