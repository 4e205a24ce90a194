"""Graft's vector path against embedded vector stores on the same rows: speed, filters, disk, deletes, kills.

Run: `python -m benchmarks.vector_peers [--data DIR] [--quick] [--peers-python PATH] [--arms ARM ...]`. Every
store runs in a process of its own (`benchmarks/peer_child.py`), the peers with the interpreter of an
environment that holds the `peers` extra; those that are absent are named. Rows are seeded clusters
(`benchmarks/clustered.py`) of 384 numbers with a text of thirty words and a number to filter by; Graft
indexes the words too. A store that does not take all rows in its time is measured with what it has (`rows`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.clustered import Clustered, exact_neighbours, recall
from benchmarks.peer_stores import PACKAGES, STORES, bucket_of
from benchmarks.report import Report

REPOSITORY = Path(__file__).resolve().parents[1]
DIM = 384
K = 10
_KILL_BATCH = 50
SELECTIVITIES = {"50": 500, "10": 100, "1": 10, "0.1": 1}
"""By percent kept, the bucket below which rows are kept, of a thousand."""
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "ANONYMIZED_TELEMETRY": "False"}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rows: int
    """Rows stored."""
    queries: int
    """Queries of each kind, fewer where their time is up."""
    ingest_s: float
    """Most time to ingest."""
    query_s: float
    """Most time of each kind of query."""
    kills: int
    """Times each store is killed while it ingests."""
    kill_rows: int
    """Rows it is on the way to when killed."""


FULL = Size(100_000, 200, 150.0, 6.0, 10, 1_000)
QUICK = Size(4_000, 20, 15.0, 0.5, 1, 300)


class Died(Exception):
    """A store's process ended by itself."""


