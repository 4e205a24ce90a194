"""Lists streamed through a CUDA device against the CPU reference; no FAISS, Ray or vLLM."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval.streamed import CodedIndex, HostLists, StreamedIndex
from retrieval.streamed.codes import Codes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def whole_vectors(num_rows: int, dim: int, seed: int) -> np.ndarray:
    """Small whole numbers: sums of their products are exact in float32 on any device."""
    return np.random.default_rng(seed).integers(-3, 4, (num_rows, dim)).astype(np.float32)


@pytest.fixture(scope="module")
def matrix_ND() -> np.ndarray:
    return whole_vectors(200_000, 96, seed=1)


@pytest.fixture(autouse=True)
def blas_workspace() -> None:
    """Let cuBLAS take its workspace, which torch counts as allocated and no index owns."""
    for dtype in (torch.float32, torch.float16):
        ones = torch.ones(4, 64, 64, dtype=dtype, device="cuda")
        torch.bmm(ones, ones)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_streamed_results_equal_the_cpu_reference_within_the_limit(matrix_ND, tmp_path, mapped, dtype):
    folder = tmp_path / "lists" if mapped else None
    lists = HostLists.build(matrix_ND, 256, dtype=dtype, device="cuda", folder=folder)
    limit = lists.num_rows * lists.row_bytes // 4
    keep_N = np.random.default_rng(2).random(lists.num_rows) < 0.3
    queries_QD = whole_vectors(300, 96, seed=3)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    index = StreamedIndex(lists, gpu_memory_limit=limit, device="cuda", page_rows=256)
    probes_QN = index.probe(queries_QD, 24)
    found = [
        index.search(queries_QD, 10, keep, probes_QN=probes_QN)
        for keep in (None, keep_N, None)
        for _ in range(3)
    ]
    assert torch.cuda.max_memory_allocated() - before <= limit
    assert index.memory.peak_bytes <= limit
    index.close()
    reference = StreamedIndex(lists, gpu_memory_limit=limit, page_rows=256)
    for number, keep in enumerate((None, keep_N, None)):
        wanted = reference.search(queries_QD, 10, keep, probes_QN=probes_QN)
        for scores_QK, positions_QK in found[3 * number : 3 * number + 3]:
            np.testing.assert_array_equal(scores_QK, wanted[0])
            np.testing.assert_array_equal(positions_QK, wanted[1])
    reference.close()


def test_coded_results_equal_the_cpu_reference(matrix_ND):
    unit_ND = matrix_ND / np.linalg.norm(matrix_ND, axis=1, keepdims=True)
    lists = HostLists.build(unit_ND, 256, device="cuda")
    codes = Codes.encode(lists, device="cuda")
    queries_QD = unit_ND[:200]
    answers = []
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for device in ("cuda", "cpu"):
        index = CodedIndex(
            lists, codes, unit_ND, gpu_memory_limit=256 * 2**20, device=device, nprobe=32, rerank=800
        )
        answers.append(index.search(queries_QD, 10))
        index.close()
    assert torch.cuda.max_memory_allocated() - before <= 256 * 2**20
    # The estimate is float16 on a GPU: candidates at the end of the list may differ, the best may not.
    np.testing.assert_array_equal(answers[0][1][:, 0], np.arange(200))
    agreement = np.mean(
        [
            len(set(a) & set(b)) / 10
            for a, b in zip(answers[0][1].tolist(), answers[1][1].tolist(), strict=True)
        ]
    )
    assert agreement >= 0.99
