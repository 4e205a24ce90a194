"""A platform in memory: the SDK surface the page uses, with documents, runs and conversations that behave.

Documents pass through their states with time, an answer quotes the sentences that share most words with the
question, too few shared words is an abstention, and every run records whether its stream was closed. Words
that steer a run stand in the question: `slowly` streams long, `break` raises, `deadline` runs out of time.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import PurePath

from agents.errors import UnknownThread
from agents.events import (
    Cited,
    NodeFinished,
    NodeStarted,
    Retrieval,
    RunEvent,
    RunFinished,
    RunStarted,
    Token,
    Warned,
)
from agents.state import ChatTurn, Citation, RunResult, StopReason, ThreadInfo
from retrieval.errors import InvalidDocument, UnknownDocument
from retrieval.types import (
    Document,
    DocumentState,
    DocumentText,
    Hit,
    Library,
    Passage,
    SearchResult,
)

STATE_TIMES_S = (
    (0.25, DocumentState.QUEUED),
    (0.5, DocumentState.READING),
    (0.75, DocumentState.CHUNKING),
    (1.25, DocumentState.EMBEDDING),
)

_WORD = re.compile(r"[a-z0-9]+")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
_COMMON = frozenset(
    ("a", "an", "and", "are", "does", "for", "from", "how", "in", "is", "it", "of", "on", "the", "to", "what")
)


def words(text: str) -> set[str]:
    """Return the content words of a text."""
    return set(_WORD.findall(text.lower())) - _COMMON


@dataclass
class Stored:
    """A document and its text."""

    document: Document
    text: DocumentText
    added_s: float

    def now(self, pace: float) -> Document:
        """Return the document in the state its age gives it."""
        age_s = (time.monotonic() - self.added_s) / pace if pace else 99.0
        for limit_s, state in STATE_TIMES_S:
            if age_s < limit_s:
                return replace(self.document, state=state, num_chunks=0)
        if self.document.name.startswith("broken"):
            error = "The file holds no text; save it with text, not as pictures, and add it again."
            return replace(self.document, state=DocumentState.FAILED, error=error, num_chunks=0)
        return self.document


@dataclass
class FakeRun:
    """What became of one run."""

    question: str
    """As asked."""
    thread_id: str | None
    """Its conversation."""
    library: str | None
    """Its scope."""
    num_tokens: int = 0
    """Tokens it has streamed."""
    closed: bool = False
    """Whether its stream was closed or ran to its end."""


@dataclass
class FakePipeline:
    """One graph over the fake's documents."""

    graft: FakeGraft
    runs: list[FakeRun] = field(default_factory=list)
    turns: dict[str, list[ChatTurn]] = field(default_factory=dict)
    updated_s: dict[str, float] = field(default_factory=dict)

    async def history(self, thread_id: str) -> list[ChatTurn]:
        if thread_id not in self.turns:
            raise UnknownThread(f"thread {thread_id!r} does not exist")
        return list(self.turns[thread_id])

    async def threads(self) -> list[ThreadInfo]:
        infos = [
            ThreadInfo(key, turns[0].text[:80], self.updated_s[key]) for key, turns in self.turns.items()
        ]
        return sorted(infos, key=lambda info: -info.updated_s)

    async def delete_thread(self, thread_id: str) -> None:
        if self.turns.pop(thread_id, None) is None:
            raise UnknownThread(f"thread {thread_id!r} does not exist")

    async def stream(
        self,
        question: str,
        *,
        thread_id: str | None = None,
        library: str | None = None,
        document_ids: tuple[str, ...] = (),
    ) -> AsyncIterator[RunEvent]:
        run = FakeRun(question, thread_id, library)
        self.runs.append(run)
        began_s, seq = time.monotonic(), -1

        def at() -> dict:
            nonlocal seq
            seq += 1
            return {
                "run_id": f"run-{len(self.runs)}",
                "seq": seq,
                "t_ms": (time.monotonic() - began_s) * 1000,
            }

        try:
            yield RunStarted(**at(), graph="rag", thread_id=thread_id, release="r0")
            yield NodeStarted(**at(), node="retrieve")
            await asyncio.sleep(self.graft.think_s)
            found = await self.graft.search(question, k=4, library=library)
            yield Retrieval(
                **at(),
                query=question,
                hits=found.hits,
                passages=found.passages,
                index_version="fake-1",
                duration_ms=12.0,
            )
            yield NodeFinished(**at(), node="retrieve", duration_ms=12.0)
            if "break" in question:
                raise RuntimeError("the generator stopped; run `graft doctor`")
            if "warn" in question:
                yield Warned(**at(), message="the conversation was long; its oldest turns were left out")
            yield NodeStarted(**at(), node="generate")
            answer, citations, reason = self._answer(question, found)
            for piece in self._pieces(question, citations[0].quote if citations else "I am not sure."):
                await asyncio.sleep(self.graft.token_s)
                run.num_tokens += 1
                yield Token(**at(), text=piece)
            yield NodeStarted(**at(), node="cite")
            yield Cited(**at(), citations=citations)
            result = RunResult(f"run-{len(self.runs)}", thread_id, answer, citations, reason, "r0")
            if thread_id is not None:
                turns = self.turns.setdefault(thread_id, [])
                turns += [ChatTurn("user", question), ChatTurn("assistant", answer, citations, reason)]
                self.updated_s[thread_id] = time.time()
            yield RunFinished(**at(), result=result)
        finally:
            run.closed = True

    @staticmethod
    def _pieces(question: str, text: str) -> list[str]:
        pieces = re.findall(r"\S+\s*", text)
        return pieces * 200 if "slowly" in question else pieces

    @staticmethod
    def _answer(question: str, found: SearchResult) -> tuple[str, tuple[Citation, ...], StopReason]:
        asked = words(question)
        quotes: list[tuple[int, Citation]] = []
        for passage in found.passages:
            for sentence in _SENTENCE.finditer(passage.text):
                quote = sentence.group().strip()
                start = passage.start + passage.text.index(quote)
                shared = len(words(quote) & asked)
                cited = Citation(
                    0,
                    passage.document_id,
                    passage.document,
                    passage.chunk_id,
                    passage.page,
                    start,
                    start + len(quote),
                    quote,
                    shared / max(1, len(asked)),
                )
                quotes.append((shared, cited))
        best = sorted(quotes, key=lambda item: -item[0])[:3]
        numbered = [replace(cited, number=number) for number, (_, cited) in enumerate(best, start=1)]
        if not best or best[0][0] < 2:
            return "The documents do not say.", tuple(numbered[:2]), "abstained"
        text = " ".join(f"{cited.quote} [{cited.number}]" for cited in numbered[:2])
        reason: StopReason = "deadline" if "deadline" in question else "answered"
        return text, tuple(numbered[:2]), reason


