"""The process that opens untrusted files; `reading.py` starts it with `python -m` and its name.

It reads requests from stdin and answers on stdout, one at a time. A frame is an 8-byte big-endian length, a
JSON header of that length, then `header["num_bytes"]` raw bytes. It holds no secrets, writes no files, limits
its own memory, and ends when its parent does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from retrieval.config import RetrievalConfig
from retrieval.errors import UnreadableDocument
from retrieval.extraction.chunking import Chunker
from retrieval.extraction.readers import read
from retrieval.types import DocumentText

_LENGTH_BYTES = 8


def send(stream: BinaryIO, header: dict[str, Any], body: bytes = b"") -> None:
    """Write one frame."""
    head = json.dumps({**header, "num_bytes": len(body)}).encode()
    stream.write(len(head).to_bytes(_LENGTH_BYTES, "big") + head)
    stream.write(body)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Return the next frame, or None at the end of the stream."""
    prefix = stream.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(prefix, "big")
    head = stream.read(length)
    if len(head) < length:
        return None
    header = json.loads(head)
    body = stream.read(header["num_bytes"])
    return (header, body) if len(body) == header["num_bytes"] else None


def out_of_memory(what: str, config: RetrievalConfig) -> tuple[dict[str, Any], bytes]:
    """Return the answer that says so, the last of this process: what is left of its memory is in pieces."""
    limit = config.read_memory_bytes
    reason = f"{what} needs more than read_memory_bytes={limit:,} to read; split the file or raise the limit"
    return {"error": reason, "last": True}, b""


class Reader:
    """Answers `read` and `chunk`; keeps the last document's text between the two."""

    def __init__(self, config: RetrievalConfig) -> None:
        self._config = config
        self._chunkers: dict[str, Chunker] = {}
        self._name = ""
        self._document = DocumentText("")

    def answer(self, header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """Return the answer's header and body."""
        try:
            if header["op"] == "read":
                self._name = header["name"]
                media_type, self._document = read(self._name, body, self._config)
                return (
                    {"media_type": media_type, "page_starts": self._document.page_starts},
                    self._document.text.encode(),
                )
            if "page_starts" in header:
                self._name = header["name"]
                self._document = DocumentText(body.decode(), tuple(header["page_starts"]))
            return {"chunks": self._spans(header["chunking"])}, b""
        except UnreadableDocument as error:
            return {"error": str(error)}, b""
        except MemoryError:
            return out_of_memory(f"'{self._name}'", self._config)

    def _spans(self, chunking: dict[str, Any]) -> list[tuple[int, int, int | None]]:
        chunks = self._chunker(chunking).chunks(self._document)
        limit = self._config.max_document_chunks
        if len(chunks) > limit:
            raise UnreadableDocument(
                f"'{self._name}' makes {len(chunks):,} chunks, above max_document_chunks={limit:,}; "
                "split the file or raise the limit"
            )
        return [(chunk.start, chunk.end, chunk.page) for chunk in chunks]

    def _chunker(self, chunking: dict[str, Any]) -> Chunker:
        """Return the chunker of an index version, kept for its next document."""
        key = json.dumps(chunking, sort_keys=True)
        if key not in self._chunkers:
            settings = dict(chunking)
            tokenizer_file = Path(settings.pop("tokenizer_file"))
            self._chunkers[key] = Chunker(tokenizer_file, replace(self._config, **settings))
        return self._chunkers[key]


def main() -> None:
    """Serve until stdin closes."""
    # A private copy of stdout: a parser that prints must not break the framing.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    opening = receive(sys.stdin.buffer)
    if opening is None:
        return
    settings = opening[0]
    config = RetrievalConfig(**settings["config"])
    _limit_self(config)
    reader = Reader(config)
    while True:
        try:
            request = receive(sys.stdin.buffer)
        except MemoryError:
            send(replies, *out_of_memory("the file", config))
            return
        if request is None:
            return
        # Should the parent die meanwhile, nobody is left to stop a parser that hangs.
        signal.setitimer(signal.ITIMER_REAL, config.read_timeout_s + 5)
        header, body = reader.answer(*request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(replies, header, body)
        if header.get("last"):
            return


def _limit_self(config: RetrievalConfig) -> None:
    try:
        import resource
    except ImportError:  # Not on Windows; the time limit still holds there.
        return
    resource.setrlimit(resource.RLIMIT_AS, (config.read_memory_bytes, config.read_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
