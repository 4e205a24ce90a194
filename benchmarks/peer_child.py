"""Drives one vector store in a process of its own, by commands from standard input; killed at times.

Run by `benchmarks.vector_peers` as `python -m benchmarks.peer_child ARM FOLDER VECTORS`: one JSON command a
line in, JSON answers out. An `acknowledged` line is written only after the store's own call returned.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_stores import STORES, VectorStore, bucket_of, text_of


def say(**answer: Any) -> None:
    """Write one answer."""
    os.write(_ANSWERS, (json.dumps(answer) + "\n").encode())


def ingest(store: VectorStore, vectors_ND: np.ndarray, stop: int, batch: int, budget_s: float) -> None:
    """Store rows by batches until all are there or the time is up, saying after each how far it is."""
    began_s, stored = time.perf_counter(), 0
    while stored < stop and time.perf_counter() - began_s < budget_s:
        rows = range(stored, min(stored + batch, stop))
        store.put(rows, np.array(vectors_ND[rows.start : rows.stop]))
        stored = rows.stop
        say(acknowledged=stored)
    say(seconds=time.perf_counter() - began_s, stored=stored)


def search(store: VectorStore, queries_QD: np.ndarray, k: int, below: int | None, budget_s: float) -> None:
    """Answer queries one by one until the time is up, at least five, after one that is not counted."""
    store.search(queries_QD[0], k, below)
    found, times_ms, began_s = [], [], time.perf_counter()
    for query_D in queries_QD:
        if len(found) >= 5 and time.perf_counter() - began_s > budget_s:
            break
        query_began_s = time.perf_counter()
        found.append(store.search(query_D, k, below))
        times_ms.append((time.perf_counter() - query_began_s) * 1000)
    say(found=found, times_ms=times_ms)


def delete(store: VectorStore, vectors_ND: np.ndarray, rows: list[int]) -> None:
    """Delete rows in one go and look for each at once with its own vector."""
    began_s = time.perf_counter()
    store.delete(rows)
    spent_s = time.perf_counter() - began_s
    leaked = sum(row in store.search(np.array(vectors_ND[row]), 10, None) for row in rows)
    leaked += sum(row in store.read(range(row, row + 1)) for row in rows)
    say(ms=spent_s * 1000, leaked=leaked)


def verify(store: VectorStore, vectors_ND: np.ndarray, stop: int, acknowledged: int, probes: int) -> None:
    """Say which rows are there, which hold something else than was written, and which no search finds."""
    present: dict[int, tuple[int, str]] = {}
    for start in range(0, stop, 250):
        present |= store.read(range(start, min(start + 250, stop)))
    wrong = sum(value != (bucket_of(row), text_of(row)) for row, value in present.items())
    kept = sorted(row for row in present if row < acknowledged)
    chosen = np.random.default_rng(0).choice(kept, min(probes, len(kept)), replace=False) if kept else []
    unfindable = sum(int(row) not in store.search(np.array(vectors_ND[row]), 5, None) for row in chosen)
    say(present=sorted(present), wrong=wrong, unfindable=int(unfindable), probed=len(chosen))


def main() -> None:
    """Open the store, then obey until the input ends."""
    arm, folder, vectors = sys.argv[1:]
    vectors_ND = np.load(vectors, mmap_mode="r")
    began_s = time.perf_counter()
    store: VectorStore = STORES[arm](Path(folder), vectors_ND.shape[1])
    say(opened_s=time.perf_counter() - began_s)
    for line in sys.stdin:
        command = json.loads(line)
        task = command.pop("do")
        if task == "ingest":
            ingest(store, vectors_ND, **command)
        elif task == "finish":
            began_s = time.perf_counter()
            store.finish()
            say(seconds=time.perf_counter() - began_s)
        elif task == "search":
            search(store, np.load(command.pop("queries")), **command)
        elif task == "delete":
            delete(store, vectors_ND, **command)
        elif task == "verify":
            verify(store, vectors_ND, **command)
        else:
            store.close()
            say(closed=True)
            return


if __name__ == "__main__":
    # Answers have a descriptor of their own: stores print.
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    main()
