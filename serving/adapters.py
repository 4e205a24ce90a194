"""LoRA adapters of one generator: loaded under names that say what they hold, removed once nobody uses them.

An adapter's id is its name and a hash of its files. Other weights therefore have another id, nothing is ever
reloaded under the same one, and KV computed with the old weights cannot be taken for the new ones'. Files are
copied first: what becomes of the caller's folder later hurts nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from serving.driver import Driver, EngineAdapter
from serving.errors import InvalidAdapter, ModelUnusable, UnknownAdapter
from serving.types import AdapterInfo
from serving.weights import tensor_shapes

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
"""What a name may be; `@` stands between it and the hash."""
MATRIX = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.\w+)?\.weight")
"""PEFT's name of a matrix."""


@dataclass(slots=True)
class _Loaded:
    engine: EngineAdapter
    name: str
    rank: int
    num_requests: int = 0
    is_leaving: bool = False
    unused: asyncio.Event = field(default_factory=asyncio.Event)


class Adapters:
    """Keeps what is loaded and who uses it.

    Args:
        driver: The engine.
        max_adapters: Adapters loaded at once, 0 or more.
        max_rank: Largest rank the engine has room for.
        model_shapes: Returns the shape of every tensor of the model by name.
    """

    def __init__(
        self,
        driver: Driver,
        max_adapters: int,
        max_rank: int,
        model_shapes: Callable[[], dict[str, list[int]]],
    ) -> None:
        self._driver = driver
        self._max_adapters = max_adapters
        self._max_rank = max_rank
        self._model_shapes = model_shapes
        self._loaded: dict[str, _Loaded] = {}
        self._numbers = itertools.count(1)
        self._changing = asyncio.Lock()
        self._folder: Path | None = None

    def infos(self) -> list[AdapterInfo]:
        """Return what is loaded, oldest first."""
        return [self._info(adapter_id) for adapter_id in self._loaded]

    @asynccontextmanager
    async def unchanging(self) -> AsyncIterator[None]:
        """Hold loads and removals until the block ends; requests go on."""
        async with self._changing:
            yield

    def _info(self, adapter_id: str) -> AdapterInfo:
        loaded = self._loaded[adapter_id]
        return AdapterInfo(adapter_id, loaded.name, loaded.rank, loaded.num_requests, loaded.is_leaving)

    async def load(self, name: str, folder: Path) -> AdapterInfo:
        """Load a PEFT adapter; a second load of the same files under the same name does nothing.

        Args:
            name: Letters, digits and `._/-`, up to 100.
            folder: Holds adapter_config.json and adapter_model.safetensors.

        Raises:
            InvalidAdapter: The name, the files or their rank are not usable, or as many are loaded as may be.
        """
        if not self._max_adapters:
            raise InvalidAdapter("this generator takes no adapters; set serving.max_adapters above 0")
        if not NAME.fullmatch(name):
            raise InvalidAdapter(f"adapter name {name!r} must match {NAME.pattern}")
        async with self._changing:
            copy, digest, rank = await asyncio.to_thread(self._copy, folder)
            adapter_id = f"{name}@{digest}"
            try:
                if adapter_id in self._loaded:
                    loaded = self._loaded[adapter_id]
                    if loaded.is_leaving:
                        raise InvalidAdapter(f"{adapter_id} is being unloaded; load it again once it is gone")
                    return self._info(adapter_id)
                if len(self._loaded) >= self._max_adapters:
                    raise InvalidAdapter(
                        f"{len(self._loaded)} adapters are loaded, the limit is {self._max_adapters} "
                        f"(serving.max_adapters): {', '.join(self._loaded)}; unload one first"
                    )
                engine = EngineAdapter(next(self._numbers), adapter_id, str(copy))
                await self._driver.load_adapter(engine)
                self._loaded[adapter_id] = _Loaded(engine, name, rank)
                copy = None
            finally:
                if copy is not None:
                    await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)
            return self._info(adapter_id)

    def acquire(self, adapter_id: str) -> EngineAdapter:
        """Return an adapter to use; it stays loaded until `release`.

        Raises:
            UnknownAdapter: It is not loaded, or is being unloaded.
        """
        loaded = self._loaded.get(adapter_id)
        if loaded is None or loaded.is_leaving:
            known = ", ".join(one for one, other in self._loaded.items() if not other.is_leaving) or "none"
            raise UnknownAdapter(f"adapter {adapter_id!r} is not loaded; loaded are: {known}")
        loaded.num_requests += 1
        return loaded.engine

    def release(self, adapter_id: str) -> None:
        """Tell that a request no longer needs its adapter."""
        loaded = self._loaded[adapter_id]
        loaded.num_requests -= 1
        if loaded.is_leaving and not loaded.num_requests:
            loaded.unused.set()

    async def unload(self, adapter_id: str) -> None:
        """Refuse new requests for an adapter, and remove it after the last one that has begun.

        Raises:
            UnknownAdapter: It is not loaded, or is being unloaded already.
        """
        loaded = self._loaded.get(adapter_id)
        if loaded is None or loaded.is_leaving:
            raise UnknownAdapter(f"adapter {adapter_id!r} is not loaded")
        loaded.is_leaving = True
        if not loaded.num_requests:
            loaded.unused.set()
        try:
            await loaded.unused.wait()
        except asyncio.CancelledError:
            loaded.is_leaving = False  # nobody waits any more: it stays
            loaded.unused.clear()
            raise
        # Nobody can ask for it again: a caller that leaves now is not to leave it half removed.
        await asyncio.shield(asyncio.create_task(self._remove(adapter_id)))

    async def _remove(self, adapter_id: str) -> None:
        async with self._changing:
            loaded = self._loaded[adapter_id]
            await self._driver.unload_adapter(loaded.engine)
            del self._loaded[adapter_id]
        await asyncio.to_thread(shutil.rmtree, loaded.engine.folder, ignore_errors=True)

    def close(self) -> None:
        """Delete the copies; safe to call twice."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _copy(self, folder: Path) -> tuple[Path, str, int]:
        """Return a copy of an adapter's files, a hash of them and the rank."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="graft-adapters-"))
        copy = Path(tempfile.mkdtemp(dir=self._folder))
        digest = hashlib.sha256()
        try:
            for file in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copy(folder / file, copy / file)
                digest.update((copy / file).read_bytes())
            rank = self._rank(folder, copy / CONFIG_FILE)
            self._check_shapes(folder, copy)
            return copy, digest.hexdigest()[:12], rank
        except FileNotFoundError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise InvalidAdapter(
                f"the adapter folder '{folder}' lacks {Path(str(error.filename)).name}; it must hold "
                f"{CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT saves them"
            ) from error
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise InvalidAdapter(f"the adapter in '{folder}' cannot be read: {error}") from error
        except InvalidAdapter:
            shutil.rmtree(copy, ignore_errors=True)
            raise

    def _check_shapes(self, folder: Path, copy: Path) -> None:
        """Refuse an adapter of another model: an engine may take a narrower one without a word."""
        try:
            shapes = tensor_shapes(copy)
        except ModelUnusable as error:
            raise InvalidAdapter(f"the adapter in '{folder}' cannot be read: {error}") from error
        model = self._model_shapes()
        for name, shape in shapes.items():
            match = MATRIX.fullmatch(name)
            of_model = match and model.get(f"{match['module']}.weight")
            if not match or not of_model or len(shape) != 2:
                continue
            side, there = (1, of_model[1]) if match["side"] == "A" else (0, of_model[0])
            if shape[side] != there:
                raise InvalidAdapter(
                    f"the adapter in '{folder}' is of another model: {name} has shape {shape}, and "
                    f"{match['module']} of the model that is served {of_model}"
                )

    def _rank(self, folder: Path, config_file: Path) -> int:
        config: object = None
        with suppress(ValueError):
            config = json.loads(config_file.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise InvalidAdapter(f"{CONFIG_FILE} in '{folder}' does not describe a LoRA adapter of PEFT")
        ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
        if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
            raise InvalidAdapter(f"{CONFIG_FILE} in '{folder}' names no rank `r` above 0")
        rank = max(ranks)
        if rank > self._max_rank:
            raise InvalidAdapter(
                f"the adapter in '{folder}' has rank {rank}, the limit is {self._max_rank}; raise "
                "serving.max_adapter_rank or train with a lower one"
            )
        return rank
