"""SIGKILL of a writer at random moments: each operation happened whole or not at all, and none that was
acknowledged is lost.
"""

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
from small_store import TENANT, broken_rules, seen

from retrieval.truth.store import Store
from retrieval.types import DocumentState

pytestmark = pytest.mark.integration
ROUNDS = 25
Answers = dict[str, list[str]]


def _run_and_kill(folder: Path, seed: int, after_s: float) -> list[dict]:
    """Return what one victim told, killed `after_s` seconds after it opened the store."""
    here = Path(__file__).resolve()
    victim = subprocess.Popen(
        [sys.executable, str(here.with_name("store_victim.py")), str(folder), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(here.parents[2]), str(here.parents[1])))},
    )
    assert victim.stdout is not None
    assert json.loads(victim.stdout.readline()) == {"kind": "open"}
    time.sleep(after_s)
    victim.send_signal(signal.SIGKILL)
    told = victim.stdout.read()
    victim.wait()
    victim.stdout.close()
    return [json.loads(line) for line in told.splitlines(keepends=True) if line.endswith("\n")]


def _changed(answers: Answers, changes: dict[str, list[str] | None]) -> Answers:
    after = {**answers, **{name: texts for name, texts in changes.items() if texts is not None}}
    return {name: texts for name, texts in after.items() if changes.get(name, ()) is not None}


def test_kills_lose_nothing_acknowledged_and_leave_nothing_half_written(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    choose = random.Random(seed)
    answers: Answers = {}
    num_done = num_pending = 0
    for number in range(ROUNDS):
        added: dict[str, str] = {}
        pending: dict[str, list[str] | None] | None = None
        for told in _run_and_kill(tmp_path, seed + number, choose.uniform(0.0, 0.4)):
            if told["kind"] == "begin":
                pending = told["changes"]
            elif told["kind"] == "done" and pending is not None:
                answers = _changed(answers, pending)
                added = {name: text for name, text in added.items() if name not in pending}
                pending, num_done = None, num_done + 1
            elif told["kind"] == "added":
                added[told["name"]] = told["text"]
        assert broken_rules(tmp_path) == [], f"seed {seed}, round {number}"
        store = Store(tmp_path)
        found = seen(store)
        possible = [answers] if pending is None else [answers, _changed(answers, pending)]
        assert found in possible, f"seed {seed}, round {number}: {pending}"
        for name, text in added.items():
            if pending is None or name not in pending:
                assert text in _held(store, name), f"seed {seed}, round {number}: '{name}' was acknowledged"
        backup = tmp_path / "backup"
        if (backup / "shard.sqlite3").exists():
            assert broken_rules(backup) == []
        num_pending += found != answers
        answers = found
        store.close()
    assert num_done > ROUNDS


def _held(store: Store, name: str) -> set[str]:
    """Return the texts a document answers with or waits to."""
    for document in store.documents(None, TENANT):
        if document.name == name:
            answers = {" ".join(seen(store).get(name, []))}
            if document.state is DocumentState.QUEUED:
                work = store.claim()
                while work is not None and work.name != name:
                    work = store.claim()
                assert work is not None
                answers.add(work.data.decode())
                store.advance(work, DocumentState.QUEUED)
            return answers
    return set()
