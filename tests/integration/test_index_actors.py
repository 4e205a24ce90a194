"""Encoders, shards and the queue die in the middle of a refresh: nothing is lost and the bound holds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from tests.fakes_index import DIM, QUERIES, TEXTS, DriftingEncoder, Troubled, load_drifting, saver
from training.errors import IndexNotReady, StalenessViolated
from training.index.ray_clients import RayEncoderPool, RayShard, start_ray_shards
from training.index.refresher import Refresher, versions_folder
from training.index.schedule import RefreshConfig
from training.index.search_call import SearchCall
from training.index.sharded_search import ShardedSearch

pytestmark = pytest.mark.integration
BLOCK_ROWS = 10
CONFIG = RefreshConfig("async", interval_steps=6, delay_steps=5)


@pytest.fixture
def shards(ray_session: None, tmp_path: Path) -> Iterator[list[RayShard]]:
    started = start_ray_shards(versions_folder(tmp_path), len(TEXTS), BLOCK_ROWS, 2)
    yield started
    for shard in started:
        shard.close()


@pytest.fixture
def start(shards: list[RayShard], tmp_path: Path) -> Iterator[Callable[..., Refresher]]:
    refreshers: list[Refresher] = []

    def start(load_encoder=load_drifting, *, drives: bool = True) -> Refresher:
        pool = RayEncoderPool(TEXTS, load_encoder, BLOCK_ROWS, num_encoders=2) if drives else None
        search = ShardedSearch(shards, deadline_s=60.0)
        refreshers.append(
            Refresher(CONFIG, tmp_path, TEXTS, DIM, search, pool, dtype="float32", block_rows=BLOCK_ROWS)
        )
        return refreshers[-1]

    yield start
    for refresher in refreshers:
        refresher.close()


def search_is_that_of_the_plan(refresher: Refresher, step: int) -> None:
    encoder = DriftingEncoder(refresher.plan.version(refresher.plan.active(step)).snapshot_step)
    queries_QD = encoder.encode_queries(QUERIES)
    rows_QK, _ = refresher.search(queries_QD, 4, step)
    expected_QK = np.argsort(-(queries_QD @ encoder.encode(TEXTS).T), axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(rows_QK, expected_QK)


def pids(handles: list) -> list[int]:
    return ray.get([handle.pid.remote() for handle in handles], timeout=120)


def test_dead_encoder_shard_and_queue_cost_no_row_and_no_bound(start, shards, tmp_path: Path) -> None:
    trouble = Troubled(tmp_path / "marks", "slow", times=99, slow_s=0.3, only_from=5)
    refresher = start(trouble)
    pool = refresher._maker._pool
    for step in range(14):
        refresher.before_step(step, saver(step))
        if step == 6:
            assert pool.num_pending(1) > 0
            os.kill(pids(pool.encoder_handles)[0], signal.SIGKILL)
            os.kill(pids([shards[1].handle])[0], signal.SIGKILL)
        if step == 12:
            assert pool.num_pending(2) > 0
            os.kill(pids([pool._queue_actor.handle])[0], signal.SIGKILL)
        search_is_that_of_the_plan(refresher, step)
    refresher.before_step(14, saver(14))
    search_is_that_of_the_plan(refresher, 14)
    assert refresher.counters.violations == 0
    for step in (15, 16, 17):
        refresher.before_step(step, saver(step))
    search_is_that_of_the_plan(refresher, 17)
    assert refresher.plan.active(17) == 2


def test_encoders_that_die_at_their_first_blocks_are_replaced(start, tmp_path: Path) -> None:
    refresher = start(Troubled(tmp_path / "marks", "exit", times=3, only_from=1))
    refresher.before_step(0, saver(0))
    search_is_that_of_the_plan(refresher, 0)
    assert refresher.counters.blocks_again >= 3


def test_ranks_with_the_same_shards_may_all_search(start) -> None:
    driver, follower = start(), start(drives=False)
    for step in range(13):
        for refresher in (driver, follower):
            refresher.before_step(step, saver(step))
            search_is_that_of_the_plan(refresher, step)


def test_trainer_that_restarts_finds_its_shards_and_goes_on(start) -> None:
    first = start()
    for step in range(12):
        first.before_step(step, saver(step))
        if step == 7:
            state = first.state()
    first.close()
    again = start()
    again.restore(state)
    for step in range(8, 13):
        again.before_step(step, saver(step))
        search_is_that_of_the_plan(again, step)


def test_errors_of_a_shard_come_out_as_themselves(start, shards) -> None:
    refresher = start()
    refresher.before_step(0, saver(0))
    queries_QD = DriftingEncoder(0).encode_queries(QUERIES)
    with pytest.raises(StalenessViolated, match="bound of this run is 0 to 10"):
        ShardedSearch(shards).search(SearchCall(0, 11, 0, 10, queries_QD, 3))
    shards[1].close()
    began_s = time.monotonic()
    with pytest.raises(IndexNotReady, match=r"1 of 2 index shards.*index shard 1"):
        ShardedSearch(shards, deadline_s=2.0).search(SearchCall(0, 0, 0, 10, queries_QD, 3))
    assert time.monotonic() - began_s < 60
