"""Retrieval as Ray actors: one embedder, one shard, and the client that makes them a `Retriever`.

The actors hold the same plain classes a single process uses. A batch is one call to the shard, which asks the
embedder only for queries it has not seen lately. Calls wait out an actor's restart; one that stays away is
`IndexUnavailable`, never an empty list. The only file of retrieval that loads ray.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from retrieval.config import PACKAGED_EMBEDDER, RetrievalConfig
from retrieval.embedding import SentenceTransformerEmbedder
from retrieval.errors import IndexUnavailable, IngestTimeout, UnknownDocument
from retrieval.packed import PackedResult, pack, unpack
from retrieval.query_cache import QueryCache
from retrieval.requests import check_document, check_searches
from retrieval.service import LocalRetrieval
from retrieval.types import (
    DEFAULT_LIBRARY,
    DEFAULT_TENANT,
    Document,
    DocumentText,
    EmbedderInfo,
    Library,
    Passage,
    SearchRequest,
    SearchResult,
)

EMBEDDER_NAME = "retrieval-embedder"
SHARD_NAME = "retrieval-shard-0"
MAX_CONCURRENCY = 256
_RESTART_POLL_S = 0.1
_WAIT_MARGIN_S = 5.0
"""How much longer than the caller's patience the client waits for the actor to say so itself."""


def actor_env(config: RetrievalConfig, num_threads: int) -> dict[str, str]:
    """Return the environment variables the actors should start with (`runtime_env={"env_vars": ...}`).

    Args:
        config: Decides whether a model may be downloaded.
        num_threads: Threads of linear algebra; Ray would set them to the actor's `num_cpus`.
    """
    env = {
        "OMP_NUM_THREADS": str(num_threads),
        # Spinning OpenMP threads starve a neighbour on few cores: 71 -> 5 tok/s of decoding beside one.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.embedder == PACKAGED_EMBEDDER or Path(config.embedder).expanduser().is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    return env


class EmbedderActor:
    """One embedder; loads its model as soon as it starts."""

    def __init__(self, config: RetrievalConfig) -> None:
        self._embedder = SentenceTransformerEmbedder(config)
        self._loading = asyncio.ensure_future(self._embedder.load())

    async def ready(self) -> dict[str, float]:
        """Return seconds by stage of loading."""
        return await asyncio.shield(self._loading)

    async def info(self) -> EmbedderInfo:
        """Return what this embedder is."""
        return await self._embedder.info()

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim]."""
        return await self._embedder.embed_queries(texts)

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim]."""
        return await self._embedder.embed_passages(texts)

    async def pid(self) -> int:
        """Return this actor's process id."""
        return os.getpid()


class IndexShardActor:
    """One shard and its ingestion; opens, and resumes the queue, as soon as it starts."""

    def __init__(self, folder: str, config: RetrievalConfig, namespace: str) -> None:
        # The embedder comes by name: a handle among the arguments would tie restarts to its sender's life.
        self._folder = Path(folder)
        self._config = config
        self._namespace = namespace
        self._opening = asyncio.ensure_future(self._open())

    async def ready(self) -> dict[str, float]:
        """Return seconds by stage of opening."""
        return await (await self._retrieval()).ready()

    async def search(self, requests: Sequence[SearchRequest]) -> list[PackedResult]:
        """Return results as tuples; the embedder is asked only for queries not seen lately."""
        return pack(await (await self._retrieval()).search(requests))

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return what a `Retriever` or `DocumentStore` method of the shard returns."""
        return await getattr(await self._retrieval(), method)(*args, **kwargs)

    async def pid(self) -> int:
        """Return this actor's process id."""
        return os.getpid()

    async def aclose(self) -> None:
        """Stop ingesting and close the shard."""
        await (await self._retrieval()).aclose()

    async def _open(self) -> LocalRetrieval:
        embedder = ActorEmbedder.attach(self._config, namespace=self._namespace)
        return await LocalRetrieval.open(self._folder, self._config, embedder)

    async def _retrieval(self) -> LocalRetrieval:
        if self._opening.done() and self._opening.exception() is not None:
            self._opening = asyncio.ensure_future(self._open())  # The cause, a full disk say, may be gone.
        return await asyncio.shield(self._opening)


