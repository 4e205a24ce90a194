"""A process to be killed: takes the steps of a run with a checkpoint after each, and tells each on stdout."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from tests.fakes_index import DIM, QUERIES, TEXTS, DriftingEncoder, Troubled, saver
from training.index.durable_files import write_durably
from training.index.encoder_supervisor import ThreadEncoderPool
from training.index.refresh_report import RefresherState
from training.index.refresher import Refresher, versions_folder
from training.index.schedule import RefreshConfig
from training.index.sharded_search import ShardedSearch, local_shards

BLOCK_ROWS = 5
CONFIG = RefreshConfig("async", interval_steps=6, delay_steps=4)
CHECKPOINT_EVERY = 4


def main(folder: Path, num_steps: int, step_s: float, slow_s: float) -> None:
    """Run from the last checkpoint to the end; each step is told as step and the bytes of its search."""
    trouble = Troubled(folder / "marks", "slow", times=10_000, slow_s=slow_s)
    refresher = Refresher(
        CONFIG,
        folder,
        TEXTS,
        DIM,
        ShardedSearch(local_shards(versions_folder(folder), len(TEXTS), BLOCK_ROWS, 2)),
        ThreadEncoderPool(TEXTS, trouble, num_encoders=2),
        dtype="float32",
        block_rows=BLOCK_ROWS,
    )
    checkpoint = folder / "checkpoint.json"
    first = 0
    if checkpoint.exists():
        state = RefresherState.from_json(json.loads(checkpoint.read_bytes()))
        refresher.restore(state)
        first = state.step + 1
    for step in range(first, num_steps):
        encoder = DriftingEncoder(step)
        refresher.before_step(step, saver(step))
        rows_QK, scores_QK = refresher.search(encoder.encode_queries(QUERIES), 4, step)
        found = np.concatenate([rows_QK.ravel(), scores_QK.view(np.int32).ravel()]).tolist()
        sys.stdout.write(json.dumps([step, found]) + "\n")
        sys.stdout.flush()
        if step % CHECKPOINT_EVERY == 0:
            state = json.dumps(refresher.state().to_json()).encode()
            write_durably(checkpoint, lambda file, state=state: file.write(state))
            refresher.collect([refresher.state()])
        time.sleep(step_s)
    refresher.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
