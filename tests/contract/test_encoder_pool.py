"""Every encoder pool gives the same bytes, loses at most a block, and says what lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fakes_index import TEXTS, DriftingEncoder, Troubled, load_drifting, saver, spec_of, version_bytes
from training.errors import IndexNotReady, NumericsError
from training.index.encoder_pool import EncoderPool, InlineEncoderPool
from training.index.encoder_supervisor import ThreadEncoderPool
from training.index.encoding import LoadEncoder
from training.index.range_queue import EncodingJob

BLOCK_ROWS = 7
WAIT_S = 60.0
StartPool = Callable[[LoadEncoder], EncoderPool]


@pytest.fixture(params=["inline", "threads", pytest.param("ray", marks=pytest.mark.integration)])
def start_pool(request: pytest.FixtureRequest) -> Iterator[StartPool]:
    pools: list[EncoderPool] = []
    if request.param == "ray":
        request.getfixturevalue("ray_session")

    def start(load_encoder: LoadEncoder) -> EncoderPool:
        if request.param == "inline":
            pools.append(InlineEncoderPool(TEXTS, load_encoder))
        elif request.param == "threads":
            pools.append(ThreadEncoderPool(TEXTS, load_encoder, num_encoders=2))
        else:
            from training.index.ray_clients import RayEncoderPool

            pools.append(RayEncoderPool(TEXTS, load_encoder, BLOCK_ROWS, num_encoders=2))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


def job_of(folder: Path, number: int = 1, step: int = 3) -> EncodingJob:
    weights = folder / f"w{number}"
    weights.mkdir(exist_ok=True)
    saver(step)(weights)
    return EncodingJob(spec_of(number, step=step), folder / "versions", weights)


def test_all_rows_are_those_of_the_snapshot(start_pool: StartPool, tmp_path: Path) -> None:
    job = job_of(tmp_path)
    pool = start_pool(load_drifting)
    pool.begin(job)
    pool.wait(1, WAIT_S)
    found_ND = np.concatenate([block_ND for _, block_ND in job.rows.open(0, len(TEXTS))])
    np.testing.assert_array_equal(found_ND, DriftingEncoder(3).encode(TEXTS))
    assert pool.num_pending(1) == 0


def test_bytes_do_not_depend_on_the_pool(start_pool: StartPool, tmp_path: Path) -> None:
    for folder, pool in ((tmp_path / "a", InlineEncoderPool(TEXTS, load_drifting)), (tmp_path / "b", None)):
        folder.mkdir()
        used = pool or start_pool(load_drifting)
        used.begin(job_of(folder))
        used.wait(1, WAIT_S)
    assert version_bytes(tmp_path / "a" / "versions", 1) == version_bytes(tmp_path / "b" / "versions", 1)


def test_only_missing_blocks_are_encoded(start_pool: StartPool, tmp_path: Path) -> None:
    job = job_of(tmp_path)
    first = InlineEncoderPool(TEXTS, load_drifting)
    first.begin(job)
    first.wait(1, WAIT_S)
    kept = {path: path.stat().st_mtime_ns for path in job.rows.folder.glob("rows-*.npy")}
    lost = sorted(kept)[2]
    lost.write_bytes(b"torn")
    pool = start_pool(load_drifting)
    pool.begin(job)
    pool.wait(1, WAIT_S)
    assert job.rows.missing() == []
    changed = {path for path, before in kept.items() if path.stat().st_mtime_ns != before}
    assert changed == {lost}


def test_two_versions_may_be_open_at_once(start_pool: StartPool, tmp_path: Path) -> None:
    pool = start_pool(load_drifting)
    jobs = [job_of(tmp_path, 1, 3), job_of(tmp_path, 2, 9)]
    for job in jobs:
        pool.begin(job)
    for job in reversed(jobs):
        pool.wait(job.spec.number, WAIT_S)
    for job in jobs:
        found_ND = job.rows.vectors(np.arange(len(TEXTS)))
        np.testing.assert_array_equal(found_ND, DriftingEncoder(job.spec.step).encode(TEXTS))


def test_a_version_begun_with_other_weights_is_encoded_anew(start_pool: StartPool, tmp_path: Path) -> None:
    pool = start_pool(load_drifting)
    pool.begin(job_of(tmp_path))
    pool.wait(1, WAIT_S)
    weights = tmp_path / "other"
    weights.mkdir()
    saver(4)(weights)
    job = EncodingJob(spec_of(1, step=4, weights_hash="other"), tmp_path / "versions", weights)
    pool.begin(job)
    pool.wait(1, WAIT_S)
    np.testing.assert_array_equal(job.rows.vectors(np.arange(len(TEXTS))), DriftingEncoder(4).encode(TEXTS))


def test_vectors_that_are_not_finite_end_the_wait_with_their_row(
    start_pool: StartPool, tmp_path: Path
) -> None:
    pool = start_pool(Troubled(tmp_path / "marks", "nan", times=99))
    pool.begin(job_of(tmp_path))
    with pytest.raises(NumericsError, match="NaN or infinite numbers for row"):
        pool.wait(1, WAIT_S)


def test_version_that_was_not_begun_is_refused(start_pool: StartPool, tmp_path: Path) -> None:
    pool = start_pool(load_drifting)
    with pytest.raises(ValueError, match="version 5 was not begun"):
        pool.wait(5, 0.1)
    with pytest.raises(ValueError, match="version 5 was not begun"):
        pool.num_pending(5)


class TestSupervised:
    """What pools that work beside the trainer promise on top."""

    @pytest.fixture(params=["threads", pytest.param("ray", marks=pytest.mark.integration)])
    def start_pool(self, request: pytest.FixtureRequest) -> Iterator[StartPool]:
        pools: list[EncoderPool] = []
        if request.param == "ray":
            request.getfixturevalue("ray_session")

        def start(load_encoder: LoadEncoder) -> EncoderPool:
            if request.param == "threads":
                pools.append(ThreadEncoderPool(TEXTS, load_encoder, num_encoders=2))
            else:
                from training.index.ray_clients import RayEncoderPool

                pools.append(RayEncoderPool(TEXTS, load_encoder, BLOCK_ROWS, num_encoders=2))
            return pools[-1]

        yield start
        for pool in pools:
            pool.close()

    def test_encoders_that_fail_cost_a_block_each(self, start_pool: StartPool, tmp_path: Path) -> None:
        job = job_of(tmp_path)
        pool = start_pool(Troubled(tmp_path / "marks", "raise", times=3, only_from=2))
        pool.begin(job)
        pool.wait(1, WAIT_S)
        assert pool.num_again == 3
        np.testing.assert_array_equal(
            job.rows.vectors(np.arange(len(TEXTS))), DriftingEncoder(3).encode(TEXTS)
        )

    def test_encoders_that_keep_failing_are_named_with_the_cause(
        self, start_pool: StartPool, tmp_path: Path
    ) -> None:
        pool = start_pool(Troubled(tmp_path / "marks", "raise", times=999, only_from=2))
        pool.begin(job_of(tmp_path))
        with pytest.raises(
            IndexNotReady, match=r"lacks 6 blocks.*encoder-\d: RuntimeError: the device fell off"
        ):
            pool.wait(1, WAIT_S)
        assert pool.num_pending(1) == 6

    def test_version_given_up_is_finished_when_begun_again(
        self, start_pool: StartPool, tmp_path: Path
    ) -> None:
        job = job_of(tmp_path)
        pool = start_pool(Troubled(tmp_path / "marks", "raise", times=10))
        pool.begin(job)
        with pytest.raises(IndexNotReady):
            pool.wait(1, WAIT_S)
        pool.begin(job)
        pool.wait(1, WAIT_S)
        assert job.rows.missing() == []

    def test_late_version_is_named_with_what_lacks(self, start_pool: StartPool, tmp_path: Path) -> None:
        pool = start_pool(Troubled(tmp_path / "marks", "slow", times=99, slow_s=30.0))
        pool.begin(job_of(tmp_path))
        with pytest.raises(
            IndexNotReady, match=r"version 1 lacks 8 blocks, the first is rows \[0, 7\) after 0\.2 s"
        ):
            pool.wait(1, 0.2)
        assert pool.num_pending(1) == 8

    def test_a_slow_encoder_loses_its_block_to_an_idle_one(
        self, start_pool: StartPool, tmp_path: Path
    ) -> None:
        job = job_of(tmp_path)
        pool = start_pool(Troubled(tmp_path / "marks", "slow", times=1, slow_s=120.0))
        pool.begin(job)
        pool.wait(1, WAIT_S)
        assert job.rows.missing() == []
        assert pool.num_again == 1

    def test_work_goes_on_beside_the_caller(self, start_pool: StartPool, tmp_path: Path) -> None:
        pool = start_pool(load_drifting)
        pool.begin(job_of(tmp_path))
        deadline = 600
        while pool.num_pending(1) and deadline:
            import time

            time.sleep(0.1)
            deadline -= 1
        assert pool.num_pending(1) == 0

    def test_wait_in_a_closed_pool_does_not_hang(self, start_pool: StartPool, tmp_path: Path) -> None:
        pool = start_pool(Troubled(tmp_path / "marks", "slow", times=99, slow_s=30.0))
        pool.begin(job_of(tmp_path))
        pool.close()
        with pytest.raises(IndexNotReady, match="pool was closed"):
            pool.wait(1, WAIT_S)
