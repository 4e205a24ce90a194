"""Trains graft-mini from nothing: `python -m training.pretrain --config FILE --data DIR --out DIR`.

Plain PyTorch on one GPU or on the CPU. A run stopped at any point resumes to bit-identical weights on the
same machine, because batches depend on the step number alone. With `--minutes` the stages share the wall
clock: each stage's steps are fixed from the measured speed when it starts, and written to `plan.json`; the
same steps in the configuration then repeat the run without a clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from serving.prompt import CONTROL_TOKENS
from serving.tokenizer import ModelTokenizer
from training.errors import ConfigError
from training.pretraining.checkpoint import Progress, export_model, load_checkpoint, save_checkpoint
from training.pretraining.config import PretrainConfig
from training.pretraining.induction_init import install_induction
from training.pretraining.mixture import Library, Mixture
from training.pretraining.model import MiniModel, branch_mask
from training.pretraining.optimizer import Optimizers, schedule_factor
from training.pretraining.packing import NO_TARGET, Batch, control_id
from training.pretraining.tokenizer import save_tokenizer, train_tokenizer, vocab_size_of

CALIBRATION_STEPS = 16
"""Steps of a stage before a wall-clock limit fixes its length; the decay starts no earlier either."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is carried out; none of it changes the weights except `minutes`, whose effect is recorded."""

    out: Path
    """Folder of the checkpoint, the log, the plan and the exported model."""
    minutes: float | None = None
    """Wall-clock limit, or None to take every stage's `steps`."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between log lines."""
    loader_workers: int = 0
    """Processes that prepare batches; 0 prepares them in the training process."""
    compile: bool = False
    """Compile the model: always worth it on a GPU, and on a CPU for runs above ten minutes."""
    stop_after: int | None = None
    """Leave after this many steps in all, as if killed just after a checkpoint."""


class _StageBatches(Dataset):
    """Batches of one stage by step number."""

    def __init__(self, mixture: Mixture, stage: int) -> None:
        self.mixture = mixture
        self.stage = stage

    def __getitem__(self, step: int) -> Batch:
        return self.mixture.batch(self.stage, step)


@dataclass(slots=True)
class StepResult:
    """What one step measured."""

    answer_loss: float | None
    """Mean loss per answer token; None without answers."""
    text_loss: float | None
    """Mean loss per token of running text; None without any."""
    exact: dict[str, tuple[int, int]]
    """Task -> (answers whose every token was the likeliest, answers)."""


def batch_loss(
    model: MiniModel, batch: Batch, text_weight: float, device: torch.device
) -> tuple[Tensor, StepResult]:
    """Return the loss of a batch with its graph, and what was measured on the way."""
    token_ids, positions, documents, branches, targets = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (batch.token_ids, batch.positions, batch.documents, batch.branches, batch.targets)
    )
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    with precision:
        hidden = model(token_ids, positions, branch_mask(documents, branches))
        wanted = targets != NO_TARGET
        logits = model.logits(hidden[wanted])
    losses = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
    is_text = torch.tensor([kind == "text" for kind in batch.kinds], device=device)[documents[wanted]]
    parts = {False: losses[~is_text], True: losses[is_text]}
    means = {text: part.mean() for text, part in parts.items() if part.numel()}
    loss = means.get(False, losses.new_zeros(())) + text_weight * means.get(True, losses.new_zeros(()))
    measured = {text: mean.item() for text, mean in means.items()}
    with torch.no_grad():
        right = (logits.argmax(-1) == targets[wanted])[~is_text]
        answer_ids = (documents[wanted] * 1024 + branches[wanted])[~is_text]
        exact = _exact_answers(right, answer_ids, batch.kinds)
    return loss, StepResult(measured.get(False), measured.get(True), exact)


