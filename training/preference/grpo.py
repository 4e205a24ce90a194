"""GRPO over the served search loop: groups of rollouts of one question, each better or worse than its group.

Advantage A_i = (r_i - mean(r)) / (std(r) + 1e-4) within a group; clipped ratio with a higher upper bound,
normalised over the tokens of the batch (DAPO, https://arxiv.org/abs/2503.14476). Tokens that a search showed
are out of the loss (Search-R1, https://arxiv.org/abs/2503.09516: EM .343 -> .431 from this alone). TRL's
GRPOTrainer computes the loss; the README says what of TRL is relied on and what is done here instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from training.errors import ConfigError, DataError
from training.preference.alarms import AlarmSettings, CollapseAlarm
from training.preference.group_order import GroupOrder
from training.preference.job import JobResult, copy_tokenizer, prepare_folder, run_trainer
from training.preference.policy import load_policy, max_model_len, peft_config
from training.preference.rewards import PARTS, RewardWeights
from training.preference.search_rollouts import RolloutSettings, Scored, SearchBatch, SearchRollouts
from training.preference.sequences import check_coverage
from training.preference.settings import PolicySettings, TrainSettings
from training.preference.trl_names import GRPOConfig, GRPOTrainer
from training.types import TrainingQuestion

SAME_REWARD = 1e-6
"""Rewards of a group closer than this are one: float error is not a difference to learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoConfig:
    """A reinforcement job; `train.batch_size` counts rollouts."""

    policy: PolicySettings
    """The policy it starts from, which is also the reference."""
    train: TrainSettings
    """How it optimises; 1e-6 and below is what runs of billions of weights survive."""
    rollout: RolloutSettings
    """How rollouts are made."""
    reward: RewardWeights = field(default_factory=RewardWeights)
    """How they are scored."""
    alarms: AlarmSettings = field(default_factory=AlarmSettings)
    """When the run is stopped."""
    group_size: int = 8
    """Rollouts of one question, 2 or more; divides `train.batch_size`."""
    temperature: float = 1.0
    """Of sampling, above 0."""
    beta: float = 0.0
    """Weight of the KL to the reference; 0 keeps no reference."""
    iterations: int = 1
    """Optimiser passes over a batch of rollouts, 1 or more; divides `train.save_every`."""
    clip_low: float = 0.2
    """The ratio is cut below 1 - clip_low, in (0, 1)."""
    clip_high: float = 0.28
    """The ratio is cut above 1 + clip_high, above 0."""
    mask_observations: bool = True
    """Whether what a search showed is out of the loss; False is for the ablation alone."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run; raises ConfigError."""
        if self.group_size < 2 or self.train.batch_size % self.group_size:
            raise ConfigError(
                f"group_size={self.group_size} must be 2 or more and divide train.batch_size="
                f"{self.train.batch_size}, so that no group is split"
            )
        if self.iterations < 1 or self.train.save_every % self.iterations:
            raise ConfigError(
                f"train.save_every={self.train.save_every} must be a multiple of iterations="
                f"{self.iterations}: a run resumed between them would make new rollouts from other weights"
            )
        if not self.temperature > 0 or self.beta < 0 or not 0 < self.clip_low < 1 or not self.clip_high > 0:
            raise ConfigError(
                f"temperature={self.temperature}, beta={self.beta}, clip_low={self.clip_low} or "
                f"clip_high={self.clip_high} is out of its range"
            )


class _SearchTrainer(GRPOTrainer):
    """TRL's trainer; groups that teach nothing are dropped and the mask of every batch is checked."""

    rollouts: SearchRollouts
    group_size: int
    mask_observations: bool
    order: GroupOrder

    def _get_train_sampler(self, dataset: Any = None) -> GroupOrder:
        return self.order

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        scored = self.rollouts.last
        kept = informative(scored, self.group_size)
        keep_B1 = torch.tensor(kept, device=output["tool_mask"].device).unsqueeze(1)
        attention_BT = output["completion_mask"]
        written_BT = output["tool_mask"] * attention_BT
        check_coverage(written_BT.bool(), attention_BT, [sum(one.rollout.mask) for one in scored])
        mask_BT = written_BT if self.mask_observations else attention_BT
        output["tool_mask"] = mask_BT * keep_B1
        output["advantages"] = output["advantages"] * keep_B1.squeeze(1)
        # The loss is a mean over tokens: those of dropped groups would only make every step smaller.
        num_tokens: Any = self.accelerator.gather(output["tool_mask"].sum())
        output["num_items_in_batch"] = num_tokens.sum()
        # TRL shuffles the batch next, from torch's global state, which a resumed run has one draw behind.
        torch.manual_seed(self.args.seed + self.state.global_step)
        metrics = self._metrics["train"]
        metrics["mask/coverage"].append(int(written_BT.sum()) / int(attention_BT.sum()))
        metrics["groups/kept"].append(sum(kept) / len(kept))
        metrics["rollouts/searches"].append(sum(one.rollout.num_searches for one in scored) / len(scored))
        metrics["rollouts/turns"].append(sum(one.rollout.num_turns for one in scored) / len(scored))
        metrics["rollouts/dropped"].append(sum(one.parts is None for one in scored) / len(scored))
        metrics["rollouts/no_room"].append(
            sum(one.rollout.ending == "tokens" for one in scored) / len(scored)
        )
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        loss = super()._compute_loss(model, inputs)
        if not int((inputs["tool_mask"] * inputs["completion_mask"]).sum()):
            # TRL records 0 for a mean over no token, which would look like a collapse.
            for name in ("entropy", "kl"):
                if self._metrics["train"][name]:
                    self._metrics["train"][name].pop()
        return loss


