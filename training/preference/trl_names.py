"""The one place that imports TRL; importing it loads torch and transformers.

TRL 1.16 imports all of vLLM into the training process where it is installed, and warns that it supports
0.22 to 0.31 ("TRL currently supports vLLM versions"; ours is 0.32). No job here generates through its vLLM
client, so TRL is told that there is none while its trainers are imported: the warning goes with its cause,
and the import takes half the time (8.0 against 15.5 s of processor time, 0.6 against 0.8 GB).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# The package is lazy and does not show this module as an attribute.
_availability: Any = import_module("trl.import_utils")
_is_vllm_available = _availability.is_vllm_available
_availability.is_vllm_available = lambda min_version=None: False
try:
    from trl.models.utils import unwrap_model_for_generation
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
finally:
    _availability.is_vllm_available = _is_vllm_available

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "GRPOConfig",
    "GRPOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "unwrap_model_for_generation",
]