def _exact_answers(right: Tensor, answer_ids: Tensor, kinds: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    distinct, inverse = torch.unique(answer_ids, return_inverse=True)
    wrong = torch.zeros(len(distinct), device=right.device).index_add_(0, inverse, (~right).float())
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for answer_id, errors in zip(distinct.tolist(), wrong.tolist(), strict=True):
        counts[kinds[answer_id // 1024]][0] += errors == 0
        counts[kinds[answer_id // 1024]][1] += 1
    return {kind: (good, total) for kind, (good, total) in counts.items()}


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return round(sum(present) / len(present), 4) if present else None


class Pretrainer:
    """One run: model, optimizers, batches and where it stands."""

    def __init__(self, config: PretrainConfig, options: RunOptions, library: Library) -> None:
        """Prepare the tokenizer (learnt once, kept in `out/model`), the model and the resume point."""
        if options.minutes is not None and config.optimizer.schedule == "cosine":
            raise ConfigError("a cosine schedule needs the number of steps: give steps instead of --minutes")
        self.config, self.options = config, options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        options.out.mkdir(parents=True, exist_ok=True)
        self.model_folder = options.out / "model"
        if not (self.model_folder / "tokenizer.json").is_file():
            texts = library.tokenizer_texts(config.seed, config.tokenizer_chars)
            save_tokenizer(
                train_tokenizer(texts, config.model.vocab_size),
                self.model_folder,
                max_tokens=config.model.max_tokens,
            )
        entries = vocab_size_of(self.model_folder)
        if entries != config.model.vocab_size:
            raise ConfigError(
                f"the tokenizer in {self.model_folder} has {entries} entries, model.vocab_size is "
                f"{config.model.vocab_size}: give the tokenizer more text or lower vocab_size"
            )
        self.encoder = ModelTokenizer(self.model_folder / "tokenizer.json")
        self.mixture = Mixture(library, self.encoder, config.stages, config.seed)
        self.model = MiniModel(config.model, seed=config.seed)
        if config.model.induction_init:
            install_induction(self.model, torch.Generator().manual_seed(config.seed + 1))
        self.model.to(self.device)
        self.optimizers = Optimizers(self.model, config.optimizer)
        self.progress = Progress(plan=self._first_plan())
        self.checkpoint = options.out / "checkpoint.pt"
        if self.checkpoint.is_file():
            self.progress = load_checkpoint(self.checkpoint, config.fingerprint, self.model, self.optimizers)
        if options.compile:
            # One graph for each stage's row shape; on a CPU its minute buys a third more tokens a second.
            self.model.compile(dynamic=False)
        self._clock = time.perf_counter()
        self._step_seconds: deque[float] = deque(maxlen=CALIBRATION_STEPS)
        self._window: list[StepResult] = []

    def _first_plan(self) -> tuple[int | None, ...]:
        if self.options.minutes is None:
            return tuple(stage.steps for stage in self.config.stages)
        return (None,) * len(self.config.stages)

    def run(self) -> Progress:
        """Train to the end (or to `stop_after`), export, and return where the run stands."""
        progress = self.progress
        self._clock = time.perf_counter()
        while progress.stage < len(self.config.stages):
            for batch in self._batches():
                if self._stage_is_done():
                    break
                self._step(batch)
                if progress.step == self.options.stop_after:
                    self._save()
                    return progress
            progress.stage, progress.stage_step = progress.stage + 1, 0
            progress.stage_began_s = progress.elapsed_s
            self._step_seconds.clear()
            self._save()
        self.export()
        return progress

    def _batches(self) -> Iterator[Batch]:
        stage, start = self.progress.stage, self.progress.stage_step
        if self._planned_steps(stage) is not None and start >= (self._planned_steps(stage) or 0):
            return iter(())
        loader = DataLoader(
            _StageBatches(self.mixture, stage),
            batch_size=None,
            sampler=count(start),  # type: ignore[arg-type]  # endless: the plan says when to stop
            num_workers=self.options.loader_workers,
            collate_fn=lambda batch: batch,
        )
        return iter(loader)

    def _planned_steps(self, stage: int) -> int | None:
        """Return the steps of a stage; under a limit they are fixed as soon as the speed is known."""
        progress, minutes = self.progress, self.options.minutes
        planned = progress.plan[stage]
        if planned is not None or minutes is None:
            return planned
        if progress.stage_step < CALIBRATION_STEPS or len(self._step_seconds) < CALIBRATION_STEPS // 2:
            return None
        stages = self.config.stages
        share = stages[stage].share / sum(later.share for later in stages[stage:])
        stage_seconds = share * (minutes * 60 - progress.stage_began_s)
        seconds_left = stage_seconds - (progress.elapsed_s - progress.stage_began_s)
        planned = progress.stage_step + max(1, round(seconds_left / statistics.median(self._step_seconds)))
        progress.plan = (*progress.plan[:stage], planned, *progress.plan[stage + 1 :])
        (self.options.out / "plan.json").write_text(json.dumps({"steps": progress.plan}) + "\n")
        return planned

    def _stage_is_done(self) -> bool:
        planned = self._planned_steps(self.progress.stage)
        return planned is not None and self.progress.stage_step >= planned

    def _factor(self) -> float:
        progress = self.progress
        last = len(self.config.stages) - 1
        known = [steps or 0 for steps in progress.plan]
        decaying = progress.stage == last and progress.plan[last] is not None
        decay_start = sum(known[:last]) + CALIBRATION_STEPS if decaying else progress.step + 1
        return schedule_factor(
            self.config.optimizer, step=progress.step, decay_start=decay_start, total=max(1, sum(known))
        )

    def _step(self, batch: Batch) -> None:
        factor = self._factor()
        loss, result = batch_loss(self.model, batch, self.config.text_weight, self.device)
        loss.backward()
        norm = self.optimizers.step(factor)
        progress = self.progress
        progress.step += 1
        progress.stage_step += 1
        progress.tokens += round(batch.fill * batch.token_ids.size)
        now = time.perf_counter()
        progress.elapsed_s += now - self._clock
        self._step_seconds.append(now - self._clock)
        self._clock = now
        self._write_log(result, factor, norm)
        if progress.step % self.options.checkpoint_every == 0:
            self._save()

    def _write_log(self, result: StepResult, factor: float, norm: float) -> None:
        self._window.append(result)
        progress = self.progress
        if progress.step % self.options.log_every:
            return
        exact: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for item in self._window:
            for kind, (good, total) in item.exact.items():
                exact[kind][0] += good
                exact[kind][1] += total
        line = {
            "step": progress.step,
            "stage": self.config.stages[progress.stage].name,
            "answer_loss": _mean([item.answer_loss for item in self._window]),
            "text_loss": _mean([item.text_loss for item in self._window]),
            "lr_factor": round(factor, 4),
            "grad_norm": round(norm, 3),
            "tokens": progress.tokens,
            "elapsed_s": round(progress.elapsed_s, 1),
            "exact": {kind: round(good / total, 3) for kind, (good, total) in sorted(exact.items())},
        }
        with (self.options.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        self._window.clear()

    def _save(self) -> None:
        save_checkpoint(self.checkpoint, self.config.fingerprint, self.model, self.optimizers, self.progress)

    def export(self) -> None:
        """Write the model's files into `out/model`."""
        ids = {token: control_id(token, self.encoder) for token in CONTROL_TOKENS}
        export_model(self.model, self.model_folder, token_ids=ids)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="TOML file of a PretrainConfig")
    parser.add_argument("--data", type=Path, required=True, help="folder with the training data")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write to; an unfinished run there resumes"
    )
    parser.add_argument("--minutes", type=float, help="wall-clock limit; stages share it")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--compile", action="store_true", help="compile the model (torch.compile)")
    parser.add_argument("--stop-after", type=int, help="leave after this many steps, resumable")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = PretrainConfig.from_toml(arguments.config)
    library = Library.read(arguments.data, max_books=config.max_books)
    options = RunOptions(
        arguments.out,
        arguments.minutes,
        loader_workers=arguments.workers,
        compile=arguments.compile,
        stop_after=arguments.stop_after,
    )
    progress = Pretrainer(config, options, library).run()
    summary = {"step": progress.step, "tokens": progress.tokens, "elapsed_s": round(progress.elapsed_s, 1)}
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