async def _answer(what: str, timeout_s: float, call: Any) -> Any:
    """Return the answer of an actor call, repeated while its actor restarts; raise our own errors.

    A call whose actor died under it may have run; all of ours give the same result when run again.

    Args:
        what: Names the actor in messages.
        timeout_s: Longest wait, the restart of the actor included.
        call: Makes the call and returns its reference.
    """
    deadline = time.monotonic() + timeout_s
    died: RayActorError | None = None
    while True:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await call()
        except RayTaskError as error:
            # Ray wraps what the actor raised; the caller gets the error itself.
            if not isinstance(error.cause, RayActorError):
                raise error.cause from None
            died = error.cause
        except RayActorError as error:
            died = error
        except TimeoutError as error:
            raise IndexUnavailable(
                f"{what} did not answer within {timeout_s:g} s (call_timeout_s); it may be starting or busy: "
                "try again, or look at its log with `ray logs`"
            ) from (died or error)
        except RayError as error:
            raise IndexUnavailable(
                f"{what} could not be reached ({error}); check the cluster with `ray status`"
            ) from error
        if not isinstance(died, ActorUnavailableError):
            raise IndexUnavailable(
                f"{what} died and did not come back ({type(died).__name__}); nothing acknowledged is lost: "
                "restart the platform"
            ) from died
        await asyncio.sleep(_RESTART_POLL_S)


def _actor(name: str, namespace: str) -> Any:
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError as error:
        raise IndexUnavailable(
            f"no actor {name!r} runs in Ray namespace {namespace!r}; start the platform first"
        ) from error


class ActorEmbedder:
    """An `Embedder` over an embedder actor."""

    def __init__(self, embedder: Any, config: RetrievalConfig) -> None:
        self._embedder = embedder
        self._timeout_s = config.call_timeout_s
        self._cache = QueryCache(config.query_cache_entries)

    @classmethod
    def attach(cls, config: RetrievalConfig, *, namespace: str) -> ActorEmbedder:
        """Use the embedder running in `namespace`; raises IndexUnavailable when there is none."""
        return cls(_actor(EMBEDDER_NAME, namespace), config)

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim], L2-normalised."""
        return await self._cache.vectors(
            texts, lambda missing: self._call(self._embedder.embed_queries, missing)
        )

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim], L2-normalised."""
        return await self._call(self._embedder.embed_passages, list(texts))

    async def info(self) -> EmbedderInfo:
        """Return what this embedder is."""
        return await self._call(self._embedder.info)

    async def _call(self, method: Any, *args: Any) -> Any:
        return await _answer("the embedder", self._timeout_s, lambda: method.remote(*args))


