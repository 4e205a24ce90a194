"""Rollouts of the search loop, generated in batches with transformers: the environment of GRPO.

The loop is `agents.search_loop`, as served. Token ids go in and come out: a turn's ids are appended as
sampled, and what a search shows is encoded once. Sampling is seeded by the step, so a resumed run samples
what the first would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from agents.choice import choose
from agents.search_loop import Rollout, Search, SearchLimits
from retrieval.errors import RetrievalError
from retrieval.types import DEFAULT_TENANT, SearchMode, SearchRequest, SearchResult
from serving.tokenizer import ModelTokenizer
from training.errors import ConfigError
from training.preference.rewards import PARTS, RewardWeights, reward_parts
from training.preference.trl_names import unwrap_model_for_generation
from training.types import TrainingQuestion

SearchBatch = Callable[[Sequence[SearchRequest]], Sequence[SearchResult]]
"""Answers a batch of searches in this process; `Retriever.search` behind a blocking portal, for example."""

NUM_TRIES = 2
"""Times a batch of searches is tried before its rollouts are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """How rollouts are made; serve a model with the limits it was trained within."""

    limits: SearchLimits
    """Of the loop."""
    max_turn_tokens: int = 48
    """Most tokens of a turn, 1 or more."""
    max_completion_tokens: int = 1_024
    """Room after the prompt for turns and what they are shown, at least max_turn_tokens."""
    num_candidates: int = 8
    """Hits asked of retrieval, as `agents.num_candidates`, at least limits.k_passages."""
    mode: SearchMode = "hybrid"
    """Which legs of retrieval answer."""
    library: str | None = None
    """Only this library; None for all of the tenant's."""
    tenant: str = DEFAULT_TENANT
    """Whose passages are searched."""

    def __post_init__(self) -> None:
        """Refuse what leaves no room; raises ConfigError."""
        if not 1 <= self.max_turn_tokens <= self.max_completion_tokens:
            raise ConfigError(
                f"max_turn_tokens={self.max_turn_tokens} must be from 1 to {self.max_completion_tokens} "
                "(max_completion_tokens)"
            )
        if self.num_candidates < self.limits.k_passages:
            raise ConfigError(
                f"num_candidates={self.num_candidates} must be at least {self.limits.k_passages} (k_passages)"
            )


@dataclass(frozen=True, slots=True)
class Scored:
    """A rollout and what it earned."""

    rollout: Rollout
    """Ended, or dropped on the way."""
    parts: tuple[float, ...] | None
    """Each of `PARTS`; None for a rollout that was dropped since its search failed."""
    reward: float
    """Weighted sum; 0 for a dropped one, which nothing learns from."""


