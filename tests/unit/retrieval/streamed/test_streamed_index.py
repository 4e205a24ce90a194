"""Lists streamed through limited memory find exactly what an exact search of the probed lists finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from fakes_streamed import clustered, exact_over_probed, whole_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import InvalidVector
from retrieval.streamed import DeviceMemoryExceeded, HostLists, SimulatedDevice, StreamedIndex
from retrieval.streamed.devices import Run


class CountedDevice(SimulatedDevice):
    """Refuses a copy outside the slab, and counts what it copies."""

    def __init__(self, *, batched: bool = False) -> None:
        super().__init__(batched=batched)
        self.bytes_copied = 0

    def copy_in(self, runs: list[Run], slab_SRD: torch.Tensor):
        slab_rows = slab_SRD.shape[0] * slab_SRD.shape[1]
        for run in runs:
            assert run.slot_row >= 0
            assert run.slot_row + run.num_rows <= slab_rows
            self.bytes_copied += run.num_rows * slab_SRD.shape[2] * slab_SRD.itemsize
        return super().copy_in(runs, slab_SRD)


@contextmanager
def device_peak() -> Iterator[list[int]]:
    """Count every byte torch allocates in the block, kernels' own included; NumPy stands for the host."""
    peak = [0]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        yield peak
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak[0] = max(peak[0], held)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_results_equal_an_exact_search_of_the_probed_lists(data):
    num_rows = data.draw(st.integers(1, 400), label="rows")
    dim = data.draw(st.integers(1, 9), label="dim")
    num_lists = data.draw(st.integers(1, min(num_rows, 12)), label="lists")
    page_rows = data.draw(st.integers(1, 40), label="page_rows")
    batched = data.draw(st.booleans(), label="batched")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    generator = np.random.default_rng(seed)
    matrix_ND = whole_vectors(num_rows, dim, seed)
    lists = HostLists.build(matrix_ND, num_lists, seed=seed)
    spare = data.draw(st.integers(0, 60_000), label="spare bytes")
    limit = StreamedIndex.least_memory(lists, page_rows) + spare
    device = CountedDevice(batched=batched)
    max_batch = data.draw(st.integers(1, 40), label="max_batch")
    index = StreamedIndex(
        lists, gpu_memory_limit=limit, device=device, page_rows=page_rows, max_batch=max_batch
    )
    for _ in range(data.draw(st.integers(1, 4), label="calls")):
        num_queries = data.draw(st.integers(0, 30), label="queries")
        k = data.draw(st.integers(1, 20), label="k")
        queries_QD = whole_vectors(num_queries, dim, data.draw(st.integers(0, 99)))
        keep_N = generator.random(num_rows) < 0.3 if data.draw(st.booleans(), label="filter") else None
        # Any lists at all, repeats and none included.
        width = data.draw(st.integers(1, 6), label="nprobe")
        probes_QN = generator.integers(-1, num_lists, (num_queries, width))
        scores_QK, positions_QK = index.search(queries_QD, k, keep_N, probes_QN=probes_QN)
        wanted = exact_over_probed(matrix_ND, lists, queries_QD, probes_QN, k, keep_N)
        np.testing.assert_array_equal(scores_QK, wanted[0])
        np.testing.assert_array_equal(positions_QK, wanted[1])
    assert index.memory.peak_bytes <= limit
    assert index.traffic.bytes_moved == device.bytes_copied
    index.close()


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("share", [1 / 8, 2])
def test_memory_limit_holds_for_every_byte_allocated(batched, dtype, share):
    matrix_ND = clustered(6_000, 64, seed=1)
    lists = HostLists.build(matrix_ND, 32, dtype=dtype)
    limit = int(lists.num_rows * lists.row_bytes * share)
    queries_QD = clustered(24, 64, seed=2)
    with device_peak() as peak:
        index = StreamedIndex(
            lists, gpu_memory_limit=limit, device=SimulatedDevice(batched=batched), page_rows=64
        )
        for _ in range(2):
            index.search(queries_QD, 10, nprobe=8)
    assert 0 < peak[0] <= limit
    index.close()


