"""Jobs on TRL: supervised fine-tuning, preferences, a reward model, and GRPO over the served search loop.

Names are loaded when first used, so that importing the package loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.preference.dpo import DpoConfig
    from training.preference.examples import CitedAnswer, SearchTrace, TraceTurn
    from training.preference.grpo import GrpoConfig
    from training.preference.job import JobResult
    from training.preference.pairs import Outcome, PreferencePair, feedback_outcomes, preference_pairs
    from training.preference.raft import RaftConfig, raft_examples
    from training.preference.reward import RewardModel, RewardModelConfig
    from training.preference.rewards import RewardWeights
    from training.preference.search_rollouts import RolloutSettings
    from training.preference.settings import PolicySettings, TrainSettings
    from training.preference.sft import SftConfig

_HOMES = {
    "CitedAnswer": "examples",
    "DpoConfig": "dpo",
    "GrpoConfig": "grpo",
    "JobResult": "job",
    "Outcome": "pairs",
    "PolicySettings": "settings",
    "PreferencePair": "pairs",
    "RaftConfig": "raft",
    "RewardModel": "reward",
    "RewardModelConfig": "reward",
    "RewardWeights": "rewards",
    "RolloutSettings": "search_rollouts",
    "SearchTrace": "examples",
    "SftConfig": "sft",
    "TraceTurn": "examples",
    "TrainSettings": "settings",
    "feedback_outcomes": "pairs",
    "preference_pairs": "pairs",
    "raft_examples": "raft",
}
"""The file that owns each public name."""

__all__ = [
    "CitedAnswer",
    "DpoConfig",
    "GrpoConfig",
    "JobResult",
    "Outcome",
    "PolicySettings",
    "PreferencePair",
    "RaftConfig",
    "RewardModel",
    "RewardModelConfig",
    "RewardWeights",
    "RolloutSettings",
    "SearchTrace",
    "SftConfig",
    "TraceTurn",
    "TrainSettings",
    "feedback_outcomes",
    "preference_pairs",
    "raft_examples",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'training.preference' has no attribute {name!r}")
    return getattr(import_module(f"training.preference.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
