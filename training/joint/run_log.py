"""The log of a run: what repeats exactly, apart from times; both as TensorBoard curves too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

METRICS = "metrics.jsonl"
"""A line a step of everything that is a function of configuration, data and seed: equal after any crash."""
EVALUATIONS = "evaluations.jsonl"
"""A line an evaluation, `step` being the steps done before it."""
TIMINGS = "timings.jsonl"
"""A line a step of what depends on the machine."""


class RunLog:
    """Writes both logs; a resumed run continues them as if it had never stopped."""

    def __init__(self, folder: Path, *, resume_step: int, tensorboard: bool = True) -> None:
        """Open the logs.

        Args:
            folder: Of the run; made if missing.
            resume_step: Lines of this step and later were written after the checkpoint and are taken out.
            tensorboard: Whether curves are written too.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: _cut(folder / name, resume_step) for name in (METRICS, TIMINGS)}
        # The evaluation after as many steps as the checkpoint has was written with it.
        self._files[EVALUATIONS] = _cut(folder / EVALUATIONS, resume_step + 1 if resume_step else 0)
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step)

    def step(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """Write a step's numbers."""
        self._write(METRICS, step, metrics)
        self._write(TIMINGS, step, timings)

    def evaluation(self, step: int, means: dict[str, float]) -> None:
        """Write the numbers of an evaluation after `step` steps."""
        self._write(EVALUATIONS, step, {f"held_out/{name}": value for name, value in means.items()})

    def _write(self, name: str, step: int, values: dict[str, float]) -> None:
        self._files[name].write(json.dumps({"step": step, **values}) + "\n")
        self._files[name].flush()
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        if self._writer is not None:
            self._writer.close()


def _cut(path: Path, resume_step: int) -> TextIO:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] < resume_step:
                kept.append(line)
        except ValueError:  # The line a crash cut off.
            break
    partial = path.with_name(path.name + ".tmp")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return path.open("a", encoding="utf-8")
