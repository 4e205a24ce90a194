"""Prints a benchmark's figures as JSON lines and keeps its last full result."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, object]:
    """Return the machine a figure was measured on: processor, cores, memory, GPU."""
    cpu = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            cpu = next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu
            )
    except OSError:
        pass
    try:
        gpu = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = "none"
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit the figures belong to, with `+` when the tree had changes."""
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.stdout.strip() + ("+" if changes.stdout.strip() else "")


class Report:
    """Collects the rows of one benchmark run."""

    def __init__(self, benchmark: str, *, quick: bool = False, partial: bool = False) -> None:
        """Begin a report.

        Args:
            benchmark: Its name.
            quick: Whether nothing is kept.
            partial: Whether arms that are not measured keep their last rows, with the commit they are of.
        """
        self.benchmark = benchmark
        self.quick = quick
        self.partial = partial
        self.rows: list[dict[str, object]] = []

    def add(self, arm: str, metric: str, value: float, unit: str, **detail: object) -> None:
        """Record one figure and print it as a JSON line."""
        row = {
            "benchmark": self.benchmark,
            "arm": arm,
            "metric": metric,
            "value": value,
            "unit": unit,
            **detail,
        }
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def save(self) -> Path | None:
        """Write `results/NAME.json` and return its path; a quick run is not kept and returns None."""
        if self.quick:
            return None
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.benchmark}.json"
        kept = self._kept(path) if self.partial else []
        record = {
            "benchmark": self.benchmark,
            "date": datetime.now(UTC).date().isoformat(),
            "commit": commit(),
            "machine": machine(),
            "rows": [*kept, *self.rows],
        }
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return path

    def _kept(self, path: Path) -> list[dict[str, object]]:
        if not path.exists():
            return []
        last = json.loads(path.read_text(encoding="utf-8"))
        if last["machine"] != machine():
            raise SystemExit(f"{path.name} is of another machine; measure all arms")
        measured = {row["arm"] for row in self.rows}
        return [
            {"commit": last["commit"], "date": last["date"], **row}
            for row in last["rows"]
            if row["arm"] not in measured
        ]
