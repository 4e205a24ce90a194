"""The SDK on a whole platform: real Ray, real index, real engine."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from agents.errors import InvalidQuestion, UnknownGraph
from agents.events import NodeFinished, Retrieval, RunFinished, RunStarted
from graft import AsyncGraft, Graft, NotRunning
from retrieval.errors import InvalidDocument, InvalidSearch, UnknownDocument
from retrieval.types import DocumentState

pytestmark = pytest.mark.integration

QUESTION = "How does PagedAttention cut the KV cache of a sequence into blocks?"


def check_citations(graft: Graft, result) -> None:
    """A citation's quote is exactly the document's text from start to end."""
    for citation in result.citations:
        text = graft.text(citation.document_id).text
        assert citation.quote == text[citation.start : citation.end]
        assert citation.quote
        passage = graft.passages([citation.chunk_id])[0]
        assert passage is not None
        assert passage.start <= citation.start < citation.end <= passage.end
        assert f"[{citation.number}]" in result.answer


@pytest.fixture(params=["here", "remote"])
def graft(request, platform: Graft, platform_url: str):
    """The platform in this process, and the same one over HTTP."""
    if request.param == "here":
        yield platform
    else:
        with Graft.connect(platform_url) as connected:
            yield connected


def test_sample_library_is_ready(graft: Graft):
    library = {item.name: item for item in graft.libraries()}["samples"]
    assert library.num_ready == library.num_documents >= 40
    assert library.num_chunks > 100


def test_search_finds_the_document_of_the_question(graft: Graft):
    result = graft.search(QUESTION, k=5)
    assert len(result.hits) == len(result.passages) == 5
    assert result.passages[0].document == "paged-attention.md"
    assert [hit.rank for hit in result.hits] == [0, 1, 2, 3, 4]
    assert sorted((hit.score for hit in result.hits), reverse=True) == [hit.score for hit in result.hits]


def test_invoke_answers_or_abstains_with_exact_quotes(graft: Graft):
    result = graft.pipeline("rag").invoke(QUESTION)
    assert result.stop_reason in ("answered", "abstained")
    assert result.error is None
    assert result.citations
    check_citations(graft, result)
    assert result.release == graft.status().release
    assert result.usage.prompt_tokens > 100
    assert {"retrieve", "generate", "cite", "total", "first_token"} <= set(result.timings_ms)


def test_stream_ends_with_one_run_finished(graft: Graft):
    events = list(graft.pipeline("rag").stream(QUESTION))
    assert isinstance(events[0], RunStarted)
    assert [type(event) for event in events].count(RunFinished) == 1
    assert isinstance(events[-1], RunFinished)
    assert [event.seq for event in events] == list(range(len(events)))
    assert any(isinstance(event, Retrieval) and event.passages for event in events)
    assert "generate" in [event.node for event in events if isinstance(event, NodeFinished)]


def test_thread_is_kept_listed_and_deleted(graft: Graft):
    pipeline, thread = graft.pipeline("rag"), f"t-{uuid.uuid4().hex}"
    pipeline.invoke(QUESTION, thread_id=thread)
    pipeline.invoke("And who wrote it?", thread_id=thread)
    turns = pipeline.history(thread)
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[0].text == QUESTION
    assert thread in [item.thread_id for item in pipeline.threads()]
    pipeline.delete_thread(thread)
    assert thread not in [item.thread_id for item in pipeline.threads()]


def test_ingest_update_and_delete_are_seen_by_the_next_query(graft: Graft, tmp_path):
    word = f"zyx{uuid.uuid4().hex[:8]}"
    path = tmp_path / f"{word}.md"
    path.write_text(f"# Fact\n\nThe {word} engine was built in Tromsø in 1987.\n", encoding="utf-8")
    library = f"lib-{word}"
    [document] = graft.ingest(path, library=library)
    assert document.state is DocumentState.READY
    assert "1987" in graft.search(f"Where was the {word} engine built?", library=library).passages[0].text
    assert graft.content(document.document_id) == path.read_bytes()

    path.write_text(f"# Fact\n\nThe {word} engine was built in Bergen in 1990.\n", encoding="utf-8")
    [updated] = graft.ingest(path, library=library)
    assert updated.document_id == document.document_id
    texts = [passage.text for passage in graft.search(f"{word} engine", library=library).passages]
    assert any("1990" in text for text in texts)
    assert not any("1987" in text for text in texts)

    graft.delete(document.document_id)
    assert graft.search(f"{word} engine", library=library).hits == ()
    with pytest.raises(UnknownDocument):
        graft.document(document.document_id)


def test_mistakes_keep_their_class_here_and_over_http(graft: Graft, tmp_path):
    with pytest.raises(UnknownGraph, match="nope"):
        graft.pipeline("nope")
    with pytest.raises(InvalidQuestion, match="empty"):
        graft.pipeline("rag").invoke("   ")
    with pytest.raises(InvalidQuestion, match="limit"):
        graft.pipeline("rag").invoke("why " * 250_000)
    with pytest.raises(InvalidSearch):
        graft.search("")
    with pytest.raises(InvalidSearch):
        graft.search("x", k=0)
    with pytest.raises(UnknownDocument):
        graft.text("no-such-document")
    with pytest.raises(InvalidDocument, match="does not exist"):
        graft.ingest(tmp_path / "absent.md")
    with pytest.raises(InvalidDocument):
        graft.add("../escape.md", b"text")
    with pytest.raises(InvalidDocument):
        graft.add("empty.md", b"")


def test_closing_a_stream_frees_the_engine(graft: Graft):
    stream = graft.pipeline("rag").stream(QUESTION)
    for event in stream:
        if event.type == "token":
            break
    stream.close()

    end = time.monotonic() + 20
    while time.monotonic() < end:
        stats = graft._portal.call(graft.generator.stats)
        if stats.num_running + stats.num_waiting == 0:
            return
        time.sleep(0.05)
    pytest.fail(f"the engine still works on {stats}")


async def test_async_twins_return_what_sync_methods_return(graft: Graft):
    assert await graft.alibraries() == await asyncio.to_thread(graft.libraries)
    here = await graft.asearch(QUESTION, k=3)
    there = await asyncio.to_thread(graft.search, QUESTION, k=3)
    assert [hit.chunk_id for hit in here.hits] == [hit.chunk_id for hit in there.hits]
    result = await graft.pipeline("rag").ainvoke(QUESTION)
    again = await asyncio.to_thread(graft.pipeline("rag").invoke, QUESTION)
    assert (result.answer, result.stop_reason) == (again.answer, again.stop_reason)
    kinds = [event.type async for event in graft.pipeline("rag").astream(QUESTION)]
    assert kinds[-1] == "run_finished"


def test_every_public_method_has_a_twin():
    core = {name for name in vars(AsyncGraft) if not name.startswith("_")}
    plain = {"up", "connect", "aclose", "generator", "retriever", "index", "graphs", "pipeline"}
    plain |= {"graph", "max_document_bytes", "restore"}  # Restoring is done before there is a core to twin.
    for name in core - plain:
        assert hasattr(Graft, name), name
        assert hasattr(Graft, f"a{name}"), name


def test_graph_is_a_compiled_langgraph(graft: Graft):
    assert {"retrieve", "generate", "cite"} <= set(graft.pipeline("rag").graph.get_graph().nodes)


def test_connect_to_nothing_says_so():
    with pytest.raises(NotRunning, match="does not answer"):
        Graft.connect("http://127.0.0.1:9")
