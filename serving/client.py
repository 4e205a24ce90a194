"""Makes a generator actor look like a `Generator` to any process of the cluster."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError, TaskCancelledError

from serving.errors import GeneratorUnavailable, ServingError
from serving.health import GeneratorHealth
from serving.routing.kv_report import KVReport
from serving.sessions import Delivery, SessionLost, merge_chunks
from serving.spans import TraceContext, trace_context
from serving.types import (
    AdapterInfo,
    GeneratedChunk,
    GenerateRequest,
    GeneratorInfo,
    GeneratorStats,
    Prompt,
)

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from serving.actor import ActorReady

logger = logging.getLogger(__name__)

STOP_S = 10.0
"""Longest wait for an orderly stop; the actor is removed then."""
_RESTART_POLL_S = 0.2
SILENCE_S = 60.0
"""An actor that has not answered a poll for this long counts as lost; it answers idle ones in 10 s."""
MAX_BATCH = 256
"""Requests that are sent as one call; a call costs the actor a millisecond, whatever it carries."""
LOST = (
    "The generator actor has restarted and this request is lost; send it again. "
    "If it keeps dying, look at its log and at the free memory."
)
RAY_ERRORS = (RayTaskError, RayActorError, TaskCancelledError)


class ActorGenerator:
    """Implements `Generator` over the handle of a `GeneratorActor`; usable from several event loops.

    Args:
        actor: The actor's handle.
    """

    def __init__(self, actor: ActorHandle[Any]) -> None:
        self.actor = actor
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, _Link] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[ActorGenerator], tuple[ActorHandle[Any]]]:
        # Sessions belong to this process's event loops; another process opens its own.
        return ActorGenerator, (self.actor,)

    async def ready(self) -> ActorReady:
        """Wait until the actor can answer; returns where the time of its start went.

        Raises:
            ModelUnusable: The model cannot be served; the message says why.
            GeneratorUnavailable: The actor died, and Ray starts it no more.
        """
        while True:
            try:
                return await call(self.actor.ready.remote())
            except GeneratorUnavailable as error:
                # Ray's word for an actor that it is about to start again; a dead one has another.
                if not isinstance(error.__cause__, ActorUnavailableError):
                    raise
            await asyncio.sleep(_RESTART_POLL_S)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        """Stream the output of one request; see `Generator.generate`.

        A session can end while its client is idle, because the actor restarted or took the client for gone.
        A request that meets this before its first output is sent once more, on a new session.
        """
        for last_try in (False, True):
            begun = False
            try:
                async with aclosing(self._once(request)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except _RequestLost as error:
                if begun or last_try:
                    raise GeneratorUnavailable(LOST) from error

    async def _once(self, request: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        link = await self._link()
        number, inbox = link.submit(request)
        ended = False
        try:
            while not ended:
                chunk = await inbox.next()
                ended = chunk.finish_reason is not None
                yield chunk
        finally:
            link.forget(number)

    async def _link(self) -> _Link:
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None or link.broken:
            link = self._links[loop] = _Link(self.actor)
        await link.open()
        return link

    async def count_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the prompt encodes to."""
        return await call(self.actor.count_tokens.remote(prompt))

    async def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load a LoRA adapter from a folder on the generator's node; see `AdapterHost`."""
        return await call(self.actor.load_adapter.remote(name, folder))

    async def unload_adapter(self, adapter_id: str) -> None:
        """Remove an adapter once the requests that use it have ended; see `AdapterHost`."""
        await call(self.actor.unload_adapter.remote(adapter_id))

    async def adapters(self) -> list[AdapterInfo]:
        """Return the adapters that are loaded, oldest first."""
        return await call(self.actor.adapters.remote())

    async def update_weights(self, folder: Path) -> GeneratorInfo:
        """Serve other weights of the same model from now on; see `LocalGenerator.update_weights`."""
        return await call(self.actor.update_weights.remote(folder))

    async def info(self) -> GeneratorInfo:
        """Return what this generator is."""
        return await call(self.actor.info.remote())

    async def stats(self) -> GeneratorStats:
        """Return the load now and the totals since start."""
        return await call(self.actor.stats.remote())

    async def kv_report(self, life: str, since: int) -> KVReport:
        """Return what KV there is to reuse; see `LocalGenerator.kv_report`."""
        return await call(self.actor.kv_report.remote(life, since))

    async def metrics_text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return await call(self.actor.metrics_text.remote())

    async def health(self) -> GeneratorHealth:
        """Return whether it can answer; a dead actor is `failed`, not an exception."""
        try:
            return await call(self.actor.health.remote())
        except GeneratorUnavailable as error:
            return GeneratorHealth("failed", str(error), pid=0)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Stop the engine and remove the actor; safe to call twice.

        Args:
            drain_s: Longest that requests under way may take to end first, while new ones are refused.
        """
        with suppress(GeneratorUnavailable, TimeoutError):
            async with asyncio.timeout(STOP_S + drain_s):
                await call(self.actor.stop.remote(drain_s))
        ray.kill(self.actor)  # also one that is restarting, which would otherwise come back


async def call(ref: Any) -> Any:
    """Return the result of an actor call, with Ray's errors turned into ours."""
    try:
        return await ref
    except RAY_ERRORS as error:
        raise _ours(error) from error


