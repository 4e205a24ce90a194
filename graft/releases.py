"""Releases: the immutable, content-addressed unit that answers, and the pointer to the current one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from graft.errors import GraftError


class ReleaseConflict(GraftError):
    """Another release became current between the read and the swap."""


@dataclass(frozen=True, slots=True)
class Release:
    """Everything an answer depends on besides the documents. Equal content has an equal id."""

    embedder_hash: str
    """Hash of the embedder's weights."""
    index_version: str
    """Embedder and chunking the index was built with."""
    model_hash: str
    """Hash of the generator's weights."""
    tokenizer_hash: str
    """Hash of the generator's tokenizer."""
    prompt_hash: str
    """Hash of the prompt templates."""
    config_hash: str
    """Hash of the resolved configuration of retrieval, serving and agents."""
    adapter: str | None = None
    """LoRA adapter version; None for the base model."""
    evaluation: str | None = None
    """Hash of the evaluation report it was admitted with; None for the first release."""

    @property
    def id(self) -> str:
        """Return `r-` and the first 12 hex digits of the sha256 over the content."""
        return "r-" + hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


class ReleaseLedger:
    """Releases on disk, one JSON file each, and a pointer that moves by compare-and-swap.

    A file is written to a temporary name, fsynced and renamed, so a crash leaves the old state or the new.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pointer = folder / "current.json"
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, release: Release) -> str:
        """Store a release and return its id; storing it again changes nothing."""
        path = self._folder / f"{release.id}.json"
        if not path.exists():
            self._write(path, asdict(release))
        return release.id

    def get(self, release_id: str) -> Release:
        """Return a stored release.

        Raises:
            GraftError: No release of that id is stored.
        """
        path = self._folder / f"{release_id}.json"
        try:
            return Release(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise GraftError(f"no release {release_id!r} in {self._folder}") from error

    def current(self) -> str | None:
        """Return the id of the release that answers now, or None before the first."""
        try:
            return json.loads(self._pointer.read_text(encoding="utf-8"))["release"]
        except FileNotFoundError:
            return None

    def swap(self, expected: str | None, release_id: str) -> None:
        """Make a stored release current if `expected` still is.

        Raises:
            ReleaseConflict: Another release is current; read it and decide again.
            GraftError: `release_id` is not stored.
        """
        self.get(release_id)
        with self._lock():
            found = self.current()
            if found != expected:
                raise ReleaseConflict(
                    f"expected current release {expected!r}, found {found!r}; nothing was changed"
                )
            self._write(self._pointer, {"release": release_id, "since_s": time.time(), "before": found})

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _write(self, path: Path, content: dict[str, object]) -> None:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as handle:
            json.dump(content, handle, indent=1)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
