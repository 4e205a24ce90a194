"""What training retriever and reader together is worth against training the reader alone, on the same data.

Run: `python -m benchmarks.training_joint [--quick] [--data DIR] [--seeds N] [--arms ARM ...]`

Arms, each from the same weights, over the same questions in the same order, judged on questions about
held-out countries (`profile_questions`; the facts of all countries are searched): `frozen` trains the reader
alone; `query_side` the query tower too; `contrastive` both towers on labels alone; `blocking` and `async`
everything, with the index refreshed at once or a few steps late. The tower is the packaged embedder cut to
its first layers, the reader `graft-mini`: small enough for two cores, so what is read off is the difference
between arms, not a level anyone would ship.

A figure is the mean over seeds and questions of an arm minus `frozen`. Every seed draws the questions it is
judged by, the same for all arms; the interval is a paired bootstrap over their places, the differences at a
place averaged over seeds first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.profile_questions import read_profiles
from benchmarks.report import Report
from benchmarks.training_models import READER, cut_encoder
from training.data import split_by_group
from training.index.schedule import RefreshConfig
from training.joint.config import (
    CheckpointConfig,
    EncoderConfig,
    EvaluationConfig,
    JointConfig,
    LossConfig,
    OptimConfig,
    ReaderConfig,
    SearchConfig,
)
from training.joint.evaluate import EvaluationReport, Judged
from training.joint.parallel import torchrun_ranks
from training.joint.run import run_joint
from training.types import TrainingSet

ARMS = ("frozen", "contrastive", "query_side", "blocking", "async")
NUM_COUNTRIES = 100
_BOOTSTRAPS = 10_000


def arm_config(arm: str, encoder: Path, seed: int, steps: int, max_questions: int) -> JointConfig:
    """Return an arm's configuration; arms differ in what is trained and how fresh the index is, alone."""
    interval = max(steps // 4, 2)
    modes = {
        "frozen": RefreshConfig(mode="frozen"),
        "query_side": RefreshConfig(mode="query_side"),
        "blocking": RefreshConfig(mode="blocking", interval_steps=interval, delay_steps=0),
    }
    late = RefreshConfig(mode="async", interval_steps=interval, delay_steps=interval // 2)
    loss = LossConfig(retriever="pdist", contrastive_weight=1.0, null_passage=False)
    if arm in ("frozen", "contrastive"):
        loss = replace(loss, retriever=None, contrastive_weight=0.0 if arm == "frozen" else 1.0)
    return JointConfig(
        seed=seed,
        encoder=EncoderConfig(model=str(encoder), max_passage_tokens=128, max_query_tokens=32),
        reader=ReaderConfig(model=str(READER), max_passage_tokens=160, max_answer_tokens=16),
        loss=loss,
        search=SearchConfig(k=4, rerank=1),
        refresh=modes.get(arm, late),
        optim=OptimConfig(
            steps=steps, batch_questions=8, encoder_lr=1e-4, reader_lr=2e-4, warmup_steps=steps // 10
        ),
        checkpoint=CheckpointConfig(every_steps=steps),
        evaluation=EvaluationConfig(max_questions=max_questions, k=3, max_new_tokens=12),
    )


def profiles(data: Path) -> tuple[TrainingSet, TrainingSet]:
    """Return what is trained on and what is held out, by country."""
    return split_by_group(read_profiles(data / "factbook", NUM_COUNTRIES), dev_share=0.3, seed=0)


def interval(differences_Q: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean of paired differences."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(differences_Q), (_BOOTSTRAPS, len(differences_Q)))
    low, high = np.quantile(differences_Q[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def found(one: Judged) -> float:
    """Return 1 where a right passage is among the first five."""
    return float(one.rank is not None and one.rank < 5)


def exact(one: Judged) -> float:
    """Return 1 where the answer is exactly an accepted one."""
    return one.exact_match or 0.0


def add_figures(report: Report, reports: dict[str, list[EvaluationReport]], arms: Sequence[str]) -> None:
    """Record levels of every arm and its differences to `frozen`."""
    for arm in arms:
        for metric, score in (("recall@5", found), ("em", exact)):
            values_SQ = np.array([[score(one) for one in run.judged] for run in reports[arm]])
            runs_S = [round(float(value), 4) for value in values_SQ.mean(axis=1)]
            report.add(arm, metric, round(float(values_SQ.mean()), 4), "share", runs=runs_S, better="higher")
            if arm == "frozen" or "frozen" not in reports:
                continue
            frozen_SQ = np.array([[score(one) for one in run.judged] for run in reports["frozen"]])
            differences_Q = (values_SQ - frozen_SQ).mean(axis=0)
            low, high = interval(differences_Q)
            report.add(
                arm,
                f"{metric}_delta",
                round(float(differences_Q.mean()), 4),
                "difference",
                lo=round(low, 4),
                hi=round(high, 4),
                quartiles=[round(low, 4), round(high, 4)],
                better="higher",
                target=0.0,
            )


def main() -> None:
    """Train every arm with every seed and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with factbook")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps; keeps nothing")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm")
    parser.add_argument("--steps", type=int, default=50, help="optimizer steps of a run")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    seeds, steps, max_questions = (1, 6, 40) if options.quick else (options.seeds, options.steps, 200)
    report = Report("training_joint", quick=options.quick)
    data, held_out = profiles(options.data)
    report.add("data", "questions", len(data.questions), "questions", passages=len(data.passages))
    report.add("data", "held_out", len(held_out.questions), "questions", passages=len(held_out.passages))
    reports: dict[str, list[EvaluationReport]] = {arm: [] for arm in options.arms}
    with tempfile.TemporaryDirectory() as home, torchrun_ranks() as ranks:
        encoder = cut_encoder(Path(home) / "encoder", 2)
        for seed in range(seeds):
            for arm in options.arms:
                config = arm_config(arm, encoder, seed, steps, max_questions)
                folder = Path(home) / f"{arm}-{seed}"
                result = run_joint(config, data, folder, held_out=held_out, ranks=ranks)
                if result.after is not None:
                    reports[arm].append(result.after)
    add_figures(report, reports, options.arms)
    report.save()


if __name__ == "__main__":
    main()