class ActorRetrieval:
    """A `Retriever` and a `DocumentStore` over the actors of one platform."""

    def __init__(self, embedder: Any, shard: Any, config: RetrievalConfig) -> None:
        """Use running actors; `start` and `attach` are the usual ways."""
        self.embedder = embedder
        self.shard = shard
        self._config = config

    @classmethod
    def start(
        cls,
        folder: Path,
        config: RetrievalConfig,
        *,
        namespace: str,
        num_threads: int,
        detached: bool = False,
        embedder_options: dict[str, Any] | None = None,
        shard_options: dict[str, Any] | None = None,
    ) -> ActorRetrieval:
        """Start the actors under their names in `namespace` and return at once; `ready` waits for them.

        Args:
            folder: The shard's data folder, on the node where the shard runs.
            config: Settings of both.
            namespace: The Ray namespace of the platform.
            num_threads: Threads of linear algebra of each actor.
            detached: Whether they outlive the process that starts them.
            embedder_options: More Ray actor options of the embedder, such as `num_gpus` or `resources`.
            shard_options: The same for the shard.
        """
        common: dict[str, Any] = {
            "namespace": namespace,
            "lifetime": "detached" if detached else None,
            "max_restarts": -1,
            "max_concurrency": MAX_CONCURRENCY,
            "num_cpus": 1,
            "runtime_env": {"env_vars": actor_env(config, num_threads)},
        }
        embedder = (
            ray.remote(EmbedderActor)
            .options(**{**common, "name": EMBEDDER_NAME, **(embedder_options or {})})
            .remote(config)
        )
        shard = (
            ray.remote(IndexShardActor)
            .options(**{**common, "name": SHARD_NAME, **(shard_options or {})})
            .remote(str(folder), config, namespace)
        )
        return cls(embedder, shard, config)

    @classmethod
    def attach(cls, config: RetrievalConfig, *, namespace: str) -> ActorRetrieval:
        """Use the actors running in `namespace`.

        Raises:
            IndexUnavailable: They are not running.
        """
        return cls(_actor(EMBEDDER_NAME, namespace), _actor(SHARD_NAME, namespace), config)

    async def ready(self) -> dict[str, float]:
        """Wait until both actors answer and return seconds by stage of their start."""
        timeout_s = self._config.call_timeout_s
        embedder, shard = await asyncio.gather(
            _answer("the embedder", timeout_s, self.embedder.ready.remote),
            _answer("the index shard", timeout_s, self.shard.ready.remote),
        )
        return {f"embedder_{stage}": value for stage, value in embedder.items()} | {
            f"shard_{stage}": value for stage, value in shard.items()
        }

    async def aclose(self) -> None:
        """Close the shard and stop both actors for good."""
        try:
            await _answer("the index shard", self._config.call_timeout_s, self.shard.aclose.remote)
        finally:
            for handle in (self.shard, self.embedder):
                ray.kill(handle, no_restart=True)

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; see `Retriever.search`."""
        requests = list(requests)
        if not requests:
            return []
        check_searches(requests, self._config)
        timeout_s = self._config.call_timeout_s
        return unpack(await _answer("the index shard", timeout_s, lambda: self.shard.search.remote(requests)))

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return the passages of chunks, in order; None where deleted or not the tenant's."""
        return await self._call("passages", list(chunk_ids), tenant=tenant)

    async def add(
        self, name: str, data: bytes, *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Document:
        """Store a file durably and queue it; see `DocumentStore.add`."""
        check_document(name, data, library, tenant, self._config)  # Before 200 MB cross to the actor.
        return await self._call("add", name, data, library=library, tenant=tenant)

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        """Return documents ordered by name."""
        return await self._call("documents", library=library, tenant=tenant)

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        """Return one document; raises UnknownDocument."""
        return await self._call("document", document_id, tenant=tenant)

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        """Return the extracted text of a document that is or was ready; raises UnknownDocument."""
        return await self._call("text", document_id, tenant=tenant)

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        """Return the original bytes of the version that answers; raises UnknownDocument."""
        return await self._call("content", document_id, tenant=tenant)

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a document from every store; when this returns, no query finds it."""
        attempts = 0

        def call() -> Any:
            nonlocal attempts
            attempts += 1
            return self.shard.call.remote("delete", document_id, tenant=tenant)

        try:
            await _answer("the index shard", self._config.call_timeout_s, call)
        except UnknownDocument:
            if attempts == 1:  # At the second attempt it is gone because the first removed it.
                raise

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        """Return the tenant's libraries ordered by name."""
        return await self._call("libraries", tenant=tenant)

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        """Return the documents once each is `ready` or `failed`; see `DocumentStore.wait_ready`."""
        deadline = time.monotonic() + timeout_s

        def call() -> Any:
            left_s = max(0.0, deadline - time.monotonic())
            return self.shard.call.remote("wait_ready", list(document_ids), timeout_s=left_s, tenant=tenant)

        try:
            return await _answer("the index shard", timeout_s + _WAIT_MARGIN_S, call)
        except IndexUnavailable as error:
            if isinstance(error.__cause__, TimeoutError):
                raise IngestTimeout(
                    f"{len(document_ids)} documents still under way after {timeout_s:g} s, and the index "
                    "shard does not answer; wait longer or look at its log"
                ) from error
            raise

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await _answer(
            "the index shard",
            self._config.call_timeout_s,
            lambda: self.shard.call.remote(method, *args, **kwargs),
        )
