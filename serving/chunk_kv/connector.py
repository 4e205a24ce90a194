"""Chunk KV inside vLLM: a KV connector that unmodified vLLM loads by its module path.

The scheduler's side promises the engine that the tokens up to the end of a plan's last chunk are there. The
worker's side keeps the promise before the step: it writes stored chunks into the request's blocks, keys moved
to where they stand, and computes everything else up to there (text between chunks, chunks the store lacks,
tokens to repair) in one forward over all requests of the step. A chunk that cannot be read is thus computed,
never wrong. What follows the last chunk is the engine's.

Approximate KV reaches the engine's own prefix cache. Whoever sends a plan with chunks to load must give the
request a `cache_salt` of its own kind (`serving.chunk_kv.blend_plan`), which keeps it from exact requests.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    SupportsHMA,
)

from serving.chunk_kv.blend_plan import BlendPlan, ChunkSpan, ChunkUse, runs, tokens_to_compute
from serving.chunk_kv.chunk import ChunkKV
from serving.chunk_kv.chunk_store import ChunkStore
from serving.chunk_kv.key_rotation import KeyRotation
from serving.chunk_kv.paged_kv import PagedKV, UnreadableCache
from serving.chunk_kv.segment_forward import PromptRuns, SegmentForward
from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.chunk_kv.supported_models import model_rotation, refusal

logger = logging.getLogger(__name__)

MIN_LOADED = 32
"""Fewest stored tokens beyond the cached prefix that a prompt is blended for; fewer save nothing."""
_CHECK_LAYER = 1
"""Layer whose keys are compared to choose tokens to repair; those before it are computed for all tokens."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One request's part of a step."""

    request_id: str
    plan: BlendPlan
    capture: tuple[ChunkSpan, ...]
    """Chunks of the plan to capture that are computed at the end of this step."""
    token_ids: list[int]
    block_ids: list[int]
    begin: int
    """First position promised; equal to `end` for a request that only captures."""
    end: int


@dataclass
class _StepTasks(KVConnectorMetadata):
    tasks: list[_Task] = field(default_factory=list)


class _Shared:
    """What both sides of one engine use, within one process."""

    def __init__(self, config: dict[str, Any]) -> None:
        folder = config.get("folder")
        self.store = ChunkStore(
            int(config["memory_bytes"]),
            Path(folder) if folder else None,
            int(config.get("disk_bytes", 0)),
            config.get("codec", "none"),
        )
        self.roles: set[Any] = set()
        """Which sides are in this process."""
        self.is_attached = False
        self.uses: dict[str, ChunkUse] = {}


_SHARED: dict[str, _Shared] = {}
"""By engine: vLLM makes the two sides of a connector apart, from the same configuration."""


