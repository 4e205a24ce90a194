"""The parent's side of the reading process: starts it, asks it, kills it when it hangs.

One mechanism serves the in-process form and the Ray actor: a child process over pipes. It is kept for many
documents (starting one costs 0.1-0.3 s) and replaced after a crash, a timeout or exhausted memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, UnreadableDocument
from retrieval.extraction.reading_process import receive, send
from retrieval.types import Chunk, DocumentText


@dataclass(frozen=True, slots=True)
class Chunking:
    """How an index version cuts documents."""

    tokenizer_file: str
    """Its embedder's `tokenizer.json`."""
    chunk_tokens: int
    """Longest chunk in tokens."""
    chunk_overlap_tokens: int
    """Longest overlap of neighbours."""
    max_chunk_chars: int
    """Longest chunk in characters."""


class ReadingProcess:
    """Reads and chunks documents in a child process; one document at a time, calls block."""

    def __init__(self, config: RetrievalConfig) -> None:
        """Prepare; the child starts with the first document."""
        self._config = config
        self._last: DocumentText | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the child now, so that the first document does not wait for it."""
        with self._lock:
            self._ensure_child()

    def read(self, name: str, data: bytes) -> tuple[str, DocumentText]:
        """Return the MIME type and text of a file; `chunks` may follow.

        Raises:
            UnreadableDocument: No text can be extracted, or the child crashed or ran out of time.
        """
        header, body = self._ask(name, {"op": "read", "name": name}, data)
        self._last = DocumentText(body.decode(), tuple(header["page_starts"]))
        return header["media_type"], self._last

    def chunks(self, name: str, document: DocumentText, chunking: Chunking) -> list[Chunk]:
        """Return the chunks of a document; the child still has the text of the one it read last.

        Raises:
            UnreadableDocument: Too many chunks, or the child crashed or ran out of time.
        """
        header, _ = self._ask(name, {"op": "chunk", "chunking": asdict(chunking)}, about=document)
        return [
            Chunk(ordinal, document.text[start:end], start, end, page)
            for ordinal, (start, end, page) in enumerate(header["chunks"])
        ]

    def close(self) -> None:
        """Stop the child at once, for good."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()  # Unblocks a call under way, which then releases the lock.
        with self._lock:
            self._discard()

    def _ask(
        self, name: str, header: dict[str, Any], body: bytes = b"", about: DocumentText | None = None
    ) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            child = self._ensure_child()
            if about is not None and about is not self._last:
                # A child that came since, or read another document, does not have the text.
                header |= {"name": name, "page_starts": about.page_starts}
                body, self._last = about.text.encode(), about
            with self._deadline(child) as expired:
                # A child that gives up in the middle of a file has already written why.
                with contextlib.suppress(BrokenPipeError):
                    send(cast(BinaryIO, child.stdin), header, body)
                answer = receive(cast(BinaryIO, child.stdout))
            if answer is None:
                code = self._discard()
                raise UnreadableDocument(self._why(name, code, expired.is_set()))
            if answer[0].get("last"):
                self._discard()
        if "error" in answer[0]:
            raise UnreadableDocument(answer[0]["error"])
        return answer

    def _ensure_child(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise IndexUnavailable("the reading process is closed; open retrieval again")
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._discard()
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        child = subprocess.Popen(
            [sys.executable, "-m", "retrieval.extraction.reading_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in a terminal stops the parent, which stops this one.
        )
        settings = {"config": asdict(self._config)}
        with contextlib.suppress(BrokenPipeError):
            send(cast(BinaryIO, child.stdin), settings)
        self._child = child
        return child

    def _discard(self) -> int | None:
        """Kill the child if it lives, reap it, and return its exit status."""
        child, self._child = self._child, None
        self._last = None
        if child is None:
            return None
        if child.poll() is None and child.stdout is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.5)  # It may be ending by itself; its own status says more.
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code

    @contextlib.contextmanager
    def _deadline(self, child: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(self._config.read_timeout_s, expire)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()

    def _why(self, name: str, code: int | None, expired: bool) -> str:
        if expired:
            return (
                f"'{name}' took longer than read_timeout_s={self._config.read_timeout_s:g} to read; "
                "split the file or raise the limit"
            )
        cause = f"exit status {code}"
        if code is not None and code < 0:
            cause = signal.Signals(-code).name
        return (
            f"'{name}' crashed its reader ({cause}); the file is probably malformed: "
            "open it, save or print it anew, and add the new file"
        )