def informative(scored: Sequence[Scored], group_size: int) -> list[bool]:
    """Return for each rollout whether it teaches: its search did not fail, its group's rewards differ.

    TRL leaves groups of equal rewards in: their advantage is zero up to float error divided by 1e-4, they
    count in the token mean, and a KL term still pulls on them.

    Args:
        scored: Rollouts, groups in a row.
        group_size: Rollouts of one question.
    """
    kept: list[bool] = []
    for start in range(0, len(scored), group_size):
        group = scored[start : start + group_size]
        rewards = [one.reward for one in group if one.parts is not None]
        differs = len(rewards) > 1 and max(rewards) - min(rewards) > SAME_REWARD
        kept += [differs and one.parts is not None for one in group]
    return kept


def _part(name: str) -> Callable[..., list[float | None]]:
    """Return the reward function that hands TRL a part the rollouts came with."""

    def part(*, completions: list[Any], **columns: Any) -> list[float | None]:
        return columns[f"{name}_part"]

    part.__name__ = name
    return part


def run(
    config: GrpoConfig,
    questions: Sequence[TrainingQuestion],
    search: SearchBatch,
    out: Path,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> JobResult:
    """Train on questions and return where the last policy is, or the best where an alarm stopped the run.

    Args:
        config: Settings.
        questions: With accepted answers, or known to be unanswerable; ids unique.
        search: The retriever, in this process.
        out: The job's folder, new unless `resume`.
        resume: Whether to go on from the newest finished checkpoint; the same weights follow on the same
            machine. An alarm forgets what it saw before, and the best policy is that since.
        callbacks: For progress and reports.

    Raises:
        ConfigError: The model cannot be loaded, or its window is too short.
        DataError: There is no question, two share an id, or one has no accepted answer.
        CheckpointError: The folder holds another run.
        NumericsError: A loss or gradient is not finite.
    """
    _check_questions(questions)
    policy = load_policy(config.policy)
    pad_id = int(policy.hf_tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    rollouts = SearchRollouts(
        questions,
        search,
        policy.tokenizer,
        config.rollout,
        config.reward,
        seed=config.train.seed,
        temperature=config.temperature,
        pad_id=pad_id,
    )
    longest = rollouts.longest_prompt() + config.rollout.max_completion_tokens
    if (window := max_model_len(config.policy.folder)) < longest:
        raise ConfigError(
            f"the longest prompt and max_completion_tokens={config.rollout.max_completion_tokens:,} need "
            f"{longest:,} tokens, the model's window has {window:,}; lower rollout.max_completion_tokens"
        )
    checkpoint = prepare_folder(out, config, resume=resume)
    alarm = CollapseAlarm(config.alarms, out / "best")
    with warnings.catch_warnings():
        # `rollout_func` is the one way into TRL that leaves token ids alone; the README names what we use.
        warnings.filterwarnings("ignore", message="You are using 'rollout_func'", category=UserWarning)
        trainer = _SearchTrainer(
            model=policy.model,
            reward_funcs=[_part(name) for name in PARTS],
            args=GRPOConfig(
                **config.train.arguments(out, config.policy),
                num_generations=config.group_size,
                steps_per_generation=config.train.accumulation,
                num_iterations=config.iterations,
                max_completion_length=config.rollout.max_completion_tokens,
                temperature=config.temperature,
                beta=config.beta,
                epsilon=config.clip_low,
                epsilon_high=config.clip_high,
                loss_type="dapo",
                scale_rewards="group",
                reward_weights=config.reward.weights,
                disable_dropout=True,
                remove_unused_columns=False,
            ),
            train_dataset=Dataset.from_dict({"prompt": [one.question_id for one in questions]}),
            processing_class=policy.hf_tokenizer,
            rollout_func=rollouts,
            peft_config=peft_config(config.policy.lora, "CAUSAL_LM"),
        )
    trainer.rollouts, trainer.group_size = rollouts, config.group_size
    trainer.mask_observations, trainer.order = config.mask_observations, _order(config, len(questions))
    result = run_trainer(trainer, out, config.policy.folder, checkpoint, (alarm, *callbacks))
    if not alarm.reason:
        return result
    if alarm.best_step:
        copy_tokenizer(config.policy.folder, out / "best")
    kept = out / "best" if alarm.best_step else config.policy.folder
    return replace(result, model=kept, stopped=alarm.reason)


def _order(config: GrpoConfig, num_questions: int) -> GroupOrder:
    train = config.train
    return GroupOrder(
        num_questions,
        questions_per_batch=train.batch_size * train.accumulation // config.group_size,
        group_size=config.group_size,
        repeats=train.accumulation * config.iterations,
        num_batches=-(-train.steps // config.iterations),
        seed=train.seed,
    )


def _check_questions(questions: Sequence[TrainingQuestion]) -> None:
    if not questions:
        raise DataError("there is no question to train on; give some with accepted answers")
    if len({one.question_id for one in questions}) < len(questions):
        raise DataError("two questions share an id; rollouts could not be scored")
    for one in questions:
        if not one.answers and not one.is_unanswerable:
            raise DataError(
                f"question {one.question_id!r} has no accepted answer and is not known to have none"
            )
