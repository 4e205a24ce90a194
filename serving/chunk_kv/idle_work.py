"""Generations that nobody waits for, one at a time, while the engine has nothing else to do."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from serving.driver import Driver, EngineOutput, EngineRequest, merge_outputs
from serving.errors import ServingError

logger = logging.getLogger(__name__)

MAX_WAITING = 1024
"""Jobs that may wait; one more displaces the one that waited longest."""
IDLE_LOOK_S = 0.02
"""How often a busy engine is looked at again."""

Job = Callable[[], Awaitable[object]]


class IdleWork:
    """Runs jobs between requests; made and used on one event loop.

    Args:
        driver: The engine that is to be idle.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._waiting: OrderedDict[str, Job] = OrderedDict()
        self._running: asyncio.Task[None] | None = None
        self._job: asyncio.Future[object] | None = None
        self.num_done = 0
        """Jobs that have ended well."""

    def add(self, name: str, job: Job) -> None:
        """Queue a job unless one of its name waits."""
        self._waiting.setdefault(name, job)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())

    def make_way(self) -> None:
        """Abort the job under way, since a request has come; it is the next one to be done."""
        if self._job is not None:
            self._job.cancel()

    async def wait(self) -> None:
        """Wait until no job is left."""
        if self._running is not None:
            await asyncio.shield(self._running)

    async def stop(self) -> None:
        """Forget what waits and cancel what runs."""
        self._waiting.clear()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            load = self._driver.load()
            if load.num_running or load.num_waiting:
                await asyncio.sleep(IDLE_LOOK_S)
                continue
            name, job = self._waiting.popitem(last=False)
            self._job = asyncio.ensure_future(job())
            try:
                await self._job
                self.num_done += 1
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():  # It is this loop that is to end, not the job alone.
                    raise
                self._waiting[name] = job
                self._waiting.move_to_end(name, last=False)
            except ServingError as error:
                logger.warning("work for idle times (%s) was given up: %s", name, error)


async def run_to_end(driver: Driver, request: EngineRequest) -> EngineOutput:
    """Return all output of a request as one piece; cancelling it aborts the request.

    Raises:
        InvalidGeneration: The engine refused it.
        GeneratorUnavailable: The engine died or is stopping.
    """
    stream = driver.submit(request)
    pieces: list[EngineOutput] = []
    try:
        while not pieces or pieces[-1].finish_reason is None:
            pieces.append(await stream.next())
    finally:
        if not pieces or pieces[-1].finish_reason is None:
            driver.abort(request.request_id)
    return merge_outputs(pieces)