def test_float16_lists_are_scored_in_float32():
    matrix_ND = clustered(2_000, 48, seed=3)
    lists = HostLists.build(matrix_ND, 16, dtype="float16")
    index = StreamedIndex(lists, gpu_memory_limit=200_000, page_rows=64)
    queries_QD = clustered(20, 48, seed=4)
    scores_QK, positions_QK = index.search(queries_QD, 5, nprobe=16)
    stored_ND = matrix_ND.astype(np.float16).astype(np.float32)
    wanted = np.sort(queries_QD @ stored_ND.T, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(scores_QK, wanted, atol=2e-6)
    np.testing.assert_allclose(
        np.einsum("qkd,qd->qk", stored_ND[positions_QK], queries_QD), scores_QK, atol=2e-6
    )
    index.close()


def test_each_list_crosses_the_bus_at_most_once_a_batch():
    matrix_ND = clustered(4_000, 32, seed=5)
    lists = HostLists.build(matrix_ND, 20)
    index = StreamedIndex(lists, gpu_memory_limit=300_000, page_rows=32)
    queries_QD = clustered(32, 32, seed=6)
    index.search(queries_QD, 10, nprobe=20)
    assert index.traffic.bytes_moved == 4_000 * 32 * 4
    index.close()


def test_lists_often_asked_for_stay_on_the_device():
    matrix_ND = clustered(4_000, 32, seed=7)
    lists = HostLists.build(matrix_ND, 20)
    index = StreamedIndex(lists, gpu_memory_limit=lists.num_rows * lists.row_bytes // 2, page_rows=32)
    favourite = np.zeros((8, 1), dtype=np.int64)
    queries_QD = clustered(8, 32, seed=8)
    for _ in range(5):
        index.search(queries_QD, 5, probes_QN=favourite)
    # A sweep over all lists must not drive the favourite out.
    index.search(queries_QD[:1], 5, nprobe=20)
    moved = index.traffic.bytes_moved
    index.search(queries_QD, 5, probes_QN=favourite)
    assert index.traffic.bytes_moved == moved
    index.clear_cache()
    index.search(queries_QD, 5, probes_QN=favourite)
    assert index.traffic.bytes_moved > moved
    index.close()


def test_repeated_sweeps_hit_what_fits():
    matrix_ND = clustered(4_000, 32, seed=9)
    lists = HostLists.build(matrix_ND, 20)
    total = lists.num_rows * lists.row_bytes
    index = StreamedIndex(lists, gpu_memory_limit=total // 2, page_rows=16)
    queries_QD = clustered(4, 32, seed=10)
    index.search(queries_QD, 5, nprobe=20)
    for _ in range(3):
        before = index.traffic.bytes_moved
        index.search(queries_QD, 5, nprobe=20)
        assert index.traffic.bytes_moved - before < total * 0.9
    index.close()


def test_everything_resident_moves_nothing_twice():
    matrix_ND = clustered(1_000, 16, seed=11)
    lists = HostLists.build(matrix_ND, 8)
    index = StreamedIndex(lists, gpu_memory_limit=4_000_000, page_rows=64)
    queries_QD = clustered(10, 16, seed=12)
    for _ in range(3):
        index.search(queries_QD, 5, nprobe=8)
    assert index.traffic.bytes_moved == 1_000 * 16 * 4
    index.close()


def test_memory_mapped_lists_answer_as_an_array_does(tmp_path):
    matrix_ND = whole_vectors(900, 12, seed=13)
    in_memory = HostLists.build(matrix_ND, 10)
    on_disk = HostLists.build(matrix_ND, 10, folder=tmp_path / "lists")
    queries_QD = whole_vectors(15, 12, seed=14)
    answers = []
    for lists in (in_memory, on_disk):
        index = StreamedIndex(lists, gpu_memory_limit=60_000, page_rows=16)
        answers.append(index.search(queries_QD, 7, nprobe=4))
        index.close()
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


def test_a_limit_too_small_says_what_is_needed():
    lists = HostLists.build(clustered(500, 16, seed=15), 4)
    with pytest.raises(
        DeviceMemoryExceeded, match=r"two pages of 512 rows.*need 168,848 bytes.*is 20,000: raise it"
    ):
        StreamedIndex(lists, gpu_memory_limit=20_000)
    index = StreamedIndex(lists, gpu_memory_limit=StreamedIndex.least_memory(lists))
    with pytest.raises(DeviceMemoryExceeded, match="raise gpu_memory_limit"):
        index.search(clustered(2, 16, seed=16), 100_000)
    assert index.search(clustered(2, 16, seed=16), 3)[1].min() >= 0
    index.close()


def test_bad_arguments_are_refused():
    lists = HostLists.build(clustered(500, 16, seed=17), 4)
    index = StreamedIndex(lists, gpu_memory_limit=500_000, page_rows=64)
    with pytest.raises(InvalidVector, match=r"wanted \[any, 16\]"):
        index.search(np.zeros((1, 8), dtype=np.float32), 1)
    with pytest.raises(InvalidVector, match="NaN"):
        index.search(np.full((1, 16), np.nan, dtype=np.float32), 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        index.search(np.zeros((1, 16), dtype=np.float32), 0)
    with pytest.raises(ValueError, match="keep_N"):
        index.search(np.zeros((1, 16), dtype=np.float32), 1, np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="no device 'tpu'"):
        StreamedIndex(lists, gpu_memory_limit=500_000, device="tpu")
    with pytest.raises(ValueError, match="page_rows"):
        StreamedIndex(lists, gpu_memory_limit=500_000, page_rows=0)
    index.close()


class TornDevice(SimulatedDevice):
    """Fails the second copy."""

    copies = 0

    def copy_in(self, runs: list[Run], slab_SRD: torch.Tensor):
        self.copies += 1
        if self.copies == 2:
            raise OSError("lists cannot be read")
        return super().copy_in(runs, slab_SRD)


def test_a_failed_copy_leaves_no_page_that_was_not_filled():
    matrix_ND = whole_vectors(800, 8, seed=18)
    lists = HostLists.build(matrix_ND, 8)
    index = StreamedIndex(lists, gpu_memory_limit=24_000, device=TornDevice(), page_rows=16)
    queries_QD = whole_vectors(6, 8, seed=19)
    with pytest.raises(OSError, match="cannot be read"):
        index.search(queries_QD, 5, nprobe=8)
    probes_QN = index.probe(queries_QD, 8)
    scores_QK, positions_QK = index.search(queries_QD, 5, probes_QN=probes_QN)
    wanted = exact_over_probed(matrix_ND, lists, queries_QD, probes_QN, 5)
    np.testing.assert_array_equal(scores_QK, wanted[0])
    np.testing.assert_array_equal(positions_QK, wanted[1])
    index.close()