class ChunkKVConnector(KVConnectorBase_V1, SupportsHMA):
    """Loads and captures chunks' KV by the `BlendPlan` of each request."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._vllm_config = vllm_config
        engine_id = vllm_config.kv_transfer_config.engine_id
        if engine_id not in _SHARED:
            _SHARED[engine_id] = _Shared(vllm_config.kv_transfer_config.kv_connector_extra_config)
        self._engine_id = engine_id
        self._shared = _SHARED[engine_id]
        self._shared.roles.add(role)
        self._promised: dict[str, int] = {}
        self._max_step_tokens = int(vllm_config.kv_transfer_config.kv_connector_extra_config["step_tokens"])
        self._step_tokens = 0
        """Tokens that keeping this step's promises computes, estimated."""
        self._costs: dict[str, int] = {}
        """The same of each request that was promised something."""
        self._paged: PagedKV | None = None
        self._forward: SegmentForward | None = None
        self._rotate: KeyRotation | None = None
        self._is_computing = False

    @property
    def store_stats(self) -> StoreStats:
        """Return what the store holds and did."""
        return self._shared.store.stats()

    def tiers(self, keys: Sequence[str]) -> list[Tier | None]:
        """Return where the store has each of these chunks; None where it has not."""
        return [self._shared.store.tier(key) for key in keys]

    # The scheduler's side.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Promise all up to the end of the last chunk, where enough beyond what is cached is stored.

        Returns None, to be asked again for the next step, where this one's promises cost enough.
        """
        plan = BlendPlan.from_params(request.kv_transfer_params)
        if plan is None or not plan.load or not self._shared.is_attached:
            return 0, False
        if request.num_preemptions:  # What was written for it is gone; it is prefilled exactly.
            self._shared.uses.pop(request.request_id, None)
            return 0, False
        end = min(plan.load[-1].end, request.num_tokens - 1)
        num_stored = sum(
            min(span.end, end) - max(span.start, num_computed_tokens)
            for span in plan.load
            if span.end > num_computed_tokens and self._shared.store.tier(span.key)
        )
        if num_stored < MIN_LOADED:
            return 0, False
        repair = plan.repair
        num_repaired = max(repair.first_k * len(plan.load), round(repair.share * num_stored))
        cost = end - num_computed_tokens - num_stored + min(num_repaired, num_stored)
        if self._step_tokens and self._step_tokens + cost > self._max_step_tokens:
            return None, False
        self._costs[request.request_id] = cost
        return max(end - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note a promise that the engine took up."""
        if num_external_tokens:
            self._promised[request.request_id] = num_external_tokens
            self._step_tokens += self._costs[request.request_id]

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Return what this step's new requests load and capture."""
        tasks = []
        for new in scheduler_output.scheduled_new_reqs:
            params = (new.sampling_params.extra_args or {}) if new.sampling_params else {}
            plan = BlendPlan.from_params(params.get("kv_transfer_params"))
            if plan is None:
                continue
            end = new.num_computed_tokens
            # A prefill may be split over steps; a chunk beyond this one's tokens is not captured.
            reached = end + scheduler_output.num_scheduled_tokens[new.req_id]
            tasks.append(
                _Task(
                    new.req_id,
                    plan,
                    tuple(span for span in plan.capture if span.end <= reached),
                    list(new.prompt_token_ids),
                    list(new.block_ids[0]),
                    end - self._promised.get(new.req_id, 0),
                    end,
                )
            )
        self._promised.clear()
        self._costs.clear()
        self._step_tokens = 0
        return _StepTasks(tasks)

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Return what became of the request's plan with its last output."""
        use = self._shared.uses.pop(request.request_id, ChunkUse())
        plan = BlendPlan.from_params(request.kv_transfer_params)
        if plan is None:
            return False, None
        missing = tuple(span.key for span in plan.load if self._shared.store.tier(span.key) is None)
        return False, replace(use, missing=missing).params()

    # The worker's side.

    def attach(self, runner: Any) -> str | None:
        """Take the model runner; returns why this model's KV cannot be blended, or None where it can."""
        reason = refusal(runner.model, runner.vllm_config, runner.attn_groups)
        if len(self._shared.roles) < 2:
            reason = "the engine's scheduler and its worker are in two processes"
        if reason is None:
            try:
                block_size = runner.vllm_config.cache_config.block_size
                layers = runner.vllm_config.compilation_config.static_forward_context
                names = [
                    name for groups in runner.attn_groups for group in groups for name in group.layer_names
                ]
                self._paged = PagedKV({name: layers[name] for name in names}, block_size)
                self._forward = SegmentForward(runner, [layers[name] for name in names], block_size)
                self._rotate = model_rotation(runner.model)
            except UnreadableCache as error:
                reason = str(error)
        self._shared.is_attached = reason is None
        return reason

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        """Keep the step's promises."""
        if self._is_computing or not self.has_connector_metadata():
            return
        tasks = [task for task in self._tasks() if task.end > task.begin]
        if tasks:
            self._is_computing = True
            try:
                self._load(tasks)
            finally:
                self._is_computing = False

    def _load(self, tasks: list[_Task]) -> None:
        loaded = {task.request_id: self._load_chunks(task) for task in tasks}
        chosen = self._choose(tasks, loaded)
        prompts = []
        for task in tasks:
            spans = loaded[task.request_id]
            mask = tokens_to_compute(
                task.begin, task.end, [(start, end) for start, end, _ in spans], chosen[task.request_id]
            )
            prompts.append(PromptRuns(task.token_ids, task.block_ids, runs(mask, task.begin)))
            computed = int(mask.sum())
            self._shared.uses[task.request_id] = ChunkUse(len(mask) - computed, computed)
        if any(prompt.runs for prompt in prompts):
            assert self._forward is not None
            self._forward.run(prompts)

    def _load_chunks(self, task: _Task) -> list[tuple[int, int, int]]:
        """Write stored chunks into a request's blocks; returns (begin, end, first position) of each."""
        assert self._forward is not None
        assert self._paged is not None
        assert self._rotate is not None
        loaded = []
        for span in task.plan.load:
            begin, end = max(span.start, task.begin), min(span.end, task.end)
            chunk = self._shared.store.get(span.key) if begin < end else None
            if chunk is None:
                continue
            fits = self._paged.shape_of(span.end - span.start)
            if (tuple(chunk.keys_LTHD.shape), chunk.keys_LTHD.dtype) != (fits, self._paged.dtype):
                logger.error("chunk %s is %s, not %s", span.key, tuple(chunk.keys_LTHD.shape), fits)
                continue
            slots = self._forward.slots(task.block_ids, torch.arange(begin, end, device=self._paged.device))
            part = slice(begin - span.start, end - span.start)
            keys_LTHD = self._rotate(
                chunk.keys_LTHD[:, part].to(self._paged.device), span.start - chunk.start
            )
            values_LTHD = chunk.values_LTHD[:, part].to(self._paged.device)
            for layer in range(self._paged.num_layers):
                self._paged.write(layer, slots, keys_LTHD[layer], values_LTHD[layer])
            loaded.append((begin, end, span.start))
        return loaded

    def _choose(
        self, tasks: list[_Task], loaded: dict[str, list[tuple[int, int, int]]]
    ) -> dict[str, list[int]]:
        """Return the positions to repair of each request."""
        chosen: dict[str, list[int]] = {}
        by_deviation = []
        for task in tasks:
            first_k = task.plan.repair.first_k
            chosen[task.request_id] = [
                position
                for begin, end, start in loaded[task.request_id]
                for position in range(begin, min(start + first_k, end))
            ]
            if task.plan.repair.share and loaded[task.request_id]:
                by_deviation.append(task)
        for task_id, positions in self._most_deviating(by_deviation, loaded).items():
            chosen[task_id] += positions
        return chosen

    def _most_deviating(
        self, tasks: list[_Task], loaded: dict[str, list[tuple[int, int, int]]]
    ) -> dict[str, list[int]]:
        if not tasks:
            return {}
        assert self._forward is not None
        assert self._paged is not None
        prompts = [PromptRuns(task.token_ids, task.block_ids, [(task.begin, task.end)]) for task in tasks]
        fresh_by_task = self._forward.keys(prompts, _CHECK_LAYER).split(
            [task.end - task.begin for task in tasks]
        )
        found = {}
        for task, fresh in zip(tasks, fresh_by_task, strict=True):
            positions = torch.cat(
                [
                    torch.arange(begin, end, device=self._paged.device)
                    for begin, end, _ in loaded[task.request_id]
                ]
            )
            stored, _ = self._paged.read(_CHECK_LAYER, self._forward.slots(task.block_ids, positions))
            deviation_T = (fresh[positions - task.begin].float() - stored.float()).square().sum(dim=(1, 2))
            num_chosen = min(round(task.plan.repair.share * len(positions)), len(positions))
            best = deviation_T.topk(num_chosen).indices
            found[task.request_id] = positions[best].tolist()
        return found

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: loads are complete before the forward begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """Do nothing: chunks are captured once all layers are written."""

    def wait_for_save(self) -> None:
        """Put this step's captured chunks into the store."""
        if self._is_computing or self._paged is None or not self.has_connector_metadata():
            return
        for task in self._tasks():
            for span in task.capture:
                self._capture(task, span)

    def _capture(self, task: _Task, span: ChunkSpan) -> None:
        assert self._paged is not None
        assert self._forward is not None
        assert self._rotate is not None
        positions = torch.arange(span.start, span.end, device=self._paged.device)
        slots = self._forward.slots(task.block_ids, positions)
        layers = [self._paged.read(layer, slots) for layer in range(self._paged.num_layers)]
        chunk = ChunkKV(
            torch.stack([keys for keys, _ in layers]).cpu(),
            torch.stack([values for _, values in layers]).cpu(),
            span.start,
            self._rotate.angles,
        )
        self._shared.store.put(span.key, chunk)

    def _tasks(self) -> list[_Task]:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, _StepTasks)
        return metadata.tasks

    def shutdown(self) -> None:
        """Write what waits for the disk."""
        shared = _SHARED.pop(self._engine_id, None)
        if shared is not None:
            shared.store.close()
