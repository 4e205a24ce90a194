"""From a prompt as it was read to what the engine is asked, and from what it says to what is told."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import replace

from serving.chunk_kv.blend_plan import BlendPlan, ChunkUse, Repair
from serving.chunk_kv.prompt_chunks import PromptChunks, prompt_chunks
from serving.config import ServingConfig
from serving.driver import EngineAdapter, EngineRequest
from serving.prompt_reader import ReadPrompt
from serving.types import GenerateRequest, GeneratorInfo, TokenUsage


class EngineRequests:
    """Makes engine requests for one model.

    Args:
        config: Settings.
        end_ids: Tokens that end a generation.
    """

    def __init__(self, config: ServingConfig, end_ids: tuple[int, ...]) -> None:
        self._config = config
        self._end_ids = end_ids

    def make(
        self,
        request: GenerateRequest,
        read: ReadPrompt,
        info: GeneratorInfo,
        adapter: EngineAdapter | None,
        *,
        blends: bool,
    ) -> tuple[EngineRequest, PromptChunks | None]:
        """Return what the engine is asked, and the chunks it blends; None where it is served exactly.

        Args:
            request: What was asked.
            read: Its prompt.
            info: The model whose weights answer it.
            adapter: Its adapter.
            blends: Whether chunks' KV is there to be taken.
        """
        chunks = None
        if request.reuse.mode == "blend" and adapter is None and blends:
            scope = json.dumps((info.model_hash, info.tokenizer_hash, self._config.dtype, request.tenant))
            chunks = prompt_chunks(request.prompt, read.segment_ids, scope)
        repair = Repair(request.reuse.first_k, request.reuse.repair_share)
        max_tokens = min(request.sampling.max_tokens, self._config.max_model_len - len(read.token_ids))
        # Approximate KV must not reach exact requests through the engine's prefix cache.
        kind = () if chunks is None else (str(repair),)
        engine_request = EngineRequest(
            request_id=uuid.uuid4().hex,
            token_ids=read.token_ids,
            sampling=replace(request.sampling, max_tokens=max_tokens),
            cache_salt=tenant_salt(request.tenant, *kind),
            stop_token_ids=self._end_ids,
            priority=request.priority,
            adapter=adapter,
            blend=None if chunks is None else BlendPlan(load=chunks.spans, repair=repair),
        )
        return engine_request, chunks


def tenant_salt(tenant: str, *kind: str) -> str:
    """Return what keeps a tenant's KV apart from others', and kinds of it from each other."""
    return hashlib.sha256("\0".join((tenant, *kind)).encode("utf-8", "surrogatepass")).hexdigest()


def with_chunks(usage: TokenUsage, use: ChunkUse) -> TokenUsage:
    """Return usage in which the engine's cached tokens, which hold all that was promised, are told apart."""
    return replace(
        usage,
        cached_tokens=max(usage.cached_tokens - use.loaded - use.computed, 0),
        blended_tokens=use.loaded,
        repaired_tokens=use.computed,
    )
