"""GRPO on the toy lookup task, with and without the mask of observations.

Run: `python -m benchmarks.training_grpo [--quick] [--seeds N]`. Task and policy are those of
`benchmarks.lookup_task`: a real index searched by words in this process, the served search loop as
environment, transformers generation on the CPU. One policy, warmed up once, is where every run starts; a seed
decides facts, split, order and sampling. `mask_on` leaves what a search showed out of the loss, `mask_off`
learns it like the model's own words. `reward_start` and `reward_end` are means over held-out questions,
sampled at the training temperature, 16 rollouts each; a seed rises when its reward ends at least `RISE`
above where it began. `runs` holds the seeds' own figures.

`--quick` runs one seed with fewer steps and keeps nothing. A full run takes about five minutes of one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from anyio.from_thread import start_blocking_portal

from benchmarks.lookup_task import LIMITS, facts, opened, split, warmed_up
from benchmarks.report import Report
from retrieval.types import SearchRequest, SearchResult
from training.preference import grpo
from training.preference.alarms import AlarmSettings
from training.preference.job import JobResult
from training.preference.policy import load_policy
from training.preference.rewards import PARTS, RewardWeights
from training.preference.search_rollouts import RolloutSettings, Scored, SearchRollouts, mean_reward
from training.preference.settings import PolicySettings, TrainSettings
from training.types import TrainingQuestion

ARMS = {"mask_on": True, "mask_off": False}
RISE = 0.1
"""Reward a seed must gain to count; the most there is to earn is 1.4."""
TARGET_RISING = 4
ROLLOUTS_PER_QUESTION = 16
ROLLOUT = RolloutSettings(
    limits=LIMITS, max_turn_tokens=12, max_completion_tokens=160, num_candidates=4, mode="lexical"
)
WEIGHTS = RewardWeights()

Search = Callable[[Sequence[SearchRequest]], Sequence[SearchResult]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    seeds: int
    """Seeds of facts, order and sampling."""
    warm_steps: int
    """Steps of the warm-up."""
    steps: int
    """Steps of reinforcement."""


FULL = Sizes(seeds=5, warm_steps=240, steps=30)
QUICK = Sizes(seeds=1, warm_steps=240, steps=8)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy earns on held-out questions."""

    reward: float
    """Mean."""
    parts: tuple[float, ...]
    """Mean of each part, before weights."""


def judged(policy_folder: Path, questions: Sequence[TrainingQuestion], search: Search, seed: int) -> Outcome:
    """Return what a policy earns, sampled as in training."""
    policy = load_policy(PolicySettings(folder=policy_folder))
    rollouts = SearchRollouts(
        questions,
        search,
        policy.tokenizer,
        ROLLOUT,
        WEIGHTS,
        seed=seed,
        temperature=1.0,
        pad_id=int(policy.hf_tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
    )
    asked = [one.question_id for one in questions for _ in range(ROLLOUTS_PER_QUESTION)]
    scored: list[Scored] = rollouts.collect(policy.model.eval(), asked, "held out")
    means = [statistics.fmean(one.parts[at] for one in scored if one.parts) for at in range(len(PARTS))]
    return Outcome(mean_reward(scored), tuple(means))


def trained(
    start: Path,
    questions: Sequence[TrainingQuestion],
    search: Search,
    out: Path,
    *,
    seed: int,
    steps: int,
    mask: bool,
) -> JobResult:
    """Return a run of one arm."""
    config = grpo.GrpoConfig(
        policy=PolicySettings(folder=start),
        train=TrainSettings(steps=steps, batch_size=64, lr=5e-4, warmup_steps=3, seed=seed),
        rollout=ROLLOUT,
        reward=WEIGHTS,
        alarms=AlarmSettings(patience=10),
        group_size=8,
        mask_observations=mask,
    )
    return grpo.run(config, questions, search, out)


def one_seed(
    seed: int, start: Path, sizes: Sizes, folder: Path
) -> dict[str, tuple[Outcome, Outcome, JobResult]]:
    """Return, for each arm, what the policy earned before and after, and its run."""
    everything = facts(seed)
    questions, held_out = split(everything)
    found: dict[str, tuple[Outcome, Outcome, JobResult]] = {}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(opened(folder / "index", everything)) as retrieval,
    ):

        def search(requests: Sequence[SearchRequest]) -> Sequence[SearchResult]:
            return portal.call(retrieval.search, requests)

        before = judged(start, held_out, search, seed)
        for arm, mask in ARMS.items():
            result = trained(start, questions, search, folder / arm, seed=seed, steps=sizes.steps, mask=mask)
            found[arm] = before, judged(result.model, held_out, search, seed), result
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_grpo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps; not saved")
    parser.add_argument("--seeds", type=int, help="number of seeds; fewer than five are not saved")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    seeds = arguments.seeds or sizes.seeds
    torch.set_num_threads(1)
    report = Report("training_grpo", quick=arguments.quick or seeds < FULL.seeds)
    runs: list[dict[str, tuple[Outcome, Outcome, JobResult]]] = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        start = warmed_up(Path(folder) / "policy", facts(0), 0, sizes.warm_steps)
        print(f"# warmed up in {time.process_time() - began:.0f} s of processor time", flush=True)
        for seed in range(seeds):
            runs.append(one_seed(seed, start, sizes, Path(folder) / f"seed{seed}"))
            print(f"# seed {seed} done after {time.process_time() - began:.0f} s", flush=True)
    for arm in ARMS:
        starts = [run[arm][0].reward for run in runs]
        ends = [run[arm][1].reward for run in runs]
        rising = sum(end >= start + RISE for start, end in zip(starts, ends, strict=True))
        about = {"seeds": seeds, "steps": sizes.steps, "better": "higher"}
        for metric, values in (("reward_start", starts), ("reward_end", ends)):
            shown = [round(value, 3) for value in values]
            report.add(arm, metric, round(statistics.fmean(values), 3), "score", runs=shown, **about)
        target = {"target": TARGET_RISING} if arm == "mask_on" else {}
        report.add(arm, "seeds_rising", rising, "seeds", **about, **target)
        for at, name in enumerate(PARTS):
            mean = statistics.fmean(run[arm][1].parts[at] for run in runs)
            report.add(arm, f"{name}_end", round(mean, 3), "mean", **about)
        coverage = [
            record["mask/coverage"]
            for run in runs
            for record in run[arm][2].history
            if "mask/coverage" in record
        ]
        report.add(arm, "mask_coverage", round(statistics.fmean(coverage), 3), "share", **about)
        stopped = [run[arm][2].stopped for run in runs]
        report.add(arm, "stopped_by_alarm", sum(map(bool, stopped)), "runs", reasons=stopped, better="lower")
    report.save()


if __name__ == "__main__":
    main()
