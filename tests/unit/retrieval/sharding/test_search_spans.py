"""A search as a span: how much was found, never what for."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes_retrieval import HashEmbedder
from opentelemetry.trace import StatusCode
from recorded_spans import RecordedSpans

from retrieval.config import RetrievalConfig
from retrieval.errors import UnknownVersion
from retrieval.sharding.sharded_retrieval import ShardedRetrieval
from retrieval.types import Record, SearchRequest


async def test_a_search_tells_what_answered_and_no_word_of_it(tmp_path: Path, spans: RecordedSpans):
    config = RetrievalConfig(num_shards=2)
    async with await ShardedRetrieval.open(tmp_path, config, HashEmbedder()) as retrieval:
        await retrieval.upsert([Record(f"r{i}", f"the patient is Ada {i}") for i in range(4)])
        (result,) = await retrieval.search([SearchRequest("who is Ada", k=3)])
        with pytest.raises(UnknownVersion):
            await retrieval.search([SearchRequest("who is Ada", version="none")])
    found, failed = spans.all()
    told = dict(found.attributes or {})
    assert found.name == "retrieval"
    assert told["gen_ai.operation.name"] == "retrieval"
    assert told["graft.retrieval.num_queries"] == 1
    assert told["graft.retrieval.num_hits"] == len(result.hits) == 3
    assert told["graft.retrieval.is_partial"] is False
    assert told["graft.index_version"] == result.index_version
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == "UnknownVersion"
    assert "Ada" not in spans.text()