class SearchRollouts:
    """Makes and scores rollouts of questions; callable as TRL's `rollout_func`."""

    def __init__(
        self,
        questions: Sequence[TrainingQuestion],
        search: SearchBatch,
        tokenizer: ModelTokenizer,
        settings: RolloutSettings,
        weights: RewardWeights,
        *,
        seed: int,
        temperature: float,
        pad_id: int,
    ) -> None:
        """Remember the parts.

        Args:
            questions: What may be asked, by id.
            search: The retriever.
            tokenizer: The policy's, as served.
            settings: How rollouts are made.
            weights: How they are scored.
            seed: Of sampling.
            temperature: Of sampling; 0 takes the most likely token.
            pad_id: Id that fills prompts up.
        """
        self._questions: Mapping[str, TrainingQuestion] = {one.question_id: one for one in questions}
        self._search = search
        self._tokenizer = tokenizer
        self._settings = settings
        self._weights = weights
        self._seed = seed
        self._temperature = temperature
        self._pad_id = pad_id
        self.last: list[Scored] = []
        """The rollouts of the newest batch, in order."""

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """Return what TRL's GRPOTrainer asks of a `rollout_func`.

        Args:
            prompts: Question ids; each stands `num_generations` times in a row.
            trainer: The trainer.

        Returns:
            prompt_ids, completion_ids, env_mask (1 for the model's tokens) and a column for each reward part.
        """
        key = f"{trainer.state.global_step}:{trainer.accelerator.process_index}"
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
            self.last = self.collect(model, prompts, key)
        return {
            "prompt_ids": [one.rollout.prompt_ids for one in self.last],
            "completion_ids": [one.rollout.completion_ids for one in self.last],
            "logprobs": None,  # pyright: ignore[reportReturnType]
            "env_mask": [one.rollout.mask for one in self.last],
            **{
                f"{name}_part": [None if one.parts is None else one.parts[at] for one in self.last]
                for at, name in enumerate(PARTS)
            },
        }

    def longest_prompt(self) -> int:
        """Return the tokens of the longest question's first prompt."""
        settings = self._settings
        return max(
            len(
                Rollout(one.text, settings.limits, self._tokenizer, settings.max_completion_tokens).prompt_ids
            )
            for one in self._questions.values()
        )

    def collect(self, model: PreTrainedModel, question_ids: Sequence[str], key: str) -> list[Scored]:
        """Return one scored rollout for each question id, in order.

        Args:
            model: The policy.
            question_ids: Which questions; one may stand several times.
            key: Names the batch: the same key, seed and weights sample the same tokens.
        """
        settings = self._settings
        rollouts = [
            Rollout(
                self._questions[one].text, settings.limits, self._tokenizer, settings.max_completion_tokens
            )
            for one in question_ids
        ]
        dropped: set[int] = set()
        digest = hashlib.sha256(f"{self._seed}:{key}".encode()).digest()
        devices = [] if model.device.type == "cpu" else [model.device]
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            while active := [
                at for at, one in enumerate(rollouts) if one.ending is None and at not in dropped
            ]:
                turns = self._turns(model, [rollouts[at] for at in active])
                calls = [(at, rollouts[at].take(turn)) for at, turn in zip(active, turns, strict=True)]
                dropped |= self._answer_searches(rollouts, [(at, one) for at, one in calls if one])
        return [
            self._scored(rollout, self._questions[question_id], is_dropped=at in dropped)
            for at, (rollout, question_id) in enumerate(zip(rollouts, question_ids, strict=True))
        ]

    def _scored(self, rollout: Rollout, question: TrainingQuestion, *, is_dropped: bool) -> Scored:
        if is_dropped:
            return Scored(rollout, None, 0.0)
        parts = reward_parts(rollout, question, self._weights.match)
        weighted = zip(parts, self._weights.weights, strict=True)
        return Scored(rollout, parts, sum(part * weight for part, weight in weighted))

    def _turns(self, model: PreTrainedModel, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """Return the next turn of each rollout, its end token included where it has one."""
        contexts = [rollout.context_ids for rollout in rollouts]
        longest = max(map(len, contexts))
        ids_BT = torch.tensor(
            [[self._pad_id] * (longest - len(one)) + one for one in contexts], device=model.device
        )
        attention_BT = torch.tensor(
            [[0] * (longest - len(one)) + [1] * len(one) for one in contexts], device=model.device
        )
        limits = [min(self._settings.max_turn_tokens, rollout.room) for rollout in rollouts]
        is_greedy = self._temperature == 0
        generate: Any = model.generate  # typed as an overload of everything it can return
        written_BT = generate(
            input_ids=ids_BT,
            attention_mask=attention_BT,
            max_new_tokens=max(limits),
            do_sample=not is_greedy,
            temperature=None if is_greedy else self._temperature,
            top_k=None if is_greedy else 0,
            top_p=None if is_greedy else 1.0,
            eos_token_id=list(self._tokenizer.end_ids),
            pad_token_id=self._pad_id,
        )
        turns = [row[longest:] for row in written_BT.tolist()]
        return [self._until_end(turn)[:limit] for turn, limit in zip(turns, limits, strict=True)]

    def _until_end(self, turn: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(turn) if token in self._tokenizer.end_ids), len(turn))
        return turn[: end + 1]

    def _answer_searches(self, rollouts: Sequence[Rollout], asked: Sequence[tuple[int, Search]]) -> set[int]:
        """Show each search what it found; return the rollouts whose search failed."""
        if not asked:
            return set()
        seen = [rollouts[at].loop.shown_ids for at, _ in asked]
        requests = [
            SearchRequest(
                query=call.query,
                k=self._settings.num_candidates + len(shown),
                mode=self._settings.mode,
                library=self._settings.library,
                tenant=self._settings.tenant,
            )
            for (_, call), shown in zip(asked, seen, strict=True)
        ]
        results = self._found(requests)
        failed: set[int] = set()
        for (at, _), shown, result in zip(asked, seen, results, strict=True):
            if result is None:
                failed.add(at)
            else:
                _, passages = choose(result, self._settings.limits.k_passages, shown)
                rollouts[at].show(passages)
        return failed

    def _found(self, requests: Sequence[SearchRequest]) -> list[SearchResult | None]:
        """Return each request's result, None where it failed or a shard was missing in every try.

        "Nothing was found" is a fact the policy learns from; a failure is not, so it is never shown as that.
        """
        for _ in range(NUM_TRIES):
            try:
                results = self._search(requests)
            except RetrievalError:
                continue
            if not any(result.partial for result in results):
                return list(results)
        return [None] * len(requests)


def mean_reward(scored: Sequence[Scored]) -> float:
    """Return the mean over rollouts that were not dropped, 0 where all were."""
    kept = [one.reward for one in scored if one.parts is not None]
    return sum(kept) / len(kept) if kept else 0.0
