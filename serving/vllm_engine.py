"""vLLM's synchronous engine in this process, behind the few calls `InprocDriver` makes."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.outputs import RequestOutput
from vllm.v1.engine.core_client import InprocClient
from vllm.v1.engine.llm_engine import LLMEngine

from serving import vllm_values
from serving.chunk_kv.store_stats import StoreStats, Tier
from serving.config import ServingConfig
from serving.driver import NO_CHUNK_KV, EngineAdapter, EngineLoad, EngineOutput, EngineRequest
from serving.engine_arguments import engine_arguments
from serving.errors import InvalidAdapter, ModelUnusable

PIECE_S = 0.05
"""Time a piece of output is to cover: no reader is told more often (`serving.inproc_driver`)."""
MAX_PIECE_TOKENS = 16
"""Most tokens of a piece, however fast steps are."""
WAIT_S = 0.001
"""Pause between two steps that had nothing to compute."""
NUM_STEPS_TIMED = 16
"""Last steps whose median tells how long one takes."""


class VllmEngine:
    """Wraps `LLMEngine`; every call comes from one thread.

    Tokens leave in pieces: the first at once, the others so many together as steps took `PIECE_S` when the
    request came.

    Args:
        config: Settings of the engine.
        folder: The model's folder.
        kv_events: Where to publish the changes of the prefix cache; None for nowhere.
    """

    def __init__(self, config: ServingConfig, folder: str, kv_events: str | None = None) -> None:
        # Read when the engine is made; this process belongs to it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_bytes
        vllm_values.register_architecture(folder)
        arguments = engine_arguments(config, folder, on_gpu=False, kv_events=kv_events)
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(structured_outputs_config=vllm_values.STRUCTURED_OUTPUTS, **arguments)
        )
        self.no_blend_reason = self._attach_chunk_kv(config)
        """Why chunks' KV is not used, or None where it is."""
        self.kv_tokens = vllm_values.kv_tokens(self._engine.vllm_config)
        """Tokens of KV it can hold."""
        self._engine_ids: dict[str, str] = {}
        self._steps_s: deque[float] = deque(maxlen=NUM_STEPS_TIMED)

    def _attach_chunk_kv(self, config: ServingConfig) -> str | None:
        if not config.chunk_kv_bytes:
            return NO_CHUNK_KV
        [reason] = self._engine.collective_rpc("attach_chunk_kv")
        return reason

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            ValueError: vLLM refuses it.
        """
        try:
            self._engine_ids[request.request_id] = self._engine.add_request(
                request.request_id,
                vllm_values.engine_prompt(request),
                vllm_values.sampling_params(request, self._piece_tokens()),
                priority=request.priority,
                lora_request=vllm_values.lora_request(request.adapter),
            )
        except VLLMClientError as error:
            raise ValueError(str(error)) from error

    def abort(self, request_id: str) -> EngineOutput:
        """Drop a request and return what was held back of it: a piece, a stop string that did not come."""
        engine_id = self._engine_ids.pop(request_id)
        text, token_ids = "", ()
        state = self._engine.output_processor.request_states.get(engine_id)
        if state and state.detokenizer:
            text = state.detokenizer.get_next_output_text(True, True)
            if state.stream_interval > 1:
                token_ids = tuple(state.detokenizer.output_token_ids[state.sent_tokens_offset :])
        self._engine.abort_request([engine_id], internal=True)
        return EngineOutput(text, token_ids, finish_reason="abort")

    def step(self) -> list[tuple[str, EngineOutput]]:
        """Run one batch and return new output by request id."""
        outputs: list[tuple[str, EngineOutput]] = []
        begun_s = time.monotonic()
        for output in self._engine.step():
            assert isinstance(output, RequestOutput)
            if output.finished:
                self._engine_ids.pop(output.request_id, None)
            outputs.append((output.request_id, vllm_values.engine_output(output)))
        self._steps_s.append(time.monotonic() - begun_s)
        if not outputs and not self.load().num_running:
            time.sleep(WAIT_S)  # All that is left waits for its grammar, which is compiled in another thread.
        return outputs

    def _piece_tokens(self) -> int:
        """Return how many tokens make a piece, from the median step: a prefill among them counts little."""
        step_s = statistics.median(self._steps_s) if self._steps_s else PIECE_S
        return min(max(int(PIECE_S / step_s), 1), MAX_PIECE_TOKENS)

    def busy(self) -> bool:
        """Return whether any request is unfinished."""
        return self._engine.has_unfinished_requests()

    def load(self) -> EngineLoad:
        """Return what the scheduler is working on."""
        client = self._engine.engine_core
        assert isinstance(client, InprocClient)
        scheduler = client.engine_core.scheduler
        return EngineLoad(*scheduler.get_request_counts(), scheduler.get_kv_cache_usage())

    def load_adapter(self, adapter: EngineAdapter) -> None:
        """Load a LoRA adapter.

        Raises:
            InvalidAdapter: vLLM refuses it.
        """
        try:
            self._engine.add_lora(vllm_values.lora_request(adapter))
        except Exception as error:
            # vLLM raises whatever it stumbles over in the files; half an adapter is not to stay.
            with suppress(Exception):
                self._engine.remove_lora(adapter.number)
            raise InvalidAdapter(f"vLLM cannot use {adapter.name}: {error}") from error

    def unload_adapter(self, adapter: EngineAdapter) -> None:
        """Remove an adapter that no request uses."""
        self._engine.remove_lora(adapter.number)

    def update_weights(self, folder: str) -> None:
        """Put other weights in the place of the model's and forget all KV.

        Raises:
            ModelUnusable: vLLM could not; its weights are then undefined.
        """
        try:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        except Exception as error:
            # Whatever it stumbles over in the files.
            raise ModelUnusable(f"vLLM cannot load the weights in '{folder}': {error}") from error
        if not self._engine.reset_prefix_cache():
            raise ModelUnusable("vLLM kept KV of the weights before; a request is under way")

    def store_stats(self) -> StoreStats | None:
        """Return what the chunk store holds and did; None where there is none."""
        if self.no_blend_reason == NO_CHUNK_KV:
            return None
        [stats] = self._engine.collective_rpc("chunk_kv_stats")
        return stats

    def chunk_tiers(self, keys: Sequence[str]) -> list[Tier | None]:
        """Return where the chunk store has each of these chunks; None where it has not."""
        if self.no_blend_reason == NO_CHUNK_KV:
            return [None] * len(keys)
        [tiers] = self._engine.collective_rpc("chunk_kv_tiers", args=(list(keys),))
        return tiers

    def close(self) -> None:
        """Free the model."""
        self._engine.engine_core.shutdown()
