"""SIGKILL of a run at random moments, mid-encoding among them: it goes on bit-identically."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes_index import version_bytes

pytestmark = pytest.mark.integration
NUM_STEPS = 40
KILLS = 8
ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, slow_s: float) -> subprocess.Popen[str]:
    arguments = [str(folder), str(NUM_STEPS), "0.01", str(slow_s)]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("index_victim.py")), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def told(victim: subprocess.Popen[str]) -> dict[int, list[int]]:
    assert victim.stdout is not None
    with victim.stdout as stdout:
        whole = [json.loads(line) for line in stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    victim.wait()
    return dict(whole)


def last_versions(folder: Path) -> dict[str, dict[str, bytes]]:
    return {
        path.name: version_bytes(folder / "versions", int(path.name[1:]))
        for path in sorted((folder / "versions").iterdir())
    }


@pytest.mark.timeout(600)
def test_killed_run_resumes_with_byte_identical_versions_and_searches(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = told(start(tmp_path / "whole", 0.0))
    assert sorted(whole) == list(range(NUM_STEPS))
    seed = int.from_bytes(os.urandom(4), "big")
    choose = random.Random(seed)
    folder = tmp_path / "killed"
    folder.mkdir()
    half_encoded = 0
    for _ in range(KILLS):
        victim = start(folder, 0.02)
        assert victim.stdout is not None
        first = victim.stdout.readline()
        time.sleep(choose.uniform(0.0, 0.5))
        victim.send_signal(signal.SIGKILL)
        seen = told(victim)
        if first:
            step, found = json.loads(first)
            seen[step] = found
        assert seen == {step: whole[step] for step in seen}, f"seed {seed}"
        half_encoded += any(
            list(path.glob("rows-*.npy")) and not (path / "manifest.json").exists()
            for path in (folder / "versions").iterdir()
        )
    rest = told(start(folder, 0.0))
    assert rest == {step: whole[step] for step in rest}, f"seed {seed}"
    assert max(rest) == NUM_STEPS - 1
    assert last_versions(folder) == last_versions(tmp_path / "whole"), f"seed {seed}"
    assert half_encoded, f"seed {seed}: no kill fell into an encoding, so the test shows nothing"
