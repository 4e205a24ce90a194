"""Stops a reinforcement run that collapses, and keeps the policy that was best before.

Runs of search agents fall apart after some hundred steps while the reward still looks fine (Search-R1 issues
88, 89, 186; the re-examination of 2026): entropy goes to nothing, KL runs away, turns stop being calls.
"""

from __future__ import annotations

import math
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSettings:
    """When a run is stopped; each bound must be broken in `patience` records in a row."""

    min_entropy: float = 0.005
    """Mean entropy of the policy's tokens in nats below which it has collapsed, 0 or more."""
    max_kl: float = 1.0
    """Mean KL to the reference above which it has run away, above 0; looked at where beta is above 0."""
    min_format: float = 0.05
    """Share of well-formed rollouts below which the format is lost once it was twice that, in [0, 1]."""
    patience: int = 5
    """Records in a row, 1 or more."""
    max_idle: int = 50
    """Records in a row in which no group differs in reward after which the run ends, 1 or more: the task is
    solved or out of reach, or the policy has become one deterministic answer of no measured entropy."""
    window: int = 8
    """Records whose mean reward is compared to find the best policy, 1 or more."""

    def __post_init__(self) -> None:
        """Refuse bounds that cannot be; raises ConfigError."""
        if min(self.patience, self.max_idle, self.window) < 1:
            raise ConfigError(
                f"alarms.patience={self.patience}, max_idle={self.max_idle} and window={self.window} "
                "must be 1 or more"
            )
        if self.min_entropy < 0 or not self.max_kl > 0 or not 0 <= self.min_format <= 1:
            raise ConfigError(f"alarms: a bound is out of its range in {self}")


class CollapseAlarm(TrainerCallback):
    """Watches the records of a run; `reason` says why it stopped it."""

    def __init__(self, settings: AlarmSettings, best: Path) -> None:
        """Remember the bounds.

        Args:
            settings: The bounds.
            best: Folder the best policy is kept in.
        """
        self.reason = ""
        """Why the run was stopped; empty while it was not."""
        self.best_step = 0
        """Step of the policy in `best`; 0 while there is none."""
        self._settings = settings
        self._best = best
        self._rewards: deque[float] = deque(maxlen=settings.window)
        self._best_reward = -math.inf
        self._was_formed = False
        self._broken: dict[str, int] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: Any = None,
        **_: Any,
    ) -> None:
        """Look at a record."""
        if not logs or "reward" not in logs:
            return
        signs = self._signs(logs)
        for name, what in signs.items():
            limit = self._settings.max_idle if name == "idle" else self._settings.patience
            self._broken[name] = self._broken.get(name, 0) + 1 if what else 0
            if self._broken[name] == limit and not self.reason:
                self.reason = f"{what} for {limit} records up to step {state.global_step}"
                control.should_training_stop = True
        if not any(what for name, what in signs.items() if name != "idle"):
            self._keep_best(float(logs["reward"]), state.global_step, model)

    def _signs(self, logs: dict[str, float]) -> dict[str, str]:
        """Return for each quantity what is wrong with it, empty where nothing is."""
        settings = self._settings
        entropy, kl = logs.get("entropy"), logs.get("kl")
        formed = logs.get("rewards/format/mean")
        signs = {
            name: f"{name} is {value}"
            for name, value in (("entropy", entropy), ("kl", kl), ("reward", logs["reward"]))
            if value is not None and not math.isfinite(value)
        }
        if entropy is not None and entropy < settings.min_entropy:
            signs["entropy"] = f"entropy {entropy:.4f} is below {settings.min_entropy}"
        if kl is not None and kl > settings.max_kl:
            signs["kl"] = f"kl {kl:.3f} is above {settings.max_kl}"
        if formed is not None:
            self._was_formed |= formed > 2 * settings.min_format
            if self._was_formed and formed < settings.min_format:
                signs["format"] = (
                    f"the share of well-formed rollouts {formed:.3f} is below {settings.min_format}"
                )
        if logs.get("groups/kept") == 0:
            signs["idle"] = "no group of rollouts differed in reward"
        return {name: signs.get(name, "") for name in ("entropy", "kl", "reward", "format", "idle")}

    def _keep_best(self, reward: float, step: int, model: Any) -> None:
        self._rewards.append(reward)
        mean = sum(self._rewards) / len(self._rewards)
        if len(self._rewards) < self._settings.window or mean <= self._best_reward or model is None:
            return
        self._best_reward, self.best_step = mean, step
        fresh = self._best.with_name(f"{self._best.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        model.save_pretrained(fresh)
        shutil.rmtree(self._best, ignore_errors=True)
        fresh.rename(self._best)
        self._rewards.clear()
