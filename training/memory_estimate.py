"""The memory of a rank of a joint run, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType
from typing import Literal

from training.errors import OutOfResources
from training.run_shape import RunShape

GIB = 2**30
Sharding = Literal["ddp", "fsdp2", "fsdp2_offload"]
"""Whether every rank holds the whole reader, or a share of each of its weights, there or in host memory."""
Device = Literal["cpu", "cuda"]
"""Where a rank computes."""
_SLACK = 1.2
"""Allocators hold more than tensors need."""
_RUNTIME_BYTES = {"cpu": 0.7 * GIB, "cuda": 1.0 * GIB}
"""A process with torch, without a model."""
_STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0, "adafactor": 0.05}
"""Optimizer states of a weight; a matrix of 160 rows and more costs Adafactor less than that."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of the rank that holds most."""

    parts: Mapping[str, float]
    """Bytes by what they are for."""

    @property
    def total(self) -> float:
        """Return all bytes."""
        return sum(self.parts.values())

    def check(self, available: float, where: str) -> None:
        """Refuse a run that does not fit.

        Args:
            available: Bytes.
            where: What holds them, for the message.

        Raises:
            OutOfResources: Naming how much is missing, what takes most, and what to change.
        """
        if self.total <= available:
            return
        largest = sorted(self.parts.items(), key=lambda one: -one[1])[:3]
        shown = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in largest)
        raise OutOfResources(
            f"a rank is estimated to take {self.total / GIB:.2f} GiB, {where} has {available / GIB:.2f} GiB: "
            f"{(self.total - available) / GIB:.2f} GiB are missing (most of it {shown}). "
            "Raise optim.accumulate, switch on checkpointing or lora, share the reader "
            "with ranks.sharding='fsdp2' or 'fsdp2_offload', or set ranks.memory_gib if you know better"
        )


def estimate_memory(
    run: RunShape,
    num_ranks: int,
    sharding: Sharding = "ddp",
    *,
    device: Device = "cpu",
    holds_index: bool = True,
) -> MemoryEstimate:
    """Return the memory of the first rank, which holds most.

    Args:
        run: Configuration and workload.
        num_ranks: Devices that share the questions of a step.
        sharding: Whether the reader's weights, gradients and optimizer states are shared too.
        device: Where a rank computes.
        holds_index: Whether the versions of the index are in the rank's memory, not in shards elsewhere.
    """
    config = run.config
    share = 1.0 if sharding == "ddp" else 1.0 / num_ranks
    if sharding == "fsdp2_offload" and device == "cuda":
        share = 0.0
    of_encoder, of_reader = run.num_weights
    held = of_encoder + share * of_reader
    if sharding != "ddp" and run.reader is not None:
        # Two layers are whole at a time: the one that computes, and the next.
        held += 2 * run.reader.num_matmul_params / run.reader.num_layers
    by_encoder, by_reader = run.num_trained
    trained = by_encoder + share * by_reader
    number_bytes = 2 if config.optim.dtype == "bfloat16" else 4
    versions = 2 if config.refresh.refreshes else 1
    index = versions * 4.0 * run.workload.num_passages * run.encoder.hidden_dim
    parts = {
        "weights": 4.0 * held,
        "gradients": 4.0 * trained,
        "optimizer": _STATE_BYTES[config.optim.kind] * trained,
        "activations": _SLACK * number_bytes * _activation_elements(run, num_ranks),
        "index": index if holds_index else 0.0,
        "texts": float(run.workload.text_bytes),
        "runtime": _RUNTIME_BYTES[device],
    }
    return MemoryEstimate(MappingProxyType(parts))


def _activation_elements(run: RunShape, num_ranks: int) -> float:
    """Return the numbers kept after a part's forward pass, when both towers wait for gradients."""
    config = run.config
    questions = ceil(config.optim.batch_questions / num_ranks / config.optim.accumulate)
    tokens = 0.0
    if config.refresh.mode != "frozen":
        if run.teaches:
            passages = config.search.k * run.passages.longest if run.trains_passages else 0
            tokens = questions * (run.queries.longest + passages)
        if config.loss.contrastive_weight > 0:
            # The contrastive pass keeps a rank's whole step, or a few rows at a time.
            all_rows = config.optim.batch_questions / num_ranks * (2 + config.loss.contrastive_negatives)
            rows = min(config.loss.contrastive_cache_rows or all_rows, all_rows)
            tokens = max(tokens, rows * run.passages.longest)
    elements = run.encoder.activation_elements(tokens, is_checkpointed=config.encoder.checkpointing)
    if run.reader is not None and not config.reader.frozen:
        rows = run.rows_of(questions)
        length = run.rows.mean if config.reader.row_tokens else run.rows.longest
        elements += run.reader.activation_elements(rows * length, is_checkpointed=config.reader.checkpointing)
        # Logits of answers, their softmax and its gradient.
        elements += 3.0 * rows * config.reader.max_answer_tokens * run.reader.vocab_size
    return elements
