"""The weights a generator serves, its model's and its adapters', both of which may change while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from serving.adapters import Adapters
from serving.config import ServingConfig
from serving.driver import Driver, EngineAdapter
from serving.errors import GeneratorUnavailable, InvalidAdapter, ModelUnusable
from serving.fair_queue import FairQueue
from serving.types import GeneratorInfo
from serving.weight_update import check_replaceable
from serving.weights import model_hash, tensor_shapes


class ServedModel:
    """Knows which weights are served, and replaces them.

    Args:
        config: Settings of the generator.
        folder: The model's folder.
        info: What the generator is.
        driver: The engine, started.
        queue: Gives requests their slots.
        forget: Called while no request runs, before the weights change: what was made with the old ones ends.
    """

    def __init__(
        self,
        config: ServingConfig,
        folder: Path,
        info: GeneratorInfo,
        driver: Driver,
        queue: FairQueue,
        forget: Callable[[], Awaitable[None]],
    ) -> None:
        self.info = info
        """What is served now."""
        self.adapters = Adapters(
            driver, config.max_adapters, config.max_adapter_rank, lambda: tensor_shapes(self._folder)
        )
        """What may be used beside the model."""
        self.failure: str | None = None
        """Why the engine has no weights any more, or None."""
        self._folder = folder
        self._driver = driver
        self._queue = queue
        self._forget = forget
        self._updating = asyncio.Lock()

    def weights(self, adapter: EngineAdapter | None) -> str:
        """Return what writes a text, for `GeneratedChunk.weights`."""
        return self.info.model_hash + (f"+{adapter.name}" if adapter is not None else "")

    async def update(self, folder: Path) -> GeneratorInfo:
        """Serve other weights from now on; see `LocalGenerator.update_weights`.

        Raises:
            ModelUnusable: They are not of this model; or could not be loaded, and the old ones serve on.
            InvalidAdapter: Adapters are loaded, which were made for the weights there are.
            GeneratorUnavailable: The engine died or is stopping, or is left without weights.
        """
        async with self._updating, self.adapters.unchanging():
            await asyncio.to_thread(check_replaceable, self._folder, folder)
            if loaded := self.adapters.infos():
                ids = ", ".join(info.adapter_id for info in loaded)
                raise InvalidAdapter(f"unload the adapters first, which are not the new weights': {ids}")
            new_hash = await asyncio.to_thread(model_hash, folder)
            async with self._queue.paused():
                await self._forget()
                try:
                    await self._driver.update_weights(str(folder))
                except ModelUnusable:
                    await self._restore()
                    raise
                self.info, self._folder = replace(self.info, model_hash=new_hash), folder
        return self.info

    async def _restore(self) -> None:
        try:
            await self._driver.update_weights(str(self._folder))
        except ModelUnusable as error:
            self.failure = f"The engine is left without weights ({error}); it answers again after a restart."
            raise GeneratorUnavailable(self.failure) from error
