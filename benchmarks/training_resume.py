"""Joint runs killed by SIGKILL at chosen and random moments: does what comes of them differ in one bit?

Run: `python -m benchmarks.training_resume [--quick] [--kills N] [--seed SEED]`

One run that nobody disturbs is the reference, for one rank and for two. Others are killed (all ranks at once)
while a checkpoint is being written, while an index version is being encoded, or anywhere, and started again
with the same arguments. Compared are the bytes of the last checkpoint's tensors, of the metric log and of the
candidate's weights.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Report
from benchmarks.training_models import cut_encoder
from benchmarks.training_resume_victim import STEPS

_PATIENCE_S = 900


@dataclass(frozen=True, slots=True)
class Kill:
    """When a run is killed."""

    name: str
    """What is hit."""
    line: str
    """Line of the victim's output that is waited for."""
    then_s: float
    """Seconds waited after it."""


def plan(num_kills: int, seed: int) -> list[Kill]:
    """Return the kills: a third while saving, a third while encoding, a third anywhere."""
    rng = random.Random(seed)
    kills = []
    for number in range(num_kills):
        if number % 3 == 0:
            kills.append(
                Kill("mid_save", f"saving {3 * rng.randint(1, STEPS // 3 - 1)}", rng.uniform(0, 0.05))
            )
        elif number % 3 == 1:
            # Version k is snapshotted before step 6k and encoded from then on.
            kills.append(
                Kill("mid_refresh", f"step {6 * rng.randint(1, STEPS // 6 - 1) - 1}", rng.uniform(0.1, 0.5))
            )
        else:
            kills.append(Kill("anywhere", f"step {rng.randint(0, STEPS - 2)}", rng.uniform(0, 0.4)))
    return kills


def start(folder: Path, encoder: Path, num_ranks: int) -> list[subprocess.Popen[str]]:
    """Return the processes of a run."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for rank in range(num_ranks):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if num_ranks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "benchmarks.training_resume_victim", str(folder), str(encoder)]
        with (folder / f"stderr-{rank}.txt").open("a") as errors:
            processes.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
            )
    return processes


def finish(processes: list[subprocess.Popen[str]], folder: Path) -> None:
    """Wait for the end of a run; raises RuntimeError when a rank failed."""
    for process in processes:
        process.communicate(timeout=_PATIENCE_S)
    if any(process.returncode for process in processes):
        tails = [path.read_text()[-1500:] for path in sorted(folder.glob("stderr-*.txt"))]
        raise RuntimeError("a victim failed by itself:\n" + "\n".join(tails))


def kill_at(processes: list[subprocess.Popen[str]], kill: Kill) -> bool:
    """Kill every rank at a moment; False when the run had ended before."""
    output = processes[0].stdout
    hit = False
    if output is not None:
        for line in output:
            if line.strip() == kill.line:
                time.sleep(kill.then_s)
                hit = True
                break
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait(timeout=_PATIENCE_S)
        if process.stdout is not None:
            process.stdout.close()
    return hit


def digest(folder: Path) -> str:
    """Return a hash over everything a run has to repeat."""
    found = hashlib.sha256()
    paths = [
        *sorted((folder / "checkpoints" / f"step-{STEPS}").glob("*.distcp")),
        folder / "metrics.jsonl",
        *sorted((folder / "candidate").rglob("*.safetensors")),
    ]
    if len(paths) < 4:
        raise RuntimeError(f"{folder} holds no complete run: {[path.name for path in paths]}")
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def main() -> None:
    """Run the campaign and keep its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two kills on one rank; keeps nothing")
    parser.add_argument("--data", type=Path, help="unused: all is made here")
    parser.add_argument("--kills", type=int, default=20, help="runs that are killed, of one and of two ranks")
    parser.add_argument("--seed", type=int, default=7, help="of the moments")
    options = parser.parse_args()
    num_kills = 2 if options.quick else options.kills
    report = Report("training_resume", quick=options.quick)
    with tempfile.TemporaryDirectory() as home:
        encoder = cut_encoder(Path(home) / "encoder", 1)
        identical: dict[int, list[bool]] = {1: [], 2: []}
        hits: dict[str, int] = {}
        references: dict[int, str] = {}
        for number, kill in enumerate(plan(num_kills, options.seed)):
            num_ranks = 1 if options.quick or number % 4 else 2
            if num_ranks not in references:
                folder = Path(home) / f"reference-{num_ranks}"
                finish(start(folder, encoder, num_ranks), folder)
                references[num_ranks] = digest(folder)
            folder = Path(home) / f"killed-{number}"
            if kill_at(start(folder, encoder, num_ranks), kill):
                hits[kill.name] = hits.get(kill.name, 0) + 1
            finish(start(folder, encoder, num_ranks), folder)
            identical[num_ranks].append(digest(folder) == references[num_ranks])
        for num_ranks, found in identical.items():
            if found:
                arm = "kill9" if num_ranks == 1 else f"kill9_{num_ranks}_ranks"
                report.add(arm, "kills", len(found), "kills")
                report.add(arm, "bit_identical", sum(found), "kills", target=len(found), better="higher")
        for name, count in sorted(hits.items()):
            report.add("kill9", f"kills_{name}", count, "kills")
    report.save()


if __name__ == "__main__":
    main()
