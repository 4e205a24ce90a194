"""What our loop costs beside plain libraries, and what its savings save.

Run: `python -m benchmarks.training_speed [--quick] [--rounds N]`

Arms, interleaved A B B A, each a ratio of medians of step times, from the end of one step to the end of the
next:
`contrastive_vs_st`: our contrastive step over `SentenceTransformerTrainer`'s, the same model, texts and batch
(samples/s, ours over theirs).
`sft_vs_trl`: our supervised job over TRL's `SFTTrainer` that prepares the same texts itself (tokens/s).
`shared_vs_two_pass`: a joint step whose teacher is the training forward, over one with a second pass (speed).
`gradcache`: the contrastive step on batches of 64 through GradCache, 16 rows at a time, over the plain one
(slowdown).
`refresh`: seconds the trainer loses to an index refreshed beside it over those of a blocking one; trainer and
encoder (a Ray actor) have one core each, in both arms.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.report import Report
from benchmarks.training_models import READER, cut_encoder
from benchmarks.training_resume_victim import facts
from serving.prompt import PromptPassage
from training.index.ray_clients import ActorResources, RayEncoderPool
from training.index.refresher import versions_folder
from training.index.schedule import RefreshConfig
from training.index.sharded_search import local_shards
from training.joint.config import (
    CheckpointConfig,
    EncoderConfig,
    JointConfig,
    LossConfig,
    OptimConfig,
    ReaderConfig,
    SearchConfig,
)
from training.joint.parallel import torchrun_ranks
from training.joint.run import (
    BLOCK_ROWS,
    IndexParts,
    corpus_texts,
    index_folder,
    load_encoder,
    run_joint,
)
from training.joint.trainer import Watch
from training.preference.examples import CitedAnswer
from training.preference.policy import load_policy
from training.preference.settings import PolicySettings, TrainSettings
from training.preference.sft import SftConfig
from training.preference.sft import run as run_sft
from training.preference.trl_names import SFTConfig, SFTTrainer
from training.types import TrainingSet

ARMS = {
    "contrastive_vs_st": (1.0, "higher"),
    "sft_vs_trl": (0.95, "higher"),
    "gradcache": (2.0, "lower"),
    "shared_vs_two_pass": (1.25, "higher"),
    "refresh": (0.05, "lower"),
}
"""Targets, and which side of them is good."""


def base_config(encoder: Path, steps: int) -> JointConfig:
    """Return a joint run of both towers on a fixed index."""
    return JointConfig(
        encoder=EncoderConfig(model=str(encoder), max_passage_tokens=64),
        reader=ReaderConfig(model=str(READER), max_passage_tokens=64),
        loss=LossConfig(null_passage=False),
        search=SearchConfig(k=4, rerank=1),
        refresh=RefreshConfig(mode="blocking", interval_steps=10**6, delay_steps=0),
        optim=OptimConfig(steps=steps, batch_questions=16, encoder_lr=1e-5, reader_lr=1e-5, warmup_steps=1),
        checkpoint=CheckpointConfig(every_steps=10**6),
    )


def contrastive_config(encoder: Path, steps: int, batch_questions: int, cache_rows: int = 0) -> JointConfig:
    """Return a run of the retriever alone on labels."""
    config = base_config(encoder, steps)
    loss = LossConfig(
        retriever=None, contrastive_weight=1.0, contrastive_negatives=0, contrastive_cache_rows=cache_rows
    )
    return replace(
        config,
        reader=ReaderConfig(),
        loss=loss,
        optim=replace(config.optim, batch_questions=batch_questions, warmup_steps=1),
    )


def seconds(
    config: JointConfig, data: TrainingSet, index_in: Callable[[Path], IndexParts] | None = None
) -> list[float]:
    """Return what each step of a run took, from end to end, the first two left out.

    Args:
        config: The run.
        data: What it trains on.
        index_in: Returns where the index lives for a run in a folder; None for the trainer's process.
    """
    ends_s: list[float] = []
    watch = Watch(on_step=lambda *_: ends_s.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_joint(config, data, folder, watch=watch, index=index_in and index_in(folder))
    return np.diff(ends_s)[1:].tolist()


class StepClock(TrainerCallback):
    """Notes when a transformers trainer's steps end: what is between two ends is a step with its data."""

    def __init__(self) -> None:
        """Start without a step."""
        self.ends_s: list[float] = []
        self.tokens: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        """Note the end."""
        self.ends_s.append(time.perf_counter())

    def on_log(self, *_: object, logs: dict[str, Any] | None = None, **__: object) -> None:
        """Note how many tokens TRL has counted so far, which it tells after every step."""
        if logs is not None and "num_tokens" in logs:
            self.tokens.append(logs["num_tokens"])

    def seconds_per_token(self) -> list[float]:
        """Return what a token took in each step, the first two steps left out."""
        return (np.diff(self.ends_s)[1:] / np.diff(self.tokens)[1:]).tolist()

    def seconds(self) -> list[float]:
        """Return what each step took, the first two left out."""
        return np.diff(self.ends_s)[1:].tolist()


