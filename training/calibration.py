"""Measured points of a machine, and the two numbers of each operator that are fitted to them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

import numpy as np

from training.errors import CheckpointError, DataMissingError
from training.index.durable_files import write_durably

if TYPE_CHECKING:
    import torch

    from training.joint.config import JointConfig

Operator = Literal["encode", "encoder_train", "reader", "reader_train", "search", "optimizer"]
"""Work is the FLOPs of a forward pass, also for training; for `search` FLOPs, for `optimizer` weights."""
OPERATORS: tuple[Operator, ...] = (
    "encode",
    "encoder_train",
    "reader",
    "reader_train",
    "search",
    "optimizer",
)
_REPEATS = 3
_WORD = "lighthouse "


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """What one operator takes."""

    overhead_s: float
    """Seconds of a call whatever its work, 0 or more."""
    per_s: float
    """Work a second beyond that, above 0."""

    def seconds(self, work: float, calls: int) -> float:
        """Return the seconds of some work in some calls."""
        return calls * self.overhead_s + work / self.per_s


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement."""

    operator: Operator
    """What was measured."""
    work: float
    """How much of it."""
    seconds: float
    """Median time of one call."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A machine, as estimates see it."""

    device: str
    """What was measured, for people."""
    points: tuple[Point, ...]
    """All measurements; each operator has at least one."""

    @property
    def costs(self) -> dict[Operator, OperatorCost]:
        """Return each operator's cost: a line through its points, or through 0 where that would fall."""
        return {name: _fitted([one for one in self.points if one.operator == name]) for name in OPERATORS}

    def save(self, path: Path) -> None:
        """Write the points as JSON."""
        content = json.dumps(asdict(self), indent=1).encode()
        write_durably(path, lambda file: file.write(content))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Return what `save` wrote.

        Raises:
            DataMissingError: The file is not there.
            CheckpointError: It cannot be read, or lacks an operator.
        """
        if not path.is_file():
            raise DataMissingError(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = cls(values["device"], tuple(Point(**point) for point in values["points"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"'{path}' is no calibration ({error}); measure again") from error
        lacking = set(OPERATORS) - {point.operator for point in found.points}
        if lacking:
            raise CheckpointError(f"'{path}' lacks {', '.join(sorted(lacking))}; measure again")
        return found


def _fitted(points: Sequence[Point]) -> OperatorCost:
    work_P = np.array([point.work for point in points])
    seconds_P = np.array([point.seconds for point in points])
    if len(np.unique(work_P)) > 1:
        slope, overhead = np.polyfit(work_P, seconds_P, 1)
        if slope > 0 and overhead >= 0:
            return OperatorCost(float(overhead), float(1 / slope))
    return OperatorCost(0.0, float(work_P.sum() / seconds_P.sum()))


def calibrate(config: JointConfig, device: torch.device, *, sizes: tuple[int, int] = (4, 16)) -> Calibration:
    """Return measured points of a configuration's own models on a device; takes some seconds.

    All weights are trained and all activations kept, whatever the configuration: estimates know what adapters
    and checkpointing change, and one calibration serves all of them.

    Args:
        config: Models, lengths and precision.
        device: Where a rank computes.
        sizes: Rows of the two batches that each operator is measured at.

    Raises:
        ConfigError: A model cannot be loaded.
    """
    import torch

    from retrieval.model_files import model_folder
    from training.joint.encoder_tower import EncoderTower
    from training.joint.reader_tower import ReaderTower
    from training.model_shape import ModelShape
    from training.types import TrainingPassage, TrainingQuestion

    timed = _Timer(device)
    points: list[Point] = []
    encoder = EncoderTower(replace(config.encoder, lora=None, checkpointing=False), "blocking", device)
    shape = ModelShape.of(model_folder(config.encoder.model))
    length = config.encoder.max_passage_tokens
    precision = torch.autocast(device.type, torch.bfloat16, enabled=config.optim.dtype == "bfloat16")
    for rows in sizes:
        features = encoder.features([_WORD * length] * rows, "passage")
        tokens = features["input_ids"].shape[1]
        work = shape.forward_flops(rows * tokens, tokens)

        def encode(features: dict[str, torch.Tensor] = features) -> None:
            with torch.no_grad(), precision:
                encoder(features, "passage")

        def train(features: dict[str, torch.Tensor] = features) -> None:
            with precision:
                encoder(features, "passage").sum().backward()
            encoder.zero_grad()

        points += [Point("encode", work, timed(encode)), Point("encoder_train", work, timed(train))]
    if config.reader.model and config.reader.form != "none":
        whole = replace(config.reader, lora=None, checkpointing=False, frozen=False)
        reader = ReaderTower(whole, device)
        shape = ModelShape.of(model_folder(config.reader.model))
        passage = TrainingPassage("p", _WORD * config.reader.max_passage_tokens)
        question = TrainingQuestion("q", _WORD * 8, answers=(_WORD * 4,))
        for rows in sizes:
            batch = [reader.rows.row(question, [passage], 1)] * rows
            tokens = batch[0].num_tokens
            work = shape.forward_flops(rows * tokens, tokens)

            def ask(batch: list = batch) -> None:
                with precision:
                    reader.likelihoods(batch, with_gradients=False)

            def learn(batch: list = batch) -> None:
                with precision:
                    reader.likelihoods(batch).token_log_probs_NL.sum().backward()
                reader.zero_grad()

            points.append(Point("reader", work, timed(ask)))
            points.append(Point("reader_train", work, timed(learn)))
    else:
        points += [Point("reader", 1.0, 1e-9), Point("reader_train", 1.0, 1e-9)]
    return Calibration(timed.device_name, (*points, *_machine_points(timed, encoder.dim, device)))


def _machine_points(timed: _Timer, dim: int, device: torch.device) -> list[Point]:
    import torch

    points: list[Point] = []
    for num_rows in (16_384, 65_536):
        stored_ND = torch.zeros(num_rows, dim, device=device)
        queries_QD = torch.zeros(8, dim, device=device)
        found = timed(lambda queries_QD=queries_QD, stored_ND=stored_ND: (queries_QD @ stored_ND.T).topk(8))
        points.append(Point("search", 2.0 * 8 * num_rows * dim, found))
    for num_weights in (1 << 18, 1 << 21):
        weights = torch.zeros(num_weights, device=device, requires_grad=True)
        weights.grad = torch.zeros_like(weights)
        moved = timed(torch.optim.AdamW([weights], fused=True).step)
        points.append(Point("optimizer", float(num_weights), moved))
    return points


class _Timer:
    """Median seconds of a call, the first one left out."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.device_name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} threads"
        )

    def __call__(self, call: Callable[[], object]) -> float:
        call()
        seconds = []
        for _ in range(_REPEATS):
            self._wait()
            began_s = time.perf_counter()
            call()
            self._wait()
            seconds.append(time.perf_counter() - began_s)
        return median(seconds)