def _ours(error: Exception) -> Exception:
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, ServingError | SessionLost | ValueError) else error
    if isinstance(error, TaskCancelledError):
        return GeneratorUnavailable("The generator cancelled the request; send it again.")
    state = "does not answer" if isinstance(error, ActorUnavailableError) else "died"
    return GeneratorUnavailable(
        f"The generator actor {state} ({error.__class__.__name__}); Ray restarts it, which takes about "
        "20 s: send the request again then. If it keeps dying, look at its log and at the free memory."
    )


class _RequestLost(Exception):
    """The session ended, and with it the request."""


class _Inbox:
    """Chunks of one request that have arrived and were not read."""

    def __init__(self) -> None:
        self._chunks: list[GeneratedChunk] = []
        self._error: Exception | None = None
        self._ready = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        if delivery.chunk is not None:
            self._chunks.append(delivery.chunk)
        self._error = delivery.error or self._error
        self._ready.set()

    async def next(self) -> GeneratedChunk:
        await self._ready.wait()
        if self._chunks:
            chunks, self._chunks = self._chunks, []
            if self._error is None:
                self._ready.clear()
            return merge_chunks(chunks)
        assert self._error is not None
        raise self._error


_Asked = tuple[GenerateRequest, TraceContext]
"""A request, and the span that asks for it."""


class _Link:
    """One event loop's session with the actor; polls while requests are under way."""

    def __init__(self, actor: ActorHandle[Any]) -> None:
        self._actor = actor
        self._opening: asyncio.Task[str] | None = None
        self._session_id = ""
        self._numbers = itertools.count()
        self._inboxes: dict[int, _Inbox] = {}
        self._unsent: dict[int, _Asked] = {}
        self._unwanted: list[int] = []
        self._poller: asyncio.Task[None] | None = None
        self._confirming: set[asyncio.Task[None]] = set()
        self.broken = False
        """True once the session is lost; the next request opens another."""

    async def open(self) -> None:
        if self._session_id:
            return
        if self._opening is None:
            self._opening = asyncio.ensure_future(call(self._actor.open_session.remote()))
        try:
            self._session_id = await asyncio.shield(self._opening)
        except (ServingError, RayTaskError):
            self.broken = True
            raise

    def submit(self, request: GenerateRequest) -> tuple[int, _Inbox]:
        number = next(self._numbers)
        inbox = self._inboxes[number] = _Inbox()
        self._send_soon()
        self._unsent[number] = (request, trace_context())
        return number, inbox

    def forget(self, number: int) -> None:
        """Cancel the request in the actor unless its end has arrived."""
        if self._inboxes.pop(number, None) is not None and self._unsent.pop(number, None) is None:
            self._send_soon()
            self._unwanted.append(number)

    def _send_soon(self) -> None:
        """Send what is asked for until the event loop comes round, together."""
        if not self._unsent and not self._unwanted:
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        if unwanted := self._unwanted[:MAX_BATCH]:
            self._unwanted = self._unwanted[MAX_BATCH:]
            self._actor.cancel.remote(self._session_id, unwanted)
        if numbers := list(itertools.islice(self._unsent, MAX_BATCH)):
            batch = {number: self._unsent.pop(number) for number in numbers}
            confirming = asyncio.create_task(self._confirm(batch))
            self._confirming.add(confirming)
            confirming.add_done_callback(self._confirming.discard)
        if self._unsent or self._unwanted:  # the event loop comes round between two calls
            asyncio.get_running_loop().call_soon(self._send)

    async def _confirm(self, batch: dict[int, _Asked]) -> None:
        try:
            accepted = self._actor.submit.remote(self._session_id, batch)
            if self._poller is None or self._poller.done():
                self._poller = asyncio.create_task(self._poll())
            await call(accepted)
        except SessionLost:
            self._fail(_RequestLost())
        except Exception as error:
            # Also what Ray cannot send: whoever waits is to see it.
            for number in batch:
                self._deliver(Delivery(number, None, _unavailable(error)))

    async def _poll(self) -> None:
        try:
            while self._inboxes:
                async with asyncio.timeout(SILENCE_S):
                    deliveries = await call(self._actor.poll.remote(self._session_id))
                for delivery in deliveries:
                    self._deliver(delivery)
        except SessionLost:
            self._fail(_RequestLost())
        except TimeoutError:
            self._fail(
                GeneratorUnavailable(
                    f"The generator actor has not answered for {SILENCE_S:.0f} s; send the request again, "
                    "or restart the platform if this goes on."
                )
            )
        except (GeneratorUnavailable, RayTaskError) as error:
            self._fail(_unavailable(error))

    def _deliver(self, delivery: Delivery) -> None:
        inbox = self._inboxes.get(delivery.number)
        if inbox is None:
            return
        inbox.put(delivery)
        if delivery.error is not None or (delivery.chunk and delivery.chunk.finish_reason):
            del self._inboxes[delivery.number]

    def _fail(self, error: Exception) -> None:
        self.broken = True
        self._unsent.clear()
        inboxes, self._inboxes = self._inboxes, {}
        for number, inbox in inboxes.items():
            inbox.put(Delivery(number, None, error))


def _unavailable(error: Exception) -> GeneratorUnavailable:
    if isinstance(error, GeneratorUnavailable):
        return error
    logger.error("the generator actor failed", exc_info=error)
    return GeneratorUnavailable(f"The generator actor failed ({error}); its log has more.")