def st_seconds(encoder: Path, data: TrainingSet, steps: int) -> list[float]:
    """Return what each step of sentence-transformers' own trainer took, the first two left out."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(str(encoder), device="cpu")
    model.max_seq_length = 64
    rows = Dataset.from_dict(
        {
            "anchor": [question.text for question in data.questions],
            "positive": [passage.full_text for passage in data.passages],
        }
    )
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=32,
                learning_rate=1e-5,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                use_cpu=True,
            ),
            train_dataset=rows,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=[clock],
        ).train()
    return clock.seconds()


def cited_answers(data: TrainingSet) -> list[CitedAnswer]:
    """Return every question with four passages, the right one first, and a cited answer."""
    passages = data.passages
    return [
        CitedAnswer(
            question.text,
            tuple(
                PromptPassage(f"lakes/{n % len(passages)}", "Lakes", passages[n % len(passages)].text)
                for n in range(row, row + 4)
            ),
            f"It is {question.answers[0]} feet deep [1].",
        )
        for row, question in enumerate(data.questions)
    ]


def sft_settings(steps: int) -> TrainSettings:
    """Return the settings of both supervised runs."""
    return TrainSettings(steps=steps, batch_size=16, lr=1e-5)


def sft_seconds(examples: Sequence[CitedAnswer], steps: int) -> list[float]:
    """Return what a token of each step of our supervised job took, the first two left out."""
    clock = StepClock()
    settings = SftConfig(policy=PolicySettings(folder=READER), train=sft_settings(steps))
    with tempfile.TemporaryDirectory() as folder:
        run_sft(settings, examples, Path(folder) / "job", callbacks=[clock])
    return clock.seconds_per_token()


def trl_seconds(examples: Sequence[CitedAnswer], steps: int) -> list[float]:
    """Return what a token of each step of TRL's trainer took on the same texts, prepared by TRL itself."""
    from datasets import Dataset

    policy = load_policy(PolicySettings(folder=READER))
    tokenizer = policy.hf_tokenizer
    rows = Dataset.from_list(
        [
            {
                "prompt": tokenizer.decode(example.prompt_ids(policy.tokenizer)),
                "completion": f" {example.answer}",
            }
            for example in examples
        ]
    )
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(
            model=policy.model,
            args=SFTConfig(**sft_settings(steps).arguments(Path(folder), PolicySettings(folder=READER))),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[clock],
        ).train()
    return clock.seconds_per_token()


def ratio(rounds: int, one: Callable[[], list[float]], two: Callable[[], list[float]]) -> list[float]:
    """Return median(two) / median(one) of each round, measured one, two, two, one."""
    found = []
    for _ in range(rounds):
        first, second, third, fourth = one(), two(), two(), one()
        found.append(float(np.median(second + third) / np.median(first + fourth)))
    return found


def refresh_shares(encoder: Path, rounds: int, steps: int) -> list[float]:
    """Return what an index refreshed beside the trainer costs it, over a blocking one, of each round."""
    import ray

    data = facts()
    fixed = base_config(encoder, steps)
    blocking = replace(fixed, refresh=RefreshConfig(mode="blocking", interval_steps=6, delay_steps=0))
    beside = replace(fixed, refresh=RefreshConfig(mode="async", interval_steps=6, delay_steps=6))

    def total_s(config: JointConfig) -> float:
        texts = corpus_texts(data)
        pool = RayEncoderPool(texts, load_encoder(config, "cpu"), BLOCK_ROWS, 1, ActorResources(num_cpus=1))

        def index_in(folder: Path) -> IndexParts:
            shards = local_shards(versions_folder(index_folder(folder)), len(texts), BLOCK_ROWS)
            return IndexParts(tuple(shards), pool)

        with closing(pool):
            return sum(seconds(config, data, index_in))

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    torch.set_num_threads(1)
    try:
        shares = []
        for _ in range(rounds):
            first, waited, shadowed, last = map(total_s, (fixed, blocking, beside, fixed))
            plain = (first + last) / 2
            shares.append(max(shadowed - plain, 0.0) / max(waited - plain, 1e-9))
        return shares
    finally:
        ray.shutdown()


def main() -> None:
    """Measure every arm and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="unused: all is made here")
    parser.add_argument("--quick", action="store_true", help="one round of few steps; keeps nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="these only; others are kept")
    options = parser.parse_args()
    rounds, steps = (1, 5) if options.quick else (options.rounds, 14)
    report = Report("training_speed", quick=options.quick, partial=set(options.arms) != set(ARMS))
    data = facts()
    with tempfile.TemporaryDirectory() as home, torchrun_ranks():
        torch.set_num_threads(2)
        encoder = cut_encoder(Path(home) / "encoder", 2)
        shared = base_config(encoder, steps)
        two_pass = replace(shared, loss=replace(shared.loss, two_pass=True))
        plain = contrastive_config(encoder, steps, 64)
        cached = contrastive_config(encoder, steps, 64, cache_rows=16)
        ours = contrastive_config(encoder, steps, 32)
        examples = cited_answers(data)
        # Ours over theirs in speed is theirs over ours in seconds.
        measures: dict[str, Callable[[], list[float]]] = {
            "contrastive_vs_st": lambda: ratio(
                rounds, lambda: seconds(ours, data), lambda: st_seconds(encoder, data, steps)
            ),
            "sft_vs_trl": lambda: ratio(
                rounds, lambda: sft_seconds(examples, steps), lambda: trl_seconds(examples, steps)
            ),
            "gradcache": lambda: ratio(rounds, lambda: seconds(plain, data), lambda: seconds(cached, data)),
            "shared_vs_two_pass": lambda: ratio(
                rounds, lambda: seconds(shared, data), lambda: seconds(two_pass, data)
            ),
            "refresh": lambda: refresh_shares(encoder, rounds, 8 if options.quick else 26),
        }
        for arm in options.arms:
            values = measures[arm]()
            target, better = ARMS[arm]
            report.add(
                arm, "ratio", round(float(np.median(values)), 3), "ratio",
                runs=[round(value, 3) for value in values], target=target, better=better,
            )  # fmt: skip
    report.save()


if __name__ == "__main__":
    main()
