"""What a joint run will take: time of a step and of a refresh, and how to lay it over devices that hold it.

An operator model as in Vidur (Agrawal et al. 2024, https://arxiv.org/abs/2405.05465), kept to what can be
checked by hand: each operator takes `calls * overhead + work / rate`, with both numbers fitted to measured
points (`training.calibration`). Steps are sums of operators. Time follows the length that batches are padded
to, memory (`training.memory_estimate`) the longest text there is. What offloaded weights cost is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType

from training.calibration import Calibration
from training.joint.config import JointConfig
from training.memory_estimate import GIB, Device, MemoryEstimate, Sharding, estimate_memory
from training.model_shape import ModelShape
from training.run_shape import RunShape
from training.workload import Workload

_ENCODER_ROWS = 32
"""Passages that an encoder of the index takes at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Devices that are there."""

    device: Device = "cuda"
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
class Estimate:
    """What a layout of a run will take."""

    num_ranks: int
    """Devices that train."""
    num_encoders: int
    """Devices that keep the index fresh; 0 where it does not age."""
    shares_device: bool
    """Whether encoders and ranks take turns on one device."""
    sharding: Sharding
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
        self._config, self._run = config, RunShape(config, workload)

    def step_parts(
        self, calibration: Calibration, num_ranks: int, hardware: Hardware, sharding: Sharding
    ) -> Mapping[str, float]:
        """Return the seconds of a step by operator."""
        config, costs = self._config, calibration.costs
        questions = config.optim.batch_questions / num_ranks
        parts = config.optim.accumulate
        k, candidates = config.search.k, config.search.k * config.search.rerank
        trains_encoder = config.refresh.mode != "frozen"
        encode, train = costs["encode"], costs["encoder_train"]
        learnt = self._run.encoded_flops(questions, self._run.queries, parts)
        passages = self._run.encoded_flops(questions * k, self._run.passages, parts, is_distinct=True)
        selected = learnt
        if config.search.rerank > 1:
            selected += self._run.encoded_flops(
                questions * candidates, self._run.passages, parts, is_distinct=True
            )
        seconds = {
            "select": encode.seconds(selected, 2 * parts),
            "search": costs["search"].seconds(
                2.0 * questions * self._run.workload.num_passages * self._run.encoder.hidden_dim, parts
            ),
        }
        share = train_share(config.encoder.lora is not None, config.encoder.checkpointing)
        if trains_encoder and self._run.teaches:
            with_gradients = learnt + (passages if self._run.trains_passages else 0.0)
            seconds["retriever"] = train.seconds(share * with_gradients, 2 * parts)
            if not self._run.trains_passages:
                seconds["retriever"] += encode.seconds(passages, parts)
        if trains_encoder and config.loss.contrastive_weight > 0:
            width = 1 + config.loss.contrastive_negatives
            rows = learnt + self._run.encoded_flops(questions * width, self._run.passages, width)
            again = train_share(config.encoder.lora is not None, config.loss.contrastive_cache_rows > 0)
            seconds["contrastive"] = train.seconds(max(again, share) * rows, 1 + width)
        if self._run.reader is not None:
            seconds["reader"] = self._reader_s(self._run.reader, calibration, questions)
        seconds["optimizer"] = costs["optimizer"].seconds(float(sum(self._run.num_trained)), 1)
        if num_ranks > 1:
            seconds["exchange"] = self._exchange_s(num_ranks, hardware, sharding)
        return MappingProxyType(seconds)

    def refresh_s(self, calibration: Calibration, num_encoders: int) -> float:
        """Return the seconds in which encoders embed the corpus."""
        calls = ceil(self._run.workload.num_passages / _ENCODER_ROWS)
        flops = self._run.encoded_flops(self._run.workload.num_passages, self._run.passages, calls)
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
        sharding: Sharding = "ddp"
        memory = estimate_memory(self._run, num_ranks, device=hardware.device, holds_index=holds_index)
        lighter: tuple[Sharding, ...] = ("fsdp2", "fsdp2_offload")
        for kind in lighter:
            is_possible = num_ranks > 1 if kind == "fsdp2" else hardware.device == "cuda"
            if memory.total > available and is_possible:
                sharding = kind
                memory = estimate_memory(
                    self._run, num_ranks, sharding, device=hardware.device, holds_index=holds_index
                )
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

    def _reader_s(self, reader: ModelShape, calibration: Calibration, questions: float) -> float:
        config, parts = self._config, self._config.optim.accumulate
        rows = self._run.rows_of(questions)
        packs = config.reader.row_tokens > 0
        length = self._run.rows.mean if packs else self._run.rows.padded(rows / parts)
        forward = reader.forward_flops(rows * length, length)
        ask, train = calibration.costs["reader"], calibration.costs["reader_train"]
        if config.reader.frozen:
            seconds = ask.seconds(forward, parts)
        else:
            share = train_share(config.reader.lora is not None, config.reader.checkpointing)
            seconds = train.seconds(share * forward, parts)
        more = 0.0
        if config.loss.two_pass:
            more += forward
        if config.loss.retriever == "loop":
            more += config.search.k * forward
        if config.loss.null_passage and config.reader.form == "parallel" and config.loss.retriever:
            more += forward / config.search.k
        return seconds + (ask.seconds(more, parts) if more else 0.0)

    def _exchange_s(self, num_ranks: int, hardware: Hardware, sharding: Sharding) -> float:
        """Return the seconds of rings over all ranks, as fast as their slowest link.

        DDP moves gradients twice; FSDP2 gathers the reader's weights for both passes, scatters its gradients.
        """
        is_far = num_ranks > hardware.per_node
        rate = 1e9 * (hardware.network_gb_s if is_far else hardware.link_gb_s)
        by_encoder, by_reader = self._run.num_trained
        moved = 2 * (by_encoder + by_reader)
        if sharding != "ddp":
            moved = 2 * by_encoder + 2 * self._run.num_weights[1] + by_reader
        return 4.0 * moved * (num_ranks - 1) / num_ranks / rate


def train_share(has_lora: bool, computes_again: bool) -> float:
    """Return what a training pass takes of one that moves all weights and keeps all activations.

    Forward, gradients of activations and gradients of weights take two operations a weight each: an adapter
    leaves out the last, checkpointing and GradCache do the first again.
    """
    return (2 / 3 if has_lora else 1.0) + (1 / 3 if computes_again else 0.0)
