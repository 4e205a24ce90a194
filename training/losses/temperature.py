"""The temperature of the teacher: fixed, or steered so that its distributions keep a wanted entropy.

A temperature far below the spread of likelihoods makes the teacher one-hot and the gradient of everything but
the best passage vanish; far above, the teacher has no opinion. The spread depends on reader, task and length
of answers and shrinks while the reader learns, so one number does not fit a run: with a spread of 1 nat
Atlas's 0.01 leaves the teacher at a tenth of its largest entropy, 0.1 at about six tenths.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from training.errors import CheckpointError, ConfigError
from training.losses.agreement import MIN_SPREAD_NATS, entropy_share, rows_with_signal
from training.losses.gather import gather_rows
from training.losses.passage_distribution import passage_log_probs
from training.losses.shapes import check_positive, check_shapes

_BISECTIONS = 60


class TeacherTemperature(Protocol):
    """What a training step asks of a temperature."""

    @property
    def temperature(self) -> float:
        """The temperature in force."""
        ...

    def update(
        self,
        answer_log_probs_BK: Tensor,
        passage_mask_BK: Tensor | None = None,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> float:
        """Take in a step's likelihoods and return the temperature now in force."""
        ...

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        ...

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint."""
        ...


class FixedTemperature:
    """A temperature that stays."""

    def __init__(self, temperature: float) -> None:
        """Keep a temperature above 0.

        Raises:
            ConfigError: It is not.
        """
        check_positive("teacher_temperature", temperature)
        self.temperature = temperature

    def update(
        self,
        answer_log_probs_BK: Tensor,
        passage_mask_BK: Tensor | None = None,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> float:
        """Return the temperature."""
        return self.temperature

    def state_dict(self) -> dict[str, float]:
        """Return the temperature, so that a resumed run can see whether its configuration still agrees."""
        return {"temperature": self.temperature}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Check that the checkpoint was made with the same temperature.

        Raises:
            CheckpointError: It was not.
        """
        if state != self.state_dict():
            raise CheckpointError(
                f"the checkpoint has the teacher state {state}, the configuration says "
                f"{self.state_dict()}: resume with the configuration of the run"
            )


class EntropyControlledTemperature:
    """The temperature at which the teacher has a given share of its largest entropy, smoothed over steps.

    Each update finds tau with mean_i H(softmax(ell_i / tau)) / ln K_i = share by bisection over the questions
    with signal, and moves ln tau towards it: ln tau <- decay ln tau + (1 - decay) ln tau_found. The first
    update takes what it finds. With several ranks all see the likelihoods of all, so every rank holds the
    same temperature.
    """

    def __init__(
        self,
        *,
        entropy_share: float = 0.5,
        decay: float = 0.9,
        initial_temperature: float = 1.0,
        min_temperature: float = 1e-6,
        max_temperature: float = 1e4,
        min_spread_nats: float = MIN_SPREAD_NATS,
    ) -> None:
        """Start at the initial temperature.

        Args:
            entropy_share: Wanted entropy divided by ln K, in (0, 1).
            decay: Weight of the past, in [0, 1).
            initial_temperature: In force until the first update.
            min_temperature: Lower end of the bisection.
            max_temperature: Upper end of the bisection.
            min_spread_nats: See `rows_with_signal`.

        Raises:
            ConfigError: A value is out of its range.
        """
        if not 0 < entropy_share < 1:
            raise ConfigError(f"entropy_share={entropy_share} must lie between 0 and 1; 0.5 is a good start")
        if not 0 <= decay < 1:
            raise ConfigError(f"decay={decay} must be at least 0 and below 1")
        check_positive("min_temperature", min_temperature)
        check_positive("max_temperature", max_temperature)
        if not min_temperature <= initial_temperature <= max_temperature:
            raise ConfigError(
                f"initial_temperature={initial_temperature} must lie between "
                f"min_temperature={min_temperature} and max_temperature={max_temperature}"
            )
        self._share, self._decay, self._min_spread_nats = entropy_share, decay, min_spread_nats
        self._bounds = (min_temperature, max_temperature)
        self._log_temperature = math.log(initial_temperature)
        self._num_updates = 0

    @property
    def temperature(self) -> float:
        """The temperature in force."""
        return math.exp(self._log_temperature)

    def update(
        self,
        answer_log_probs_BK: Tensor,
        passage_mask_BK: Tensor | None = None,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> float:
        """Take in a step's likelihoods and return the temperature now in force.

        With gradient accumulation call it once, with the likelihoods of all micro-batches, after they used
        `temperature`: the number of micro-batches then changes nothing.

        Args:
            answer_log_probs_BK: What the teacher ranks by, in nats per token; waits for its device.
            passage_mask_BK: False where a slot is padding.
            group: Ranks to agree with, the default group when None; every rank must call, with the same
                shape.

        Returns:
            The temperature, unchanged when no question has signal.
        """
        check_shapes(answer_log_probs_BK=answer_log_probs_BK, passage_mask_BK=passage_mask_BK)
        if passage_mask_BK is None:
            passage_mask_BK = torch.ones_like(answer_log_probs_BK, dtype=torch.bool)
        values_BK = answer_log_probs_BK.detach()
        both_BK2 = gather_rows(torch.stack((values_BK, passage_mask_BK.to(values_BK.dtype)), dim=2), group)
        # On the CPU: the work is tiny, and 60 dependent steps would be 60 kernel launches.
        both_BK2 = both_BK2.to("cpu", torch.float64)
        values_BK, mask_BK = both_BK2[:, :, 0], both_BK2[:, :, 1] > 0.5
        signal_B = rows_with_signal(values_BK, mask_BK, min_spread_nats=self._min_spread_nats)
        if not signal_B.any():
            return self.temperature
        found = math.log(
            temperature_for_entropy(values_BK[signal_B], mask_BK[signal_B], self._share, self._bounds)
        )
        decay = self._decay if self._num_updates else 0.0
        self._log_temperature = decay * self._log_temperature + (1 - decay) * found
        self._num_updates += 1
        return self.temperature

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps; restoring it is exact."""
        return {"log_temperature": self._log_temperature, "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: The state is of another kind of temperature.
        """
        if set(state) != {"log_temperature", "num_updates"} or not math.isfinite(state["log_temperature"]):
            raise CheckpointError(
                f"the teacher state {state} is not of an entropy-controlled temperature: resume with the "
                f"configuration of the run"
            )
        self._log_temperature, self._num_updates = state["log_temperature"], int(state["num_updates"])


def temperature_for_entropy(
    values_BK: Tensor, passage_mask_BK: Tensor | None, share: float, bounds: tuple[float, float]
) -> float:
    """Return tau such that the mean of H(softmax(values / tau)) / ln K is the share.

    Entropy grows with temperature, so bisection over ln tau finds it to about 1e-17 of the interval.

    Args:
        values_BK: Questions with signal only; without it the entropy does not depend on tau.
        passage_mask_BK: False where a slot is padding.
        share: In (0, 1).
        bounds: Smallest and largest tau; the nearer end is returned when the share is out of reach, as when
            several passages tie for the best.
    """
    low, high = (math.log(bound) for bound in bounds)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        log_p_BK = passage_log_probs(values_BK, temperature=math.exp(middle), passage_mask_BK=passage_mask_BK)
        if float(entropy_share(log_p_BK, passage_mask_BK).mean()) < share:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
