"""The price of a stale index, and whether its bound holds.

Run: `python -m benchmarks.training_staleness [--quick] [--data DIR] [--seeds N] [--parts bound price]`

`bound_threads`, `bound_ray`: 10,000 short steps with slow, failing and dying encoders; a judge reads the
age of what was searched from the vectors themselves. `s_max_N`, `s_max_N_rerank`: the joint run of
`training_joint` (blocking refresh, so that nothing but the age differs) with an index that is at most N
steps old, in the index's own order and with four times as many candidates put in order by the fresh
encoder; `never` is never refreshed. Recall and EM are those of the trained towers on held-out questions
with a fresh index.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.report import Report
from benchmarks.staleness_campaign import CampaignConfig, run_campaign
from benchmarks.training_joint import arm_config, exact, found, profiles
from benchmarks.training_models import cut_encoder
from training.index.schedule import RefreshConfig
from training.joint.evaluate import EvaluationReport
from training.joint.parallel import torchrun_ranks
from training.joint.run import run_joint

INTERVALS = {"s_max_1": 2, "s_max_9": 10, "s_max_29": 30, "s_max_99": 100, "never": 1_000_000}
"""Steps between refreshes; the bound is one less, since blocking has no delay."""
PARTS = ("bound", "price")


def measure_bound(report: Report, num_steps: int) -> None:
    """Record what the campaign saw, with encoders in threads and in Ray actors."""
    import ray

    for pool in ("threads", "ray"):
        if pool == "ray":
            ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        with tempfile.TemporaryDirectory() as home:
            death_share = 0.02 if pool == "threads" else 0.01
            config = CampaignConfig(num_steps=num_steps, pool=pool, death_share=death_share)
            seen = run_campaign(Path(home), config)
        arm = f"bound_{pool}"
        report.add(arm, "violations", seen.violations, "searches", target=0, steps=seen.steps)
        report.add(arm, "off_plan", seen.off_plan, "searches", target=0)
        report.add(arm, "oldest", seen.max_staleness, "steps", target=seen.bound)
        report.add(
            arm, "stall_share", round(seen.stall_share, 4), "share of time", target=0.02, better="lower"
        )
        report.add(arm, "blocks_again", seen.blocks_again, "blocks", refreshes=seen.refreshes, better="lower")
        if pool == "ray":
            ray.shutdown()


def measure_price(
    report: Report, data_folder: Path, names: Sequence[str], seeds: int, steps: int, max_questions: int
) -> None:
    """Train with indexes of different age, with and without rerank, and judge the held-out questions."""
    data, held_out = profiles(data_folder)
    with tempfile.TemporaryDirectory() as home, torchrun_ranks() as ranks:
        encoder = cut_encoder(Path(home) / "encoder", 2)
        runs: dict[str, list[EvaluationReport]] = {}
        for seed in range(seeds):
            for name in names:
                for rerank in (1, 4):
                    arm = name if rerank == 1 else f"{name}_rerank"
                    config = arm_config("blocking", encoder, seed, steps, max_questions)
                    config = replace(
                        config,
                        refresh=RefreshConfig(mode="blocking", interval_steps=INTERVALS[name], delay_steps=0),
                        search=replace(config.search, rerank=rerank),
                        # Labels would teach the retriever whatever the index finds.
                        loss=replace(config.loss, contrastive_weight=0.0),
                    )
                    folder = Path(home) / f"{arm}-{seed}"
                    result = run_joint(config, data, folder, held_out=held_out, ranks=ranks)
                    if result.after is not None:
                        runs.setdefault(arm, []).append(result.after)
    for arm, reports in runs.items():
        for metric, score in (("recall@5", found), ("em", exact)):
            values_S = [float(np.mean([score(one) for one in run.judged])) for run in reports]
            report.add(arm, metric, round(float(np.mean(values_S)), 4), "share", runs=values_S)


def main() -> None:
    """Measure the bound, then the price, and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with factbook")
    parser.add_argument("--quick", action="store_true", help="few steps, two arms; keeps nothing")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of a run")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="these only; others are kept"
    )
    options = parser.parse_args()
    seeds, steps, max_questions = (1, 6, 40) if options.quick else (options.seeds, options.steps, 300)
    names = ("s_max_1", "never") if options.quick else tuple(INTERVALS)
    partial = set(options.parts) != set(PARTS)
    report = Report("training_staleness", quick=options.quick, partial=partial)
    if "bound" in options.parts:
        measure_bound(report, 500 if options.quick else 10_000)
    if "price" in options.parts:
        measure_price(report, options.data, names, seeds, steps, max_questions)
    report.save()


if __name__ == "__main__":
    main()
