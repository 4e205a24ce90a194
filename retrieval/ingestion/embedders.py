"""The embedders of a shard's index versions, and what a configuration and an embedder make."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from retrieval.admin import VersionChange
from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable, InvalidVersion
from retrieval.types import Embedder, EmbedderInfo, EncodedTokens
from retrieval.versions import TokenCodec, VersionSpec

_log = logging.getLogger(__name__)

SPECIAL_TOKENS = 2

LoadEmbedder = Callable[[str], Awaitable[Embedder]]
"""Loads the embedder that `RetrievalConfig.embedder` would name; raises OSError or ValueError."""


def spec_of(embedder: EmbedderInfo, config: RetrievalConfig) -> VersionSpec:
    """Return the index version that this embedder and this configuration make.

    Raises:
        ValueError: Chunks would be cut by the embedder.
    """
    check_fits(config.chunk_tokens, embedder)
    return VersionSpec(
        embedder=config.embedder,
        model_hash=embedder.model_hash,
        model_dim=embedder.dim,
        chunk_tokens=config.chunk_tokens,
        chunk_overlap_tokens=config.chunk_overlap_tokens,
        max_chunk_chars=config.max_chunk_chars,
        dim=config.vector_dim,
        vectors=config.vector_codec,
        tokens=config.token_codec,
        kind=config.index_kind,
    )


def check_fits(chunk_tokens: int, embedder: EmbedderInfo) -> None:
    """Refuse chunks that an embedder would cut; raises ValueError."""
    if chunk_tokens + SPECIAL_TOKENS > embedder.max_tokens:
        raise ValueError(
            f"chunk_tokens={chunk_tokens} and {SPECIAL_TOKENS} special tokens do not fit the "
            f"{embedder.max_tokens} tokens that {embedder.model_id!r} reads; lower chunk_tokens"
        )


class Embedders:
    """The loaded embedders by model hash, and a way to load more. Belongs to one event loop."""

    def __init__(self, load: LoadEmbedder | None = None) -> None:
        """Start with none; without `load` only those given to `use` are here."""
        self._load = load
        self._here: dict[str, Embedder] = {}
        self._infos: dict[str, EmbedderInfo] = {}

    async def use(self, embedder: Embedder) -> EmbedderInfo:
        """Have an embedder answer for its model, and return what it is."""
        info = await embedder.info()
        self._here[info.model_hash] = embedder
        self._infos[info.model_hash] = info
        return info

    def of(self, spec: VersionSpec) -> Embedder | None:
        """Return a version's embedder; None while it is not here."""
        return self._here.get(spec.model_hash)

    async def try_load(self, spec: VersionSpec) -> bool:
        """Load a version's embedder unless it is here; False, logged, when it cannot be had any more."""
        if spec.model_hash in self._here:
            return True
        try:
            info = await self._loaded(spec.embedder)
        except InvalidVersion as error:
            _log.warning("index version '%s' answers by words only: %s", spec.version_id, error)
            return False
        if info.model_hash != spec.model_hash:
            _log.warning(
                "index version '%s' answers by words only: %r has other weights now (%s instead of %s)",
                spec.version_id, spec.embedder, info.model_hash, spec.model_hash,
            )  # fmt: skip
        return info.model_hash == spec.model_hash

    async def changed(self, spec: VersionSpec, change: VersionChange) -> VersionSpec:
        """Return a spec with the fields a change names, its embedder loaded.

        Raises:
            InvalidVersion: The embedder cannot be loaded, or a value does not fit it.
        """
        if change.embedder is not None:
            info = await self._loaded(change.embedder)
            spec = replace(
                spec, embedder=change.embedder, model_hash=info.model_hash, model_dim=info.dim, dim=0
            )
        names = ("chunk_tokens", "chunk_overlap_tokens", "dim", "vectors", "tokens", "kind")
        given = {name: getattr(change, name) for name in names if getattr(change, name) is not None}
        spec = replace(spec, **given)
        if spec.chunk_tokens < 1 or not 0 <= spec.chunk_overlap_tokens * 2 <= spec.chunk_tokens:
            raise InvalidVersion(
                f"chunk_overlap_tokens must be from 0 to half of chunk_tokens ({spec.chunk_tokens}); "
                f"got {spec.chunk_overlap_tokens}"
            )
        if spec.model_hash in self._infos:
            try:
                check_fits(spec.chunk_tokens, self._infos[spec.model_hash])
            except ValueError as error:
                raise InvalidVersion(str(error)) from error
        return spec

    async def _loaded(self, name: str) -> EmbedderInfo:
        if self._load is None:
            raise InvalidVersion(
                f"the embedder {name!r} is not loaded and this process cannot load others; "
                "open retrieval with a loader, or set retrieval.embedder and start again"
            )
        try:
            return await self.use(await self._load(name))
        except (OSError, ValueError) as error:
            raise InvalidVersion(f"the embedder {name!r} cannot be loaded ({error})") from error


class MissingEmbedder:
    """Stands for an embedder that is not here: every call says so."""

    def __init__(self, spec: VersionSpec) -> None:
        """Name the version in messages."""
        self._spec = spec

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Raise IndexUnavailable."""
        self._refuse()

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Raise IndexUnavailable."""
        self._refuse()

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        """Raise IndexUnavailable."""
        self._refuse()

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Raise IndexUnavailable."""
        self._refuse()

    async def info(self) -> EmbedderInfo:
        """Raise IndexUnavailable."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise IndexUnavailable(
            f"the embedder {self._spec.embedder!r} of index version {self._spec.version_id!r} is not loaded; "
            "search with mode='lexical', or wait until a version whose embedder is here is built"
        )
