"""The cases of `chunk_kv_cases.py`, in a process of their own.

They make vLLM's engine in the process of the tests. vLLM looks through every module that is loaded when it
starts, and stumbles over some that other tests have loaded.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("chunk_kv_cases.py")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_chunks_are_blended_into_real_prompts() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(CASES), "-q", "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        cwd=CASES.parents[2],
    )
    assert run.returncode == 0, run.stdout[-8000:]
    assert re.search(r"^\d+ passed in", run.stdout, re.MULTILINE), "none may be skipped"
