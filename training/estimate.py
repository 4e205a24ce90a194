"""What a joint run will take: memory, time of a step and of a refresh, and how to lay it over devices.

An operator model as in Vidur (Agrawal et al. 2024, https://arxiv.org/abs/2405.05465), kept to what can be
checked by hand: each operator takes `calls * overhead + work / rate`, with both numbers fitted to measured
points (`training.calibration`). Steps are sums of operators. Lengths are the configuration's limits unless
measured ones are given, so estimates err on the high side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType
from typing import Literal

from retrieval.model_files import model_folder
from training.calibration import Calibration
from training.errors import ConfigError, OutOfResources
from training.joint.config import JointConfig, LoraConfig
from training.model_shape import ModelShape

GIB = 2**30
_PROMPT_TOKENS = 64
"""System text, roles and marks around a question and its passages."""
_SLACK = 1.2
"""Allocators hold more than tensors need."""
_RUNTIME_BYTES = {"cpu": 0.7 * GIB, "cuda": 1.0 * GIB}
"""A process with torch, without a model."""
_STATE_BYTES = {"adamw": 8, "adamw_8bit": 2}
"""Optimizer states of a weight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the data is like, as far as cost depends on it."""

    num_passages: int
    """Rows of the index."""
    text_bytes: int = 0
    """All passages' characters, which every rank holds."""
    query_tokens: float | None = None
    """Mean tokens of a question; None takes the configured limit."""
    passage_tokens: float | None = None
    """Mean tokens of a passage for the encoder; None takes the configured limit."""
    row_tokens: float | None = None
    """Mean tokens of a reader row; None computes it from the configured limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Devices that are there."""

    device: Literal["cpu", "cuda"] = "cuda"
    """Their kind; on a CPU a device is a process with its share of cores, as calibrated."""
    num_nodes: int = 1
    """Machines."""
    per_node: int = 1
    """Devices of each."""
    memory_gib: float = 80.0
    """Memory of a device."""
    link_gb_s: float = 300.0
    """Bytes a second between devices of a node, in 10^9."""
    network_gb_s: float = 25.0
    """Bytes a second between nodes, in 10^9."""

    @property
    def num_devices(self) -> int:
        """Return all devices."""
        return self.num_nodes * self.per_node


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
            "with ranks.sharding='fsdp2', or set ranks.memory_gib if you know better"
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a layout of a run will take."""

    num_ranks: int
    """Devices that train."""
    num_encoders: int
    """Devices that keep the index fresh; 0 where it does not age."""
    shares_device: bool
    """Whether encoders and ranks take turns on one device."""
    sharding: Literal["ddp", "fsdp2"]
    """Whether a rank holds the whole reader."""
    memory: MemoryEstimate
    """Of a rank."""
    step_parts: Mapping[str, float]
    """Seconds of a step by operator."""
    refresh_s: float
    """Seconds in which the encoders embed the whole corpus."""
    stall_s: float
    """Seconds that the ranks wait for it at each activation."""

    @property
    def step_s(self) -> float:
        """Return the seconds of a step."""
        return sum(self.step_parts.values())

    def told(self, config: JointConfig) -> str:
        """Return the estimate for people."""
        lines = [
            f"{self.num_ranks} ranks ({self.sharding}), "
            + (f"{self.num_encoders} encoders" + (" on the same device" if self.shares_device else "")),
            f"memory of a rank {self.memory.total / GIB:.2f} GiB: "
            + ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.memory.parts.items()),
            f"step {self.step_s:.3f} s: "
            + ", ".join(f"{name} {seconds:.3f}" for name, seconds in self.step_parts.items()),
            f"refresh {self.refresh_s:.1f} s, stall at each activation {self.stall_s:.1f} s",
            f"{config.optim.steps:,} steps {config.optim.steps * self.step_s / 3600:.2f} h without stalls",
        ]
        return "\n".join(lines)


class JointEstimator:
    """Estimates runs of one configuration on one workload."""

    def __init__(self, config: JointConfig, workload: Workload) -> None:
        """Read the sizes of the models; no weight is loaded.

        Raises:
            ConfigError: A model cannot be found.
        """
        self._config, self._workload = config, workload
        try:
            self.encoder = ModelShape.of(model_folder(config.encoder.model))
            has_reader = bool(config.reader.model) and config.reader.form != "none"
            self.reader = ModelShape.of(model_folder(config.reader.model)) if has_reader else None
        except FileNotFoundError as error:
            raise ConfigError(f"a model of the run cannot be found: {error}") from error

    def memory(
        self,
        num_ranks: int,
        sharding: Literal["ddp", "fsdp2"] = "ddp",
        *,
        device: Literal["cpu", "cuda"] = "cpu",
        holds_index: bool = True,
    ) -> MemoryEstimate:
        """Return the memory of the first rank, which holds most.

        Args:
            num_ranks: Devices that share the questions of a step.
            sharding: Whether the reader's weights, gradients and optimizer states are shared too.
            device: Where a rank computes.
            holds_index: Whether both versions of the index are in the rank's memory, not in shards elsewhere.
        """
        config = self._config
        share = 1.0 / num_ranks if sharding == "fsdp2" else 1.0
        of_encoder, of_reader = self._num_weights()
        held = of_encoder + share * of_reader
        if sharding == "fsdp2" and self.reader is not None:
            # Two layers are whole at a time: the one that computes, and the next.
            held += 2 * self.reader.num_matmul_params / self.reader.num_layers
        by_encoder, by_reader = self._num_trained()
        trained = by_encoder + share * by_reader
        number_bytes = 2 if config.optim.dtype == "bfloat16" else 4
        parts = {
            "weights": 4.0 * held,
            "gradients": 4.0 * trained,
            "optimizer": _STATE_BYTES[config.optim.kind] * trained,
            "activations": _SLACK * number_bytes * self._activation_elements(num_ranks),
            "index": self._index_bytes() if holds_index else 0.0,
            "texts": float(self._workload.text_bytes),
            "runtime": _RUNTIME_BYTES[device],
        }
        return MemoryEstimate(MappingProxyType(parts))

    def step_parts(
        self, calibration: Calibration, num_ranks: int, hardware: Hardware, sharding: Literal["ddp", "fsdp2"]
    ) -> Mapping[str, float]:
        """Return the seconds of a step by operator."""
        config, costs = self._config, calibration.costs
        questions = config.optim.batch_questions / num_ranks
        parts = config.optim.accumulate
        query_tokens, passage_tokens = self._query_tokens, self._passage_tokens
        k, candidates = config.search.k, config.search.k * config.search.rerank
        trains_encoder = config.refresh.mode != "frozen"
        trains_passages = config.refresh.mode in ("blocking", "async")
        encode, train = costs["encode"], costs["encoder_train"]
        forward = self.encoder.forward_flops
        selected = forward(questions * query_tokens, query_tokens)
        if config.search.rerank > 1:
            selected += forward(questions * candidates * passage_tokens, passage_tokens)
        seconds = {
            "select": encode.seconds(selected, 2 * parts),
            "search": costs["search"].seconds(
                2.0 * questions * self._workload.num_passages * self.dim, parts
            ),
        }
        learnt = forward(questions * query_tokens, query_tokens)
        passages = forward(questions * k * passage_tokens, passage_tokens)
        checkpointing = 4 / 3 if config.encoder.checkpointing else 1.0
        if trains_encoder and (self.reader is not None and config.loss.retriever is not None):
            with_gradients = learnt + (passages if trains_passages else 0.0)
            seconds["retriever"] = train.seconds(checkpointing * with_gradients, 2 * parts)
            if not trains_passages:
                seconds["retriever"] += encode.seconds(passages, parts)
        if trains_encoder and config.loss.contrastive_weight > 0:
            width = 1 + config.loss.contrastive_negatives
            rows = learnt + forward(questions * width * passage_tokens, passage_tokens)
            again = 4 / 3 if config.loss.contrastive_cache_rows else checkpointing
            seconds["contrastive"] = train.seconds(again * rows, 1 + width)
        if self.reader is not None:
            seconds["reader"] = self._reader_s(self.reader, calibration, questions)
        seconds["optimizer"] = costs["optimizer"].seconds(float(sum(self._num_trained())), 1)
        if num_ranks > 1:
            seconds["exchange"] = self._exchange_s(num_ranks, hardware, sharding)
        return MappingProxyType(seconds)

    def refresh_s(self, calibration: Calibration, num_encoders: int) -> float:
        """Return the seconds in which encoders embed the corpus."""
        tokens = self._passage_tokens
        flops = self.encoder.forward_flops(self._workload.num_passages * tokens, tokens)
        calls = ceil(self._workload.num_passages / 32)
        return calibration.costs["encode"].seconds(flops, calls) / num_encoders

    def plan(self, calibration: Calibration, hardware: Hardware) -> Estimate:
        """Return the layout with the shortest step whose refresh is done in time.

        The reader is shared between ranks (FSDP2) only where they do not fit otherwise. Of the devices as few
        encode as finish a refresh within its delay; where none suffices, the layout with the least stall a
        step is returned.

        Raises:
            OutOfResources: No layout fits the memory.
        """
        ages = self._config.refresh.refreshes
        total = hardware.num_devices
        layouts: list[Estimate] = []
        for num_encoders in range(1 if ages and total > 1 else 0, total if total > 1 else 1):
            layouts.append(self._layout(calibration, hardware, total - num_encoders, num_encoders))
            if layouts[-1].stall_s == 0.0:
                return layouts[-1]
        every = self._config.refresh.interval_steps
        return min(layouts, key=lambda one: one.step_s + one.stall_s / every)

    def _layout(
        self, calibration: Calibration, hardware: Hardware, num_devices: int, num_encoders: int
    ) -> Estimate:
        batch = self._config.optim.batch_questions
        num_ranks = max(n for n in range(1, min(num_devices, batch) + 1) if batch % n == 0)
        available = hardware.memory_gib * GIB
        holds_index = hardware.num_devices == 1 or hardware.device == "cpu"
        sharding: Literal["ddp", "fsdp2"] = "ddp"
        memory = self.memory(num_ranks, device=hardware.device, holds_index=holds_index)
        if memory.total > available and num_ranks > 1:
            sharding = "fsdp2"
            memory = self.memory(num_ranks, sharding, device=hardware.device, holds_index=holds_index)
        memory.check(available, f"each of {num_ranks} {hardware.device} devices")
        step_parts = self.step_parts(calibration, num_ranks, hardware, sharding)
        shares = self._config.refresh.refreshes and num_encoders == 0
        encoding = max(num_encoders, 1)
        refresh_s = self.refresh_s(calibration, encoding)
        if shares:
            # Both take turns: a refresh lengthens the steps that it runs beside by its own time.
            spread = refresh_s / self._config.refresh.interval_steps
            step_parts = MappingProxyType({**step_parts, "refresh": spread})
        estimate = Estimate(num_ranks, num_encoders, shares, sharding, memory, step_parts, refresh_s, 0.0)
        return replace(estimate, stall_s=0.0 if shares else self._stall_s(estimate))

    def _stall_s(self, estimate: Estimate) -> float:
        refresh = self._config.refresh
        if not refresh.refreshes:
            return 0.0
        return max(0.0, estimate.refresh_s - refresh.delay_steps * estimate.step_s)

    @property
    def dim(self) -> int:
        """Return the numbers of a vector."""
        return self.encoder.hidden_dim

    @property
    def _query_tokens(self) -> float:
        return self._workload.query_tokens or self._config.encoder.max_query_tokens

    @property
    def _passage_tokens(self) -> float:
        return self._workload.passage_tokens or self._config.encoder.max_passage_tokens

    @property
    def _row_tokens(self) -> float:
        if self._workload.row_tokens:
            return self._workload.row_tokens
        reader = self._config.reader
        shown = self._config.search.k if reader.form == "concat" else 1
        fixed = _PROMPT_TOKENS + self._query_tokens + reader.max_answer_tokens
        return fixed + shown * reader.max_passage_tokens

    def _reader_s(self, reader: ModelShape, calibration: Calibration, questions: float) -> float:
        config, parts = self._config, self._config.optim.accumulate
        rows = questions * (config.search.k if config.reader.form == "parallel" else 1)
        forward = reader.forward_flops(rows * self._row_tokens, self._row_tokens)
        ask, train = calibration.costs["reader"], calibration.costs["reader_train"]
        if config.reader.frozen:
            seconds = ask.seconds(forward, parts)
        else:
            # An adapter needs no gradients of the weights under it: 4 instead of 6 operations a weight.
            share = (2 / 3 if config.reader.lora else 1.0) + (1 / 3 if config.reader.checkpointing else 0.0)
            seconds = train.seconds(share * forward, parts)
        more = 0.0
        if config.loss.two_pass:
            more += forward
        if config.loss.retriever == "loop":
            more += config.search.k * forward
        if config.loss.null_passage and config.reader.form == "parallel" and config.loss.retriever:
            more += forward / config.search.k
        return seconds + (ask.seconds(more, parts) if more else 0.0)

    def _exchange_s(self, num_ranks: int, hardware: Hardware, sharding: Literal["ddp", "fsdp2"]) -> float:
        """Return the seconds of rings over all ranks, as fast as their slowest link.

        DDP moves gradients twice; FSDP2 gathers the reader's weights for both passes, scatters its gradients.
        """
        is_far = num_ranks > hardware.per_node
        rate = 1e9 * (hardware.network_gb_s if is_far else hardware.link_gb_s)
        by_encoder, by_reader = self._num_trained()
        moved = 2 * (by_encoder + by_reader)
        if sharding == "fsdp2":
            moved = 2 * by_encoder + 2 * self._num_weights()[1] + by_reader
        return 4.0 * moved * (num_ranks - 1) / num_ranks / rate

    def _num_weights(self) -> tuple[int, int]:
        sides = (
            2 if self._config.encoder.towers == "untied" or self._config.refresh.mode == "query_side" else 1
        )
        return sides * self.encoder.num_params, self.reader.num_params if self.reader else 0

    def _num_trained(self) -> tuple[int, int]:
        mode = self._config.refresh.mode
        sides = 0 if mode == "frozen" else 1
        if mode in ("blocking", "async") and self._config.encoder.towers == "untied":
            sides = 2
        of_reader = 0
        if self.reader is not None and not self._config.reader.frozen:
            of_reader = self._trained(self.reader, self._config.reader.lora)
        return sides * self._trained(self.encoder, self._config.encoder.lora), of_reader

    @staticmethod
    def _trained(shape: ModelShape, lora: LoraConfig | None) -> int:
        return shape.num_trained(lora)

    def _activation_elements(self, num_ranks: int) -> float:
        """Return the numbers kept after a part's forward pass, when both towers wait for gradients."""
        config = self._config
        questions = ceil(config.optim.batch_questions / num_ranks / config.optim.accumulate)
        elements = 0.0
        mode = config.refresh.mode
        if mode != "frozen":
            passages = config.search.k if mode in ("blocking", "async") else 0
            tokens = questions * (self._query_tokens + passages * self._passage_tokens)
            contrastive = 0.0
            if config.loss.contrastive_weight > 0:
                # The contrastive pass keeps a rank's whole step, or a few rows at a time.
                all_rows = config.optim.batch_questions / num_ranks * (2 + config.loss.contrastive_negatives)
                rows = min(config.loss.contrastive_cache_rows or all_rows, all_rows)
                contrastive = rows * self._passage_tokens
            if self.reader is None or config.loss.retriever is None:
                tokens = 0.0
            tokens = max(tokens, contrastive)
            elements += self.encoder.activation_elements(tokens, is_checkpointed=config.encoder.checkpointing)
        if self.reader is not None and not config.reader.frozen:
            rows = questions * (config.search.k if config.reader.form == "parallel" else 1)
            elements += self.reader.activation_elements(
                rows * self._row_tokens, is_checkpointed=config.reader.checkpointing
            )
            # Logits of answers, their softmax and its gradient.
            elements += 3.0 * rows * config.reader.max_answer_tokens * self.reader.vocab_size
        return elements

    def _index_bytes(self) -> float:
        versions = 2 if self._config.refresh.refreshes else 1
        return versions * 4.0 * self._workload.num_passages * self.dim
