"""Computes scattered tokens of prompts in one forward of the engine's own model.

Each run of neighbouring tokens is a row of the batch, with the run as its query and everything before it as
its context; rows of one prompt share its block table. A layer writes the keys and values of all rows before
it attends, so a run sees those before it as they are now. No kernel and no model class is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata


@dataclass(frozen=True, slots=True)
class PromptRuns:
    """What of one prompt is to be computed."""

    token_ids: Sequence[int]
    """All of the prompt."""
    block_ids: Sequence[int]
    """The prompt's KV blocks."""
    runs: Sequence[tuple[int, int]]
    """Half-open ranges of positions, in order."""


class _Caught(Exception):
    """Ends a forward at the keys that were wanted."""

    def __init__(self, keys: torch.Tensor) -> None:
        super().__init__()
        self.keys = keys


class SegmentForward:
    """Runs parts of prompts through the model of a worker.

    Args:
        runner: vLLM's model runner, whose model is loaded and whose KV cache is laid out.
        attention_layers: Its attention layers, in the order of the model.
        block_size: Tokens of a KV block.
    """

    def __init__(self, runner: Any, attention_layers: Sequence[Any], block_size: int) -> None:
        self._runner = runner
        self._attention_layers = attention_layers
        self._block_size = block_size

    def slots(self, block_ids: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
        """Return the slots of a prompt's positions, int64 of the same shape."""
        blocks = torch.tensor(block_ids, dtype=torch.int64, device=positions.device)
        return blocks[positions // self._block_size] * self._block_size + positions % self._block_size

    @torch.inference_mode()
    def run(self, prompts: Sequence[PromptRuns]) -> None:
        """Write the KV of the runs, of which there is at least one, into the cache."""
        rows = [(prompt, begin, end) for prompt in prompts for begin, end in prompt.runs]
        device = self._runner.device
        token_ids = torch.tensor(
            [token for prompt, begin, end in rows for token in prompt.token_ids[begin:end]], device=device
        )
        positions = torch.cat([torch.arange(begin, end, device=device) for _, begin, end in rows])
        slots = torch.cat(
            [
                self.slots(prompt.block_ids, torch.arange(begin, end, device=device))
                for prompt, begin, end in rows
            ]
        )
        metadata = self._metadata(rows, positions, slots)
        runner = self._runner
        with set_forward_context(
            metadata,
            runner.vllm_config,
            num_tokens=len(token_ids),
            slot_mapping=dict.fromkeys(metadata, slots),
        ):
            runner.model(input_ids=token_ids, positions=positions)

    def keys(self, prompts: Sequence[PromptRuns], layer_number: int) -> torch.Tensor:
        """Return the runs' keys in one layer, [T, H, D] over all prompts in order, from the layers before it.

        The KV of the runs in those layers is written into the cache; nothing of later layers is computed.
        """
        layer = self._attention_layers[layer_number]
        hook = layer.register_forward_pre_hook(_catch)
        try:
            self.run(prompts)
        except _Caught as caught:
            return caught.keys.view(-1, layer.impl.num_kv_heads, layer.impl.head_size)
        finally:
            hook.remove()
        raise RuntimeError(f"the model did not call its attention layer {layer_number}")

    def _metadata(
        self, rows: list[tuple[PromptRuns, int, int]], positions: Any, slots: Any
    ) -> dict[str, Any]:
        device = positions.device
        lengths = torch.tensor([end - begin for _, begin, end in rows], dtype=torch.int32)
        query_starts = torch.cat((torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).to(torch.int32)))
        contexts = torch.tensor([end for _, _, end in rows], dtype=torch.int32)
        most_blocks = max(len(prompt.block_ids) for prompt, _, _ in rows)
        blocks = torch.zeros((len(rows), most_blocks), dtype=torch.int32)
        for number, (prompt, _, _) in enumerate(rows):
            blocks[number, : len(prompt.block_ids)] = torch.tensor(prompt.block_ids, dtype=torch.int32)
        common = CommonAttentionMetadata(
            query_start_loc=query_starts.to(device),
            query_start_loc_cpu=query_starts,
            seq_lens=contexts.to(device),
            num_reqs=len(rows),
            num_actual_tokens=len(positions),
            max_query_len=int(lengths.max()),
            max_seq_len=int(contexts.max()),
            block_table_tensor=blocks.to(device),
            slot_mapping=slots,
            causal=True,
            positions=positions,
            seq_lens_cpu_upper_bound=contexts,
            is_prefilling=torch.ones(len(rows), dtype=torch.bool),
        )
        metadata: dict[str, Any] = {}
        for groups in self._runner.attn_groups:
            for group in groups:
                built = group.get_metadata_builder().build(0, common)
                metadata |= dict.fromkeys(group.layer_names, built)
        return metadata


def _catch(_: object, query_key_value: tuple[torch.Tensor, ...]) -> None:
    raise _Caught(query_key_value[1])