class Child:
    """A store in its process."""

    def __init__(self, arm: str, python: str, folder: Path, vectors: Path) -> None:
        command = [python, "-m", "benchmarks.peer_child", arm, str(folder), str(vectors)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.opened_s: float = self.answer()["opened_s"]

    def tell(self, **command: Any) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            Died: The process ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise Died(self._errors.read()[-1500:])
        return json.loads(line)

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and return its last answer; acknowledgements before it are passed over."""
        self.tell(**command)
        while "acknowledged" in (answer := self.answer()):
            pass
        return answer

    def kill(self) -> int:
        """Kill the process and return how many rows it had acknowledged, as far as they were not read yet."""
        self._process.kill()
        rest, _ = self._process.communicate()
        return max((json.loads(line).get("acknowledged", 0) for line in rest.splitlines()), default=0)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None and kind is None:
            self.ask(do="close")
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def disk_mib(folder: Path) -> float:
    """Return the MiB of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


@dataclass(frozen=True, slots=True)
class Inputs:
    """What every store is given, on disk."""

    vectors: Path
    """float32[rows, DIM]."""
    queries: Path
    """float32[queries, DIM]."""

    @classmethod
    def made(cls, folder: Path, size: Size) -> Inputs:
        """Write the vectors and queries."""
        data = Clustered.made(size.rows, DIM)
        vectors_ND = data.fill(np.empty((size.rows, DIM), dtype=np.float32), seed=1)
        queries_QD = data.queries(size.queries, seed=2)
        np.save(folder / "vectors.npy", vectors_ND)
        np.save(folder / "queries.npy", queries_QD)
        return cls(folder / "vectors.npy", folder / "queries.npy")

    def wanted(self, stored: int, below: int | None) -> np.ndarray:
        """Return the ten nearest of the first rows to each query that a filter keeps, or all it keeps."""
        rows = np.array([row for row in range(stored) if below is None or bucket_of(row) < below])
        vectors_ND = np.load(self.vectors, mmap_mode="r")[rows]
        return rows[exact_neighbours(vectors_ND, np.load(self.queries), min(K, len(rows)))]


def measure_store(report: Report, arm: str, python: str, inputs: Inputs, size: Size, folder: Path) -> None:
    """Ingest, finish, reopen, search, filter and delete."""
    with Child(arm, python, folder, inputs.vectors) as child:
        done = child.ask(do="ingest", stop=size.rows, batch=1000, budget_s=size.ingest_s)
        finished = child.ask(do="finish")["seconds"]
    stored = done["stored"]
    report.add(arm, "ingest", round(stored / done["seconds"], 1), "rows/s", batch=1000)
    report.add(arm, "rows", stored, "rows")
    report.add(arm, "index_build", round(finished, 2), "s")
    report.add(arm, "disk", round(disk_mib(folder) * 1000 / stored, 2), "MiB/1000 rows")
    began_s = time.perf_counter()
    with Child(arm, python, folder, inputs.vectors) as child:
        child.ask(do="search", queries=str(inputs.queries), k=K, below=None, budget_s=0)
        report.add(
            arm, "start_to_answer", round(time.perf_counter() - began_s, 2), "s", open_s=child.opened_s
        )
        kinds: dict[str, int | None] = {"all": None, **SELECTIVITIES}
        for kind, below in kinds.items():
            answer = child.ask(
                do="search", queries=str(inputs.queries), k=K, below=below, budget_s=size.query_s
            )
            times, found = answer["times_ms"], answer["found"]
            asked = len(times)
            name = "" if below is None else f"filter_{kind}_"
            report.add(arm, f"{name}p50", round(statistics.median(times), 2), "ms", queries=asked)
            report.add(arm, f"{name}p95", round(float(np.percentile(times, 95)), 2), "ms", queries=asked)
            padded = np.array([row + [-1] * (K - len(row)) for row in found])
            share = recall(padded, inputs.wanted(stored, below)[:asked])
            report.add(arm, f"{name}recall@10", round(share, 4), "share", queries=asked)
        rows = random.Random(3).sample(range(stored), 100)
        gone = child.ask(do="delete", rows=rows)
        report.add(arm, "delete_100", round(gone["ms"], 2), "ms")
        report.add(arm, "deleted_returned", gone["leaked"], "rows")


def kills(report: Report, arm: str, python: str, inputs: Inputs, size: Size, folders: Iterator[Path]) -> None:
    """Kill the store at random moments of its ingestion; count what it had acknowledged and no longer has."""
    generator = random.Random(4)
    counts = {"acknowledged_lost": 0, "wrong": 0, "torn_batches": 0, "unfindable": 0, "not_reopened": 0}
    reopened_s: list[float] = []
    for _ in range(size.kills):
        folder = next(folders)
        child = Child(arm, python, folder, inputs.vectors)
        child.tell(do="ingest", stop=size.kill_rows, batch=_KILL_BATCH, budget_s=size.ingest_s)
        wait_for = generator.randrange(_KILL_BATCH, size.kill_rows - 2 * _KILL_BATCH, _KILL_BATCH)
        acknowledged = 0
        while acknowledged < wait_for:
            acknowledged = child.answer()["acknowledged"]
        time.sleep(generator.random() * 0.02)
        acknowledged = max(acknowledged, child.kill())
        began_s = time.perf_counter()
        try:
            with Child(arm, python, folder, inputs.vectors) as again:
                reopened_s.append(time.perf_counter() - began_s)
                state = again.ask(do="verify", stop=size.kill_rows, acknowledged=acknowledged, probes=20)
        except Died as error:
            print(f"{arm}: does not open after kill -9: {error}", file=sys.stderr)
            counts["not_reopened"] += 1
            continue
        present = set(state["present"])
        counts["acknowledged_lost"] += acknowledged - sum(row < acknowledged for row in present)
        counts["wrong"] += state["wrong"]
        counts["unfindable"] += state["unfindable"]
        beyond = sum(acknowledged <= row < acknowledged + _KILL_BATCH for row in present)
        counts["torn_batches"] += 0 < beyond < _KILL_BATCH
    for metric, count in counts.items():
        unit = {"torn_batches": "batches", "not_reopened": "kills"}.get(metric, "rows")
        report.add(arm, f"kill9_{metric}", count, unit)
    if reopened_s:
        report.add(arm, "kill9_reopen", round(statistics.median(reopened_s), 2), "s", kills=size.kills)


def present(python: str, arms: list[str]) -> list[str]:
    """Return the arms whose package an interpreter finds."""
    code = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    names = sorted({PACKAGES[arm] for arm in arms})
    found = subprocess.run(
        [python, "-c", code, *names], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return [arm for arm in arms if PACKAGES[arm] in found.stdout.split()]


def table(report: Report, arms: list[str]) -> str:
    """Return all figures as a Markdown table, a row a metric, a column a store."""
    by_metric: dict[str, dict[str, Any]] = {}
    for row in report.rows:
        if row["arm"] in arms:
            by_metric.setdefault(f"{row['metric']} ({row['unit']})", {})[str(row["arm"])] = row["value"]
    lines = [f"| | {' | '.join(arms)} |", f"|---|{'---|' * len(arms)}"]
    lines += [
        f"| {metric} | {' | '.join(str(values.get(arm, '')) for arm in arms)} |"
        for metric, values in by_metric.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of public data sets; this benchmark needs none")
    parser.add_argument("--quick", action="store_true", help="fewer rows and kills; the result is not kept")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--arms", nargs="+", choices=list(STORES), default=list(STORES), help="only these")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    report = Report("vector_peers", quick=options.quick or set(options.arms) != set(STORES))
    ours = [arm for arm in options.arms if PACKAGES[arm] == "retrieval"]
    here = ours + present(options.peers_python, [arm for arm in options.arms if arm not in ours])
    absent = [arm for arm in options.arms if arm not in here]
    report.add("absent", "stores", len(absent), "stores", names=absent)
    with tempfile.TemporaryDirectory(prefix="graft-peers-") as home:
        inputs = Inputs.made(Path(home), size)
        for arm in here:
            python = sys.executable if arm in ours else options.peers_python
            folders = (Path(home) / f"{arm}-{number}" for number in itertools.count())
            try:
                measure_store(report, arm, python, inputs, size, next(folders))
                kills(report, arm, python, inputs, size, folders)
            except Died as error:
                report.add(arm, "failed", 1, "runs", error=str(error)[-300:])
    report.save()
    print(table(report, here), file=sys.stderr)


if __name__ == "__main__":
    main()
