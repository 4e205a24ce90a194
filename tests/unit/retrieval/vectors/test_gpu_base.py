"""What a GPU base does around the device: filters are checked on the host, limits kept, absence refused.

The device is stood in for by a CPU index that behaves as the GPU classes were read to: the classic ones
ignore a filter, CAGRA marks missing rows by huge ids. On a GPU the contract suite runs over the real classes.
"""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from retrieval.vectors import NoSuchDevice, SearchEffort, VectorSegments, VectorSettings, cuda_driver, gpu
from retrieval.vectors.gpu import GpuBase

NO_ID = 2**32 - 1


class Device:
    """A flat index that records what it is asked and heeds a filter only if told to."""

    def __init__(self, rows: np.ndarray, heeds_filters: bool) -> None:
        self._flat = faiss.IndexFlatIP(rows.shape[1])
        self._flat.add(rows)
        self._heeds_filters = heeds_filters
        self.asked: list[tuple[int, bool]] = []

    def search(self, queries, k, params=None):
        self.asked.append((k, params is not None))
        scores, positions = self._flat.search(queries, k, params=params if self._heeds_filters else None)
        return scores, np.where(positions < 0, NO_ID, positions)


class Keep:
    def __init__(self, keep: np.ndarray) -> None:
        self.keep = keep
        self.count = int(keep.sum())
        self.name = keep.tobytes()


def unit_rows(num_rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((num_rows, 16))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


ROWS, QUERIES = unit_rows(5000, 0), unit_rows(12, 1)


def base_over(device: Device, honours_filters: bool) -> GpuBase:
    effort = SearchEffort(1, 2)
    return GpuBase("gpu_flat", device, ROWS, effort, None, honours_filters=honours_filters)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize(("honours", "heeds"), [(False, False), (True, True), (True, False)])
def test_rows_outside_the_filter_never_come_back_even_if_the_device_ignores_it(share, honours, heeds):
    keep = np.random.default_rng(2).random(len(ROWS)) < share
    device = Device(ROWS, heeds)
    base = base_over(device, honours)
    scores, positions = base.search(QUERIES, 10, keep)
    assert keep[positions[positions >= 0]].all()
    assert (np.isneginf(scores) == (positions < 0)).all()
    assert device.asked[0][1] is honours
    segments = VectorSegments(base, VectorSettings(num_threads=1, gather_max_rows=0))
    _, found, plan = segments.search(QUERIES, 10, Keep(keep))
    true = np.argsort(-np.where(keep, QUERIES.astype(np.float64) @ ROWS.T, -np.inf), axis=1)
    assert np.array_equal(found, true[:, : found.shape[1]]), plan
    assert found.shape[1] == min(10, keep.sum())


def test_classic_device_is_asked_for_more_by_the_share_kept_and_never_above_its_limit():
    device = Device(ROWS, heeds_filters=False)
    base = base_over(device, honours_filters=False)
    base.search(QUERIES, 10, None)
    half = np.arange(len(ROWS)) % 2 == 0
    base.search(QUERIES, 10, half)
    few = np.arange(len(ROWS)) < 5
    base.search(QUERIES, 10, few)
    base.search(QUERIES, 4000, None)
    assert [k for k, _ in device.asked] == [20, 80, 2048, 2048]


def test_deleted_rows_are_a_filter_to_the_device():
    segments = VectorSegments(base_over(Device(ROWS, False), False), VectorSettings(num_threads=1))
    best = segments.search(QUERIES, 1)[1][:, 0]
    segments.remove(best)
    assert not set(best) & set(segments.search(QUERIES, 10)[1].ravel())


def test_device_setting_names_its_ordinal():
    assert [cuda_driver.ordinal(device) for device in ("auto", "cuda", "cuda:0", "cuda:3")] == [0, 0, 0, 3]


def test_capability_is_asked_before_a_class_is_used():
    if gpu.has_cuvs():
        pytest.skip("this FAISS has cuVS")
    with pytest.raises(
        NoSuchDevice, match=r"faiss\.GpuIndexCagra, which the installed FAISS .* faiss-gpu-cuvs"
    ):
        gpu.require("gpu_cagra")


def test_memory_of_no_driver_is_refused_by_name():
    try:
        total, free = cuda_driver.total_bytes("cuda"), cuda_driver.free_bytes("cuda")
    except NoSuchDevice as error:
        assert "CUDA driver" in str(error)  # noqa: PT017
    else:
        assert 0 < free <= total


def test_device_memory_counts_rows_and_scratch():
    assert gpu.resident_bytes("gpu_flat", 1000, 384) == 1000 * 768 + gpu.SCRATCH_BYTES
    kinds = ("gpu_ivf", "gpu_flat", "gpu_cagra")
    sizes = [gpu.resident_bytes(kind, 10_000_000, 384) for kind in kinds]
    assert sizes == sorted(sizes)
