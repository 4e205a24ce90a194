"""Mixed requests over HTTP, some of whose clients leave midway, and what became of each."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

Kind = Literal["ask", "search", "stream", "chat", "documents"]
"""A run of the rag graph, a search, the bare model streamed and whole, the list of documents."""

SHARES: dict[Kind, int] = {"ask": 4, "search": 6, "stream": 4, "chat": 3, "documents": 3}
CANCELLABLE: tuple[Kind, ...] = ("ask", "stream", "chat")
CONCURRENCY = 24
REQUEST_TIMEOUT_S = 120.0
MAX_REFUSALS = 20
MAX_TOKENS = 48
LEAVE_AFTER_S = (0.01, 0.15)
"""A client that leaves a request without a stream does so after a time drawn from this range."""
DRAIN_TIMEOUT_S = 60.0


class Lost(Exception):
    """A request got neither a complete answer nor a clear refusal."""


class Refused(Exception):
    """The platform answered 429; carries the seconds after which to retry."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"retry after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


@dataclass
class Outcome:
    """What became of the requests."""

    complete: Counter[str] = field(default_factory=Counter)
    """Answered in full, by kind."""
    cancelled: Counter[str] = field(default_factory=Counter)
    """Left by their client before the end, by kind."""
    refusals: int = 0
    """Answers 429 with Retry-After; their requests were sent again."""
    lost: list[str] = field(default_factory=list)
    """Why each lost request is lost."""
    left_in_engine: int = 0
    """Requests the engine still worked on when all clients were done."""
    seconds: float = 0.0
    """How long all of it took."""


class MixedLoad:
    """Sends the requests, a bounded number at a time.

    Args:
        url: Address of the platform.
        model: Id of the bare model.
        questions: Asked in turn.
        num_documents: How many documents a complete list holds.
        seed: Decides the order of kinds and when clients leave.
    """

    def __init__(
        self, url: str, model: str, questions: Sequence[str], num_documents: int, seed: int = 7
    ) -> None:
        limits = httpx.Limits(max_connections=CONCURRENCY)
        self._client = httpx.AsyncClient(
            base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False
        )
        self._model = model
        self._questions = questions
        self._num_documents = num_documents
        self._random = random.Random(seed)
        self._outcome = Outcome()
        self._leaving = 0

    async def run(self, num_requests: int, num_cancelled: int) -> Outcome:
        """Return what became of `num_requests`, of which `num_cancelled` are left by their client."""
        kinds = self._random.choices(list(SHARES), list(SHARES.values()), k=num_requests)
        slots = asyncio.Semaphore(CONCURRENCY)
        began_s = time.monotonic()

        async def send(number: int, kind: Kind) -> None:
            async with slots:
                # One that ended before its client could leave is made up for by the next that can be left.
                due = min((number + 1) * num_cancelled // num_requests + 1, num_cancelled)
                if kind in CANCELLABLE and self._leaving < due:
                    await self._leave(number, kind)
                else:
                    await self._complete(number, kind)

        async with self._client:
            await asyncio.gather(*(send(number, kind) for number, kind in enumerate(kinds)))
            self._outcome.seconds = time.monotonic() - began_s
            self._outcome.left_in_engine = await self._drained()
        return self._outcome

    async def _complete(self, number: int, kind: Kind) -> None:
        try:
            for _ in range(MAX_REFUSALS):
                try:
                    await self._request(number, kind)
                except Refused as refusal:
                    self._outcome.refusals += 1
                    await asyncio.sleep(refusal.retry_after_s)
                else:
                    self._outcome.complete[kind] += 1
                    return
            raise Lost(f"refused {MAX_REFUSALS} times")
        except (Lost, httpx.HTTPError, KeyError, ValueError) as error:
            self._outcome.lost.append(f"{kind} {number}: {type(error).__name__}: {error}")

    async def _leave(self, number: int, kind: Kind) -> None:
        self._leaving += 1
        after_s = self._random.uniform(*LEAVE_AFTER_S)
        try:
            # Closes the connection: httpx does so with a response that was not read to its end.
            async with asyncio.timeout(None if kind == "stream" else after_s):
                await self._request(number, kind, leave=True)
        except TimeoutError:
            self._outcome.cancelled[kind] += 1
        except _Left:
            self._outcome.cancelled[kind] += 1
        except Refused:
            self._leaving -= 1
            self._outcome.refusals += 1
            await self._complete(number, kind)
        except (Lost, httpx.HTTPError, KeyError, ValueError) as error:
            self._outcome.lost.append(f"{kind} {number}, to be left: {type(error).__name__}: {error}")
        else:
            self._leaving -= 1
            self._outcome.complete[kind] += 1

    async def _request(self, number: int, kind: Kind, *, leave: bool = False) -> None:
        question = self._questions[number % len(self._questions)]
        match kind:
            case "ask":
                answer = await self._json("POST", "/v1/ask", {"question": question})
                if answer["stop_reason"] == "error" or not answer["answer"].strip():
                    raise Lost(f"no answer: {answer}")
            case "search":
                found = await self._json("POST", "/v1/search", {"requests": [{"query": question}]})
                if len(found["results"]) != 1 or not found["results"][0]["passages"]:
                    raise Lost(f"no passages: {found}")
            case "documents":
                listed = await self._json("GET", "/v1/documents")
                if len(listed["documents"]) != self._num_documents:
                    raise Lost(f"{len(listed['documents'])} of {self._num_documents} documents listed")
            case "chat":
                body = await self._json("POST", "/v1/chat/completions", self._chat(question, stream=False))
                if body["choices"][0]["finish_reason"] not in ("stop", "length"):
                    raise Lost(f"no end: {body}")
            case "stream":
                await self._stream(question, leave=leave)

    def _chat(self, question: str, *, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": self._model, "messages": messages, "max_tokens": MAX_TOKENS, "stream": stream}

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        async with self._open(method, path, body) as response:
            return json.loads(await response.aread())

    async def _stream(self, question: str, *, leave: bool) -> None:
        finish = None
        path = "/v1/chat/completions"
        async with self._open("POST", path, self._chat(question, stream=True)) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    if finish not in ("stop", "length"):
                        raise Lost(f"the stream ended with finish_reason {finish!r}")
                    return
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if error := event.get("error"):
                    if "retry_after_s" in error:
                        raise Refused(error["retry_after_s"])
                    raise Lost(f"the stream ended with {error}")
                choice = event["choices"][0]
                if leave and choice["delta"].get("content") and choice["finish_reason"] is None:
                    raise _Left
                finish = choice["finish_reason"] or finish
        raise Lost("the stream broke off")

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        async with self._client.stream(method, path, json=body) as response:
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
                raise Refused(float(response.headers["retry-after"]))
            if response.status_code != httpx.codes.OK:
                raise Lost(f"{response.status_code}: {(await response.aread())[:300]!r}")
            yield response

    async def _drained(self) -> int:
        """Return how many requests the engine still holds once it has had time to end them."""
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        while True:
            stats = (await self._json("GET", "/v1/generator"))["stats"]
            held = stats["num_running"] + stats["num_waiting"]
            if not held or time.monotonic() > deadline_s:
                return held
            await asyncio.sleep(0.1)


class _Left(Exception):
    """The client has seen enough of a stream and leaves."""