class FakeGraft:
    """The SDK surface over dictionaries."""

    def __init__(self, *, pace: float = 0.0, think_s: float = 0.0, token_s: float = 0.0) -> None:
        self.pace = pace
        """Seconds of real time per second of a document's way to ready; 0 makes documents ready at once."""
        self.think_s = think_s
        """Seconds a search takes."""
        self.token_s = token_s
        """Seconds between two tokens."""
        self.stored: dict[str, Stored] = {}
        self.rag = FakePipeline(self)
        self.calls: list[str] = []

    def pipeline(self, graph: str) -> FakePipeline:
        self.calls.append(f"pipeline {graph}")
        return self.rag

    async def libraries(self) -> list[Library]:
        self.calls.append("libraries")
        now = [stored.now(self.pace) for stored in self.stored.values()]
        names = sorted({document.library for document in now})
        return [
            Library(
                name,
                sum(document.library == name for document in now),
                sum(document.library == name and document.state is DocumentState.READY for document in now),
                sum(document.num_chunks for document in now if document.library == name),
            )
            for name in names
        ]

    async def documents(self, library: str | None = None) -> list[Document]:
        self.calls.append("documents")
        now = [stored.now(self.pace) for stored in self.stored.values()]
        return sorted((d for d in now if library in (None, d.library)), key=lambda document: document.name)

    async def document(self, document_id: str) -> Document:
        self.calls.append("document")
        return self._stored(document_id).now(self.pace)

    async def text(self, document_id: str) -> DocumentText:
        self.calls.append("text")
        return self._stored(document_id).text

    async def add(self, name: str, data: bytes, *, library: str) -> Document:
        self.calls.append("add")
        if not data:
            raise InvalidDocument(f"file {name!r} is empty; add a file that holds text")
        return self.put(name, data.decode(errors="replace"), library, num_bytes=len(data)).now(self.pace)

    async def delete(self, document_id: str) -> None:
        self.calls.append("delete")
        self._stored(document_id)
        del self.stored[document_id]

    async def search(self, query: str, *, k: int = 10, library: str | None = None) -> SearchResult:
        self.calls.append("search")
        asked = words(query)
        scored = []
        for key, stored in self.stored.items():
            document = stored.now(self.pace)
            if document.state is not DocumentState.READY or library not in (None, document.library):
                continue
            text = stored.text
            bounds = [*text.page_starts, len(text.text)] if text.page_starts else [0, len(text.text)]
            for number, (start, end) in enumerate(pairwise(bounds)):
                score = len(words(text.text[start:end]) & asked) / max(1, len(asked))
                if score:
                    chunk_id = f"{key}:0:{number}"
                    passage = Passage(
                        chunk_id,
                        key,
                        document.name,
                        document.library,
                        text.text[start:end],
                        start,
                        end,
                        text.page_at(start),
                    )
                    scored.append((score, passage))
        scored = sorted(scored, key=lambda item: (-item[0], item[1].chunk_id))[:k]
        hits = tuple(Hit(passage.chunk_id, score, rank) for rank, (score, passage) in enumerate(scored))
        return SearchResult(hits, tuple(passage for _, passage in scored), "fake-1", len(self.stored))

    def put(
        self, name: str, text: str, library: str = "default", pages: tuple[int, ...] = (), num_bytes: int = 0
    ) -> Stored:
        """Store a document without waiting for a loop."""
        document_id = hashlib.sha256(f"{library}/{name}".encode()).hexdigest()[:16]
        media_type = {
            ".pdf": "application/pdf",
            ".md": "text/markdown",
            ".html": "text/html",
            ".txt": "text/plain",
        }.get(PurePath(name).suffix, "application/octet-stream")
        document = Document(
            document_id,
            library,
            name,
            media_type,
            hashlib.sha256(text.encode()).hexdigest(),
            num_bytes or len(text.encode()),
            DocumentState.READY,
            num_pages=len(pages) or None,
            num_chunks=max(1, len(pages), len(text) // 900),
            created_s=time.time(),
            updated_s=time.time(),
        )
        stored = Stored(document, DocumentText(text, pages), time.monotonic())
        self.stored[document_id] = stored
        return stored

    def _stored(self, document_id: str) -> Stored:
        if document_id not in self.stored:
            raise UnknownDocument(
                f"document {document_id!r} does not exist; list the documents to see which do"
            )
        return self.stored[document_id]


def sample_graft(**pace: float) -> FakeGraft:
    """Return a fake that holds a few documents on LLM systems."""
    graft = FakeGraft(**pace)
    first = (
        "PagedAttention\n\n"
        "PagedAttention stores the KV cache in fixed-size blocks that need not be contiguous. "
        "A block table maps the logical blocks of a sequence to physical ones, like the page table of an "
        "operating system. Memory is therefore wasted only in the last block of each sequence, "
        "below four percent.\n\n"
    )
    second = (
        "Sharing\n\nBlocks are reference counted, so sequences with a common prefix share them. "
        "A shared block is copied only when one of its sequences writes to it.\n\n"
    )
    filler = (
        "vLLM schedules requests at every step and preempts by recomputation when blocks run out.\n\n" * 12
    )
    graft.put("paged-attention.pdf", first + second + filler, pages=(0, len(first), len(first) + len(second)))
    graft.put(
        "cacheblend.md",
        "# CacheBlend\n\n"
        "CacheBlend reuses the KV cache of a passage wherever the passage appears in a prompt. "
        "It recomputes the few tokens whose attention to earlier text matters most, about fifteen percent. "
        "The keys are rotated to their new position first.\n",
    )
    graft.put(
        "self-rag.html",
        "Self-RAG\n\nSelf-RAG trains a model to emit reflection tokens that decide when to retrieve. "
        "A segment is scored by relevance, support and utility before it is kept.\n",
    )
    graft.put(
        "hostile.md",
        "Rotation <script>window.pwned=1</script> of a mandrel <img src=x onerror=window.pwned=2> is "
        "![remote](http://tracker.invalid/p.png) five turns & no more.\n",
        library="field notes",
    )
    for stored in graft.stored.values():
        stored.added_s -= 99.0
    return graft
