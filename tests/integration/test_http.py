"""The HTTP server with the clients people use."""

from __future__ import annotations

import json
import time
from typing import Literal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from graft.config import ServerConfig

pytestmark = pytest.mark.integration

QUESTION = "What does LoRA add to a weight matrix?"
JSON = {"content-type": "application/json"}


def chat(model: str) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def http(platform_url: str):
    with httpx.Client(base_url=platform_url, timeout=120) as client:
        yield client


def wait_idle(http: httpx.Client) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        stats = http.get("/v1/generator").json()["stats"]
        if stats["num_running"] + stats["num_waiting"] == 0:
            return
        time.sleep(0.1)
    pytest.fail(f"the engine still works on {stats}")


def test_healthz_and_status(http):
    assert http.get("/healthz").json() == {
        "status": "ok",
        "parts": {"retrieval": "ready", "generator": "ready"},
    }
    status = http.get("/v1/status").json()
    assert status["release"].startswith("r-")
    assert status["graphs"] == ["rag", "multi_hop"]


def test_metrics_of_every_part_are_scraped(http):
    def scraped() -> dict[str, float]:
        families = text_string_to_metric_families(http.get("/metrics").text)
        totals: dict[str, float] = {}
        for sample in (sample for family in families for sample in family.samples):
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals

    before = scraped()
    assert before["graft_part_up"] == 2
    assert before["graft_retrieval_shard_up"] >= 1
    assert "graft_generator_prompt_tokens_total" in before
    http.post("/v1/search", json={"requests": [{"query": "valve", "k": 3}]}).raise_for_status()
    after = scraped()
    assert after["graft_retrieval_searches_total"] >= before["graft_retrieval_searches_total"] + 1
    assert after["graft_retrieval_rows"] > 0
    for name in ("partial_results_total", "queued_searches", "ingest_queue", "delta_rows", "compactions"):
        assert f"graft_retrieval_{name}" in after


def test_ask_returns_the_documented_shape(http):
    answer = http.post("/v1/ask", json={"question": QUESTION}).json()
    assert {"answer", "citations", "stop_reason", "timings_ms", "release"} <= set(answer)
    for citation in answer["citations"]:
        assert {"document", "chunk_id", "page", "start", "end", "quote"} <= set(citation)


