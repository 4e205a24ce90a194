"""Codes estimate without bias; with the exact rerank they find the neighbours, within the memory limit."""

from __future__ import annotations

import numpy as np
import pytest
from fakes_streamed import clustered, exact_over_probed, list_of_rows, whole_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import InvalidVector
from retrieval.streamed import CodedIndex, DeviceMemoryExceeded, HostLists, SimulatedDevice
from retrieval.streamed.codes import Codes, rotation


def estimates(codes: Codes, lists: HostLists, queries_QD: np.ndarray) -> np.ndarray:
    """float[Q, rows of the lists], the estimate as the module's docstring writes it."""
    width = codes.rotation_DW.shape[1]
    bits_NW = np.unpackbits(codes.bits_NB, axis=1, bitorder="little", count=width) * 2.0 - 1
    centroid_ND = lists.centroids_CD[list_of_rows(lists)[lists.ids_N]]
    return queries_QD @ centroid_ND.T + (queries_QD @ codes.rotation_DW) @ bits_NW.T * codes.factor_N


def test_rotation_keeps_inner_products():
    for dim in (1, 8, 13, 64):
        turn_DW = rotation(dim, seed=0)
        assert turn_DW.shape == (dim, -(-dim // 8) * 8)
        np.testing.assert_allclose(turn_DW @ turn_DW.T, np.eye(dim), atol=1e-5)


def test_estimates_are_unbiased_and_as_close_as_the_paper_says():
    matrix_ND = clustered(3_000, 96, seed=1)
    lists = HostLists.build(matrix_ND, 12)
    queries_QD = clustered(40, 96, seed=2)
    exact = queries_QD @ lists.vectors_ND.T
    residual_N = np.linalg.norm(
        lists.vectors_ND - lists.centroids_CD[list_of_rows(lists)[lists.ids_N]], axis=1
    )
    errors = np.concatenate(
        [
            (estimates(Codes.encode(lists, seed=seed), lists, queries_QD) - exact) / residual_N
            for seed in range(6)
        ]
    )
    assert abs(errors.mean()) < 0.002
    assert errors.std() == pytest.approx(0.76 / np.sqrt(96), rel=0.1)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_reranking_all_candidates_is_exact(data):
    num_rows = data.draw(st.integers(1, 300), label="rows")
    dim = data.draw(st.integers(1, 20), label="dim")
    num_lists = data.draw(st.integers(1, min(num_rows, 10)), label="lists")
    k = data.draw(st.integers(1, 12), label="k")
    seed = data.draw(st.integers(0, 999), label="seed")
    matrix_ND = whole_vectors(num_rows, dim, seed)
    lists = HostLists.build(matrix_ND, num_lists, seed=seed)
    limit = 3_000_000
    index = CodedIndex(
        lists,
        Codes.encode(lists),
        matrix_ND,
        gpu_memory_limit=limit,
        device=SimulatedDevice(batched=data.draw(st.booleans(), label="batched")),
        page_rows=data.draw(st.integers(1, 50), label="page_rows"),
        max_batch=data.draw(st.integers(1, 9), label="max_batch"),
        rerank=num_rows,
    )
    queries_QD = whole_vectors(data.draw(st.integers(0, 12), label="queries"), dim, seed + 1)
    keep_N = np.random.default_rng(seed).random(num_rows) < 0.4 if data.draw(st.booleans()) else None
    scores_QK, positions_QK = index.search(queries_QD, k, keep_N, nprobe=num_lists)
    everything = np.broadcast_to(np.arange(num_lists), (len(queries_QD), num_lists))
    wanted = exact_over_probed(matrix_ND, lists, queries_QD, everything, k, keep_N)
    np.testing.assert_array_equal(scores_QK, wanted[0])
    returned = positions_QK >= 0
    assert all(len(set(row)) == len(row) for row in (p[p >= 0].tolist() for p in positions_QK))
    exact = np.einsum("qkd,qd->qk", matrix_ND[positions_QK.clip(0)], queries_QD)
    np.testing.assert_array_equal(exact[returned], scores_QK[returned])
    if keep_N is not None:
        assert keep_N[positions_QK[returned]].all()
    assert index.memory.peak_bytes <= limit
    index.close()


@pytest.mark.parametrize("batched", [False, True])
def test_device_estimates_equal_the_formula(batched):
    matrix_ND = clustered(800, 40, seed=3)
    lists = HostLists.build(matrix_ND, 6)
    codes = Codes.encode(lists)
    device = SimulatedDevice(batched=batched)
    index = CodedIndex(lists, codes, matrix_ND, gpu_memory_limit=4_000_000, device=device, page_rows=50)
    queries_QD = clustered(9, 40, seed=4)
    rows_QX = index._candidates(queries_QD, 30, np.full(9, 6), None)
    wanted = np.argsort(-estimates(codes, lists, queries_QD), axis=1)[:, :30]
    for found, best in zip(rows_QX, wanted, strict=True):
        # Rounding may swap the last places.
        assert len(set(found.tolist()) & set(best.tolist())) >= 29
    index.close()


def test_recall_with_a_thirtieth_of_the_memory():
    matrix_ND = clustered(20_000, 128, seed=5, num_clusters=400, spread=0.9)
    lists = HostLists.build(matrix_ND, 64)
    limit = matrix_ND.nbytes // 4
    index = CodedIndex(lists, Codes.encode(lists), matrix_ND, gpu_memory_limit=limit, nprobe=24, rerank=200)
    assert index.resident_bytes < matrix_ND.nbytes / 15
    queries_QD = clustered(50, 128, seed=5, num_clusters=400, spread=0.9)[:50]
    wanted = np.argsort(-(queries_QD @ matrix_ND.T), axis=1)[:, :10]
    _, found = index.search(queries_QD, 10)
    recall = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]
    )
    assert recall >= 0.9
    assert index.memory.peak_bytes <= limit
    index.close()


def test_codes_that_do_not_fit_are_refused_with_the_remedy():
    matrix_ND = clustered(2_000, 32, seed=6)
    lists = HostLists.build(matrix_ND, 8)
    codes = Codes.encode(lists)
    with pytest.raises(DeviceMemoryExceeded, match=r"StreamedIndex needs less.*raise gpu_memory_limit"):
        CodedIndex(lists, codes, matrix_ND, gpu_memory_limit=8_000)
    with pytest.raises(ValueError, match="do not belong"):
        CodedIndex(lists, codes, matrix_ND[:-1], gpu_memory_limit=8_000_000)
    index = CodedIndex(lists, codes, matrix_ND, gpu_memory_limit=300_000, page_rows=64)
    with pytest.raises(DeviceMemoryExceeded, match="raise gpu_memory_limit"):
        index.search(matrix_ND[:1], 5, rerank=100_000)
    with pytest.raises(InvalidVector, match="wanted"):
        index.search(matrix_ND[:1, :5], 5)
    assert index.search(matrix_ND[:3], 1)[1][:, 0].tolist() == [0, 1, 2]
    index.close()
