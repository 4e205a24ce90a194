"""Several generators of one model as one, each request where most of its KV is."""

from __future__ import annotations

import asyncio
import logging
import statistics
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakKeyDictionary

from serving.errors import GeneratorUnavailable, InvalidGeneration, Overloaded, ServingError, UnknownAdapter
from serving.health import GeneratorHealth
from serving.routing.kv_report import KVReport
from serving.routing.prompt_path import PromptPath, prompt_path
from serving.routing.replica_metrics import joined_metrics
from serving.routing.replica_view import ReplicaView
from serving.routing.router import Choice, KVRouter
from serving.types import (
    AdapterInfo,
    GeneratedChunk,
    GenerateRequest,
    Generator,
    GeneratorInfo,
    GeneratorStats,
    Prompt,
)

logger = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.2
"""How often replicas are asked what KV they hold, while requests are under way."""
DOWN_SLOWER = 5.0
"""By how much more seldom one that is down is asked."""
DRAIN_S = 300.0
"""Longest that the requests of a replica that is removed may take, unless told otherwise."""
_COUNTS = [field.name for field in fields(GeneratorStats) if field.type == "int"]
T = TypeVar("T")


class Replica(Generator, Protocol):
    """One of the generators; `ActorGenerator` is one."""

    async def kv_report(self, life: str, since: int) -> KVReport:
        """Return what has changed in the KV it holds; see `KVInventory.report`."""
        ...

    async def metrics_text(self) -> str:
        """Return its metrics in Prometheus' text format."""
        ...

    async def health(self) -> GeneratorHealth:
        """Return whether it can answer."""
        ...

    async def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load a LoRA adapter."""
        ...

    async def unload_adapter(self, adapter_id: str) -> None:
        """Remove an adapter once the requests that use it have ended."""
        ...

    async def adapters(self) -> list[AdapterInfo]:
        """Return the adapters that are loaded."""
        ...

    async def update_weights(self, folder: Path) -> GeneratorInfo:
        """Serve other weights of the same model."""
        ...

    async def stop(self, drain_s: float = 0.0) -> None:
        """Stop it, once what is under way has ended or after so many seconds; what is left then fails."""
        ...


class RoutedGenerator:
    """Implements `Generator` and `AdapterHost` over replicas; usable from several event loops.

    A replica that dies gets no requests until it answers again. Those it had not begun to answer are sent to
    another one, once.

    Args:
        replicas: At least one, all of the same model.
        router: Chooses among them.
        report_interval_s: Seconds between two questions for what a replica holds.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        router: KVRouter[Replica] | None = None,
        *,
        report_interval_s: float = REPORT_INTERVAL_S,
    ) -> None:
        if not replicas:
            raise ValueError("a routed generator needs at least one replica")
        self._router = router if router is not None else KVRouter()
        self._report_interval_s = report_interval_s
        self._lock = threading.Lock()
        """Guards what follows, which every event loop changes."""
        self._replicas = list(replicas)
        self._router.views.update({one: ReplicaView() for one in replicas})
        self._down: set[Replica] = set()
        self._active: set[str] = set()
        self._watches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Replica, asyncio.Task[None]]]
        self._watches = WeakKeyDictionary()

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Return the replicas that requests may be sent to, whether they answer or not."""
        return tuple(self._replicas)

    @property
    def num_up(self) -> int:
        """Return how many replicas are not known to be down."""
        return len(self._replicas) - len(self._down)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        """Stream the output of one request; see `Generator.generate`."""
        with self._claimed(request.request_id):
            async with aclosing(self._generate(request)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def _generate(self, request: GenerateRequest) -> AsyncGenerator[GeneratedChunk]:
        path = self._path(request)
        refused: dict[Replica, ServingError] = {}
        has_retried = False
        while True:
            choice = self._choose(path, request, refused)
            if choice is None:
                raise _refusal(list(refused.values()))
            has_begun = False
            try:
                async with aclosing(self._ask(choice, request, path)) as chunks:
                    async for chunk in chunks:
                        has_begun = True
                        yield chunk
                return
            except Overloaded as error:
                refused[choice.replica] = error
            except GeneratorUnavailable as error:
                self._lost(choice.replica, error)
                if has_begun or has_retried:
                    raise
                has_retried = True
                refused[choice.replica] = error

    async def _ask(
        self, choice: Choice[Replica], request: GenerateRequest, path: PromptPath
    ) -> AsyncGenerator[GeneratedChunk]:
        view = self._router.views[choice.replica]
        self._watch()
        stream = choice.replica.generate(request)
        try:
            async with aclosing(stream) as chunks:  # pyright: ignore[reportArgumentType]
                async for chunk in chunks:
                    with self._lock:
                        view.begun(choice.number)
                        if chunk.usage is not None:
                            self._router.learn(path.num_chars, chunk.usage.prompt_tokens)
                    yield chunk
        finally:
            with self._lock:
                view.end(choice.number)

    @contextmanager
    def _claimed(self, request_id: str) -> Iterator[None]:
        """Keep a request id from being used twice at once, which no replica alone would notice."""
        if not request_id:
            yield
            return
        with self._lock:
            if request_id in self._active:
                raise InvalidGeneration(
                    f"Request id {request_id!r} is under way already; use another or leave it empty."
                )
            self._active.add(request_id)
        try:
            yield
        finally:
            self._active.discard(request_id)

    def _path(self, request: GenerateRequest) -> PromptPath:
        wants_blend = request.reuse.mode == "blend" and request.adapter is None
        with self._lock:
            blends = any(self._router.views[one].state.blends for one in self._replicas)
        return prompt_path(request, is_blended=wants_blend and blends)

    def _choose(
        self, path: PromptPath, request: GenerateRequest, refused: dict[Replica, ServingError]
    ) -> Choice[Replica] | None:
        with self._lock:
            candidates = [one for one in self._replicas if one not in self._down and one not in refused]
            if not candidates and not refused:
                candidates = self._replicas  # One of them may be back; its answer says what is wrong.
            if request.adapter is not None:
                # One that has restarted is without it, one just loaded may not have told yet.
                views = self._router.views
                having = [one for one in candidates if request.adapter in views[one].state.adapter_ids]
                candidates = having or candidates
            return self._router.choose(request, path, candidates) if candidates else None

    def _lost(self, replica: Replica, error: ServingError) -> None:
        with self._lock:
            if replica not in self._replicas or replica in self._down:
                return
            logger.warning("a generator replica gets no requests until it answers again: %s", error)
            self._down.add(replica)
            self._router.views[replica] = ReplicaView()

    def _watch(self) -> None:
        """Have this event loop ask each replica for reports, as long as there is something to learn."""
        with self._lock:
            watches = self._watches.setdefault(asyncio.get_running_loop(), {})
            for replica in self._replicas:
                watch = watches.get(replica)
                if watch is None or watch.done():
                    watches[replica] = asyncio.create_task(self._ask_for_reports(replica))
            for gone in [one for one, watch in watches.items() if watch.done()]:
                del watches[gone]

    async def _ask_for_reports(self, replica: Replica) -> None:
        while self._has_more_to_tell(replica):
            await self._ask_for_report(replica)
            slower = DOWN_SLOWER if replica in self._down else 1.0
            await asyncio.sleep(slower * self._report_interval_s)

    def _has_more_to_tell(self, replica: Replica) -> bool:
        with self._lock:
            view = self._router.views.get(replica)
            if view is None:
                return False
            has_work = any(self._router.views[one].num_own for one in self._replicas)
            return has_work or replica in self._down or bool(view.asked())

    async def _ask_for_report(self, replica: Replica) -> None:
        with self._lock:
            view = self._router.views.get(replica, ReplicaView())
            life, version, known, is_down = view.life, view.version, view.asked(), replica in self._down
        try:
            if is_down and (await replica.health()).status != "ready":
                return
            report = await replica.kv_report(life, version)
        except ServingError as error:
            if not is_down:
                self._lost(replica, error)
            return
        with self._lock:
            view.take(report, known)
            self._down.discard(replica)

    async def count_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the prompt encodes to."""
        return await self._any().count_tokens(prompt)

    async def info(self) -> GeneratorInfo:
        """Return what this generator is; all replicas are the same."""
        return await self._any().info()

    async def stats(self) -> GeneratorStats:
        """Return the load now and the totals since start, of all replicas that answer together.

        Raises:
            GeneratorUnavailable: None of them answers.
        """
        found = [stats for _, stats in await self._answers(lambda one: one.stats())]
        usages = [stats.kv_usage for stats in found if stats.kv_usage is not None]
        return GeneratorStats(
            *(sum(getattr(stats, name) for stats in found) for name in _COUNTS),
            no_blend_reason=next((stats.no_blend_reason for stats in found if stats.no_blend_reason), None),
            kv_usage=statistics.fmean(usages) if usages else None,
        )

    async def metrics_text(self) -> str:
        """Return the metrics of all replicas that answer, told apart by the label `replica`."""
        texts = await self._answers(lambda one: one.metrics_text())
        return joined_metrics({str(number): text for number, text in texts})

    async def health(self) -> GeneratorHealth:
        """Return whether one of the replicas can answer."""
        found = await asyncio.gather(*(one.health() for one in self.replicas))
        return next((health for health in found if health.status == "ready"), found[0])

    async def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load a LoRA adapter into every replica, or into none; see `AdapterHost`."""
        loaded: list[tuple[Replica, AdapterInfo]] = []
        try:
            for replica in self.replicas:
                loaded.append((replica, await replica.load_adapter(name, folder)))
        except BaseException:
            for replica, info in loaded:
                with suppress(ServingError):
                    await replica.unload_adapter(info.adapter_id)
            raise
        return loaded[0][1]

    async def unload_adapter(self, adapter_id: str) -> None:
        """Remove an adapter from every replica that has it; see `AdapterHost`."""
        found = await asyncio.gather(
            *(one.unload_adapter(adapter_id) for one in self.replicas), return_exceptions=True
        )
        errors = [error for error in found if isinstance(error, BaseException)]
        others = [error for error in errors if not isinstance(error, UnknownAdapter)]
        if others or len(errors) == len(found):
            raise [*others, *errors][0]

    async def adapters(self) -> list[AdapterInfo]:
        """Return the adapters that replicas have, oldest first, with the requests of all."""
        total: dict[str, AdapterInfo] = {}
        for _, infos in await self._answers(lambda one: one.adapters()):
            for info in infos:
                others = total[info.adapter_id].num_requests if info.adapter_id in total else 0
                total[info.adapter_id] = replace(info, num_requests=info.num_requests + others)
        return list(total.values())

    async def update_weights(self, folder: Path) -> GeneratorInfo:
        """Serve other weights of the same model, one replica after the other; see `LocalGenerator`.

        Every answer says which weights wrote it. Where a replica cannot take them, those before it serve the
        new ones and it and the rest the old ones: update again, or restart.
        """
        for replica in self.replicas:
            await replica.update_weights(folder)
        return await self.info()

    async def remove(self, replica: Replica, drain_s: float = DRAIN_S) -> None:
        """Send a replica no more requests, and stop it once those it has, of any client, have ended.

        Args:
            replica: One of `replicas`.
            drain_s: Longest that they may take.

        Raises:
            ValueError: It is none of the replicas, or the last one.
        """
        with self._lock:
            if replica not in self._replicas or len(self._replicas) == 1:
                raise ValueError("a replica can be removed while there is another one to take its place")
            self._replicas.remove(replica)
            self._down.discard(replica)
            del self._router.views[replica]
        await replica.stop(drain_s)

    def add(self, replica: Replica) -> None:
        """Send requests to one more replica, which can answer."""
        with self._lock:
            self._router.views[replica] = ReplicaView()
            self._replicas.append(replica)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Stop all replicas; see `ActorGenerator.stop`. Safe to call twice."""
        await asyncio.gather(*(one.stop(drain_s) for one in self.replicas))

    def _any(self) -> Replica:
        with self._lock:
            return next((one for one in self._replicas if one not in self._down), self._replicas[0])

    async def _answers(self, ask: Callable[[Replica], Awaitable[T]]) -> list[tuple[int, T]]:
        """Return what the replicas that answer say, by their number; raises GeneratorUnavailable for none."""
        found = await asyncio.gather(*(ask(one) for one in self.replicas), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, GeneratorUnavailable):
                raise error
        answers = [(number, one) for number, one in enumerate(found) if not isinstance(one, BaseException)]
        if not answers:
            raise GeneratorUnavailable("No replica of the generator answers; see the log of their actors.")
        return answers


def _refusal(errors: Sequence[ServingError]) -> ServingError:
    """Return what to tell whom no replica took: to come back soonest where one may take it then."""
    overloaded = [error for error in errors if isinstance(error, Overloaded)]
    return min(overloaded, key=lambda error: error.retry_after_s) if overloaded else errors[-1]