def test_official_openai_client_gets_cited_answers(platform_url):
    from openai import OpenAI

    with OpenAI(base_url=f"{platform_url}/v1", api_key="none") as client:
        ids = [model.id for model in client.models.list()]
        assert "graft/rag" in ids
        messages = [{"role": "user", "content": QUESTION}]
        whole = client.chat.completions.create(model="graft/rag", messages=messages)
        answer = whole.choices[0].message
        assert answer.content
        assert answer.annotations
        for annotation in answer.annotations:
            place = annotation.url_citation
            assert answer.content[place.start_index : place.end_index].startswith("[")
        assert whole.model_extra["graft"]["citations"]
        assert whole.usage.prompt_tokens > 0

        streamed = list(client.chat.completions.create(model="graft/rag", messages=messages, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == answer.content
        assert streamed[-1].choices[0].finish_reason == "stop"


def test_bare_model_streams_and_counts(platform_url):
    from openai import OpenAI

    with OpenAI(base_url=f"{platform_url}/v1", api_key="none") as client:
        bare = next(model.id for model in client.models.list() if not model.id.startswith("graft/"))
        messages = [{"role": "user", "content": "Hello"}]
        whole = client.chat.completions.create(model=bare, messages=messages, max_tokens=8, temperature=0)
        stream = client.chat.completions.create(
            model=bare, messages=messages, max_tokens=8, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 8


class Verdict(BaseModel):
    relevant: bool
    grade: Literal["good", "bad"]


def test_official_openai_client_gets_the_form_it_asks_for(platform_url):
    from openai import BadRequestError, OpenAI

    with OpenAI(base_url=f"{platform_url}/v1", api_key="none") as client:
        bare = next(model.id for model in client.models.list() if not model.id.startswith("graft/"))
        asked = {"model": bare, "messages": [{"role": "user", "content": "Grade it."}], "temperature": 0}
        parsed = client.chat.completions.parse(**asked, response_format=Verdict, max_tokens=64)
        assert isinstance(parsed.choices[0].message.parsed, Verdict)
        chosen = client.chat.completions.create(
            **asked, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
        )
        assert chosen.choices[0].message.content in ("yes", "no")
        with pytest.raises(BadRequestError, match="cited sentences"):
            client.chat.completions.parse(**{**asked, "model": "graft/rag"}, response_format=Verdict)
        with pytest.raises(BadRequestError, match="one of choices, regex and json_schema"):
            client.chat.completions.create(**asked, extra_body={"structured_outputs": {}})


def test_earlier_messages_are_history(platform_url):
    from openai import OpenAI

    with OpenAI(base_url=f"{platform_url}/v1", api_key="none") as client:
        first = [{"role": "user", "content": QUESTION}]
        later = [
            *first,
            {"role": "assistant", "content": "Two matrices."},
            {"role": "user", "content": "Who made it?"},
        ]
        alone = client.chat.completions.create(model="graft/rag", messages=later[-1:])
        after = client.chat.completions.create(model="graft/rag", messages=later)
        assert after.usage.prompt_tokens != alone.usage.prompt_tokens


async def test_langchain_openai_invokes_and_streams(platform_url):
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="graft/rag", base_url=f"{platform_url}/v1", api_key="none")
    answer = await model.ainvoke(QUESTION)
    assert answer.content
    pieces = [piece.content async for piece in model.astream(QUESTION)]
    assert "".join(pieces) == answer.content


def test_leaving_a_stream_cancels_down_to_the_engine(http):
    with http.stream("POST", "/v1/runs", json={"question": QUESTION}) as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and json.loads(line[6:])["type"] == "token":
                break
    wait_idle(http)


@pytest.mark.parametrize(
    ("method", "path", "kwargs", "status", "words"),
    [
        ("POST", "/v1/ask", {"json": {"question": ""}}, 400, "empty"),
        ("POST", "/v1/ask", {"json": {"question": "x", "graph": "zzz"}}, 404, "zzz"),
        ("POST", "/v1/ask", {"json": {"question": "x", "quesiton": "y"}}, 400, "quesiton"),
        ("POST", "/v1/ask", {"json": {"question": "x" * 2_000_000}}, 413, "limit is 1,048,576"),
        ("POST", "/v1/ask", {"content": b"{no json", "headers": JSON}, 400, "JSON"),
        ("POST", "/v1/search", {"json": {"requests": []}}, 400, "requests"),
        ("POST", "/v1/search", {"json": {"requests": [{"query": "x", "k": 100_000}]}}, 400, "100000"),
        ("GET", "/v1/documents/none", {}, 404, "none"),
        ("DELETE", "/v1/documents/none", {}, 404, "none"),
        ("GET", "/v1/threads/none", {}, 404, "none"),
        ("GET", "/v1/nowhere", {}, 404, "Not Found"),
        ("POST", "/v1/chat/completions", {"json": chat("gpt")}, 400, "unknown model 'gpt'"),
        ("POST", "/v1/chat/completions", {"json": chat("graft/zzz")}, 404, "zzz"),
        ("POST", "/v1/chat/completions", {"json": {"model": "graft/rag", "messages": []}}, 400, "messages"),
        ("POST", "/v1/documents", {"params": {"name": "a.md"}, "content": b""}, 422, "empty"),
        ("POST", "/v1/documents", {"params": {"name": "../../etc/passwd"}, "content": b"x"}, 422, "passwd"),
    ],
)  # fmt: skip
def test_bad_request_is_a_clear_error_and_the_platform_stays_up(http, method, path, kwargs, status, words):
    response = http.request(method, path, **kwargs)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert words.lower() in error["message"].lower()
    assert error["type"]
    assert http.get("/healthz").status_code == 200


def test_upload_above_the_limit_is_refused_while_it_is_read(http):
    limit = ServerConfig().max_upload_bytes
    piece = b"x" * 2**20

    def body():  # no content-length: only counting what arrives can refuse it
        for _ in range(2 * limit // len(piece)):
            yield piece

    response = http.post("/v1/documents", params={"name": "big.txt"}, content=body())
    assert response.status_code == 422
    assert "limit of 104,857,600 bytes" in response.json()["error"]["message"]
    assert "big.txt" not in [item["name"] for item in http.get("/v1/documents").json()["documents"]]


def test_web_page_of_another_origin_is_refused(http):
    assert http.get("/v1/status", headers={"host": "evil.example"}).status_code == 401
    assert (
        http.post("/v1/ask", json={"question": "x"}, headers={"origin": "http://evil.example"}).status_code
        == 401
    )
    assert http.get("/", headers={"host": "evil.example"}).status_code == 401


def test_document_content_is_never_rendered(http):
    html = b"<html><body><script>alert(1)</script><p>The harmless page about owls.</p></body></html>"
    document = http.post(
        "/v1/documents", params={"name": "page.html", "library": "html"}, content=html
    ).json()
    response = http.get(f"/v1/documents/{document['document_id']}/content")
    assert response.content == html
    assert response.headers["content-disposition"] == "attachment"
    assert response.headers["content-type"] == "application/octet-stream"
