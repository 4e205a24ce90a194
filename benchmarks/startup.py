"""How long until a first answer, what the platform weighs, and how fast `graft --help` is.

Run: `python -m benchmarks.startup [--data DIR] [--quick] [--model MODEL]`. A cold start has an empty home:
it ingests the sample library. A warm start is the second one from the same home. Both end with Ctrl-C,
after which no process may be left.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.launched import GRAFT, LaunchedPlatform
from benchmarks.report import Report

QUESTION = "How many tokens does vLLM put in one cache block by default, according to its paper?"
REPETITIONS = 3
NUM_HELPS = 7
TARGETS = {"cold": 90.0, "warm": 45.0, "platform": 5.5, "cli": 0.5}


def first_answer(home: Path, model: str) -> tuple[float, dict[str, float], dict[str, int]]:
    """Return seconds from the start of `graft up` to its first answer, its stages, and its memory."""
    with LaunchedPlatform(home, model) as platform:
        platform.wait_listening()
        platform.ask(QUESTION)
        seconds = time.monotonic() - platform.began_s
        return seconds, platform.stages_s(), platform.pss_bytes()


def help_s() -> float:
    """Return seconds `graft --help` takes."""
    began_s = time.perf_counter()
    subprocess.run([GRAFT, "--help"], check=True, capture_output=True)
    return time.perf_counter() - began_s


def measure(report: Report, model: str, repetitions: int) -> None:
    """Run all arms and add their figures."""
    helps = sorted(help_s() for _ in range(NUM_HELPS))
    report.add(
        "cli",
        "help_s",
        round(statistics.median(helps), 3),
        "s",
        target=TARGETS["cli"],
        runs=[round(value, 3) for value in helps],
    )
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    stages: dict[str, dict[str, float]] = {}
    weights: list[float] = []
    parts: dict[str, float] = {}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory(prefix="graft-startup-") as folder:
            for arm in seconds:
                took_s, stages[arm], sizes = first_answer(Path(folder) / "home", model)
                seconds[arm].append(took_s)
                weights.append(sum(sizes.values()) / 2**30)
                parts = {name: round(size / 2**30, 2) for name, size in sizes.items()}
    for arm, values in seconds.items():
        report.add(
            arm,
            "first_answer_s",
            round(statistics.median(values), 1),
            "s",
            target=TARGETS[arm],
            runs=[round(value, 1) for value in values],
            stages_s=stages[arm],
            model=Path(model).name,
        )
    report.add(
        "platform",
        "pss_gb",
        round(statistics.median(weights), 2),
        "GiB",
        target=TARGETS["platform"],
        runs=[round(value, 2) for value in weights],
        parts_gb=parts,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of public data sets; this benchmark needs none")
    parser.add_argument("--quick", action="store_true", help="one repetition; the result is not kept")
    parser.add_argument("--model", default="graft-mini", help="the generator: bundled name, folder, or id")
    options = parser.parse_args()
    report = Report("startup", quick=options.quick)
    measure(report, options.model, 1 if options.quick else REPETITIONS)
    report.save()


if __name__ == "__main__":
    main()
