"""How fast passages become searchable: Graft, the bare encoder, LlamaIndex, Haystack; one model, same chunks.

Run: `python -m benchmarks.ingest [--data DIR] [--quick] [--peers-python PATH]`. Passages of about 126 tokens
from old books, cut beforehand. Arms run in processes of their own, in turn, a few hundred passages at a time,
so that what else the machine does falls on all of them; figures are medians over the rounds, with their
spread. `graft` ends when the passages are durable and a search finds them; `encode_only` makes vectors and
keeps nothing else. The peers run with the interpreter of an environment that holds the `peers` extra; one
that is absent is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.book_passages import load
from benchmarks.ingest_child import ARMS, PACKAGES
from benchmarks.report import Report
from retrieval.model_files import model_folder

REPOSITORY = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
}
REFERENCE = "encode_only"
TARGETS = {("graft", "chunks_per_s"): 85.0, ("graft", "cosine"): 0.99}
_WARM = 64


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int
    """Turns of every arm."""
    passages: int
    """Passages of a turn."""


FULL = Size(rounds=8, passages=300)
QUICK = Size(rounds=3, passages=96)


class Child:
    """An arm in its process."""

    def __init__(self, arm: str, python: str, texts: Path) -> None:
        self.arm = arm
        self.rates: list[float] = []
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.ingest_child", arm, str(texts), str(model_folder("packaged"))],
            cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.backend = self._answer()["backend"]

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"the arm {self.arm} ended: {self._errors.read()[-1500:]}")
        return json.loads(line)


def absent(arm: str, python: str) -> list[str]:
    """Return the modules that an arm needs and an interpreter does not find."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError: print(name)\n"
    )
    command = [python, "-c", code, *PACKAGES.get(arm, ())]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split()


def measure(report: Report, children: list[Child], size: Size, folder: Path) -> None:
    """Give every arm its turn in every round and report the medians."""
    for child in children:
        child.ask(do="ingest", start=0, stop=_WARM)
    for number in range(size.rounds):
        start = _WARM + number * size.passages
        for child in children[number % len(children) :] + children[: number % len(children)]:
            seconds = child.ask(do="ingest", start=start, stop=start + size.passages)["seconds"]
            child.rates.append(size.passages / seconds)
    vectors = {}
    for child in children:
        path = folder / f"{child.arm}.npy"
        child.ask(do="vectors", start=_WARM, stop=_WARM + size.rounds * size.passages, path=str(path))
        vectors[child.arm] = np.load(path)
    for child in children:
        rates = sorted(child.rates)
        report.add(
            child.arm,
            "chunks_per_s",
            round(statistics.median(rates), 1),
            "chunks/s",
            lowest=round(rates[0], 1),
            highest=round(rates[-1], 1),
            rounds=size.rounds,
            passages=size.passages,
            backend=child.backend,
            target=TARGETS.get((child.arm, "chunks_per_s")),
        )
        if child.arm != REFERENCE:
            cosines_N = np.sum(vectors[child.arm] * vectors[REFERENCE], axis=1)
            report.add(
                child.arm,
                "cosine",
                round(float(cosines_N.mean()), 4),
                "cosine",
                lowest=round(float(cosines_N.min()), 4),
                target=TARGETS.get((child.arm, "cosine")),
            )
    graft = next(child for child in children if child.arm == "graft")
    for child in children:
        if child is not graft:
            ratios = sorted(ours / theirs for ours, theirs in zip(graft.rates, child.rates, strict=True))
            report.add(
                "graft",
                f"speedup_over_{child.arm}",
                round(statistics.median(ratios), 2),
                "ratio",
                lowest=round(ratios[0], 2),
                highest=round(ratios[-1], 2),
            )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the books")
    parser.add_argument("--quick", action="store_true", help="fewer passages; the result is not kept")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has the peers")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    books = load(options.data, _WARM + size.rounds * size.passages)
    if books is None:
        parser.exit(1, f"the books are not in {options.data}; give their folder with --data\n")
    report = Report("ingest", quick=options.quick)
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        texts = Path(home) / "texts.json"
        texts.write_text(json.dumps(books.texts), encoding="utf-8")
        children = []
        for arm in ARMS:
            python = options.peers_python if arm in PACKAGES else sys.executable
            if missing := absent(arm, python):
                report.add(arm, "absent", 1, "runs", reason=f"{', '.join(missing)} not installed")
            else:
                children.append(stack.enter_context(Child(arm, python, texts)))
        measure(report, children, size, Path(home))
    report.save()


if __name__ == "__main__":
    main()
