"""The contract of vector bases over the kinds that live on a GPU, and their place beside a memory limit."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))

import test_vector_base as contract

from retrieval.vectors import (
    IndexTooLarge,
    SearchEffort,
    VectorSegments,
    VectorSettings,
    build_base,
    chosen_kind,
    cuda_driver,
    open_base,
)
from retrieval.vectors.types import NoSuchDevice


def lacking(kind: str) -> str | None:
    """Return why a kind cannot be had here, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if kind in ("coded", "streamed"):
        return None
    from retrieval.vectors import gpu

    try:
        gpu.require(kind)
    except NoSuchDevice as error:
        return str(error)
    return None


KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(bool(why := lacking(kind)), reason=why or ""))
    for kind in ("gpu_flat", "gpu_ivf", "gpu_cagra", "coded", "streamed")
]
pytestmark = pytest.mark.gpu
SETTINGS = VectorSettings(device="cuda", gather_max_rows=0, recall_floor=0.97)
ROWS = contract.MATRIX


@pytest.fixture(scope="module")
def bases() -> dict:
    return {}


@pytest.fixture
def base(kind: str, bases: dict):
    if kind not in bases:
        bases[kind] = build_base(ROWS, kind, SETTINGS)
    return bases[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_tuned_base_reaches_the_floor_with_exact_scores(kind, base):
    scores, positions = base.search(contract.QUERIES, contract.K, None)
    assert base.kind == kind
    assert contract.recall(positions, contract.truth(None)[1]) >= 0.95
    exact = np.einsum("qd,qkd->qk", contract.QUERIES.astype(np.float64), ROWS[positions].astype(np.float64))
    assert np.array_equal(scores, exact.astype(np.float32))


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("kind", KINDS)
def test_filters_hold_and_every_place_is_filled(kind, base, share):
    keep = contract.share_of(share)
    _, positions = base.search(contract.QUERIES, contract.K, keep, SearchEffort(8, 4))
    assert keep[positions[positions >= 0]].all()
    segments = VectorSegments(base, SETTINGS)
    _, positions, plan = segments.search(contract.QUERIES, contract.K, contract.Keep(keep))
    assert keep[positions].all(), plan
    assert contract.recall(positions, contract.truth(keep)[1][:, : positions.shape[1]]) >= 0.95, plan


@pytest.mark.parametrize("kind", KINDS)
def test_saved_base_opens_again_and_answers_alike(kind, base, tmp_path):
    base.save(tmp_path)
    again = open_base(tmp_path, ROWS, SETTINGS)
    assert (again.kind, again.effort) == (base.kind, base.effort)
    ours, theirs = (one.search(contract.QUERIES, contract.K, None)[1] for one in (base, again))
    assert contract.recall(ours, theirs) >= 0.97, "built again from the matrix, or mapped"


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_below_what_it_needs_is_refused(kind):
    with pytest.raises(IndexTooLarge, match="gpu_memory_limit_bytes"):
        build_base(ROWS, kind, replace(SETTINGS, gpu_memory_limit_bytes=1000))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_streamed_lists_stay_within_their_limit_on_the_device():
    rows = contract.clustered(100_000, 96, seed=3)
    limit = rows.nbytes // 8
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    base = build_base(rows, "streamed", replace(SETTINGS, gpu_memory_limit_bytes=limit))
    _, positions = base.search(rows[:64], 10, None, SearchEffort(base.max_probes, 1))
    assert (positions[:, 0] == np.arange(64)).all()
    assert torch.cuda.max_memory_allocated() - before <= limit + 64 * 2**20, (
        "cuBLAS keeps a workspace of its own"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_driver_tells_the_memory_that_torch_sees():
    free, total = torch.cuda.mem_get_info()
    assert cuda_driver.total_bytes("cuda") == pytest.approx(total, rel=0.05)
    assert cuda_driver.free_bytes("cuda") == pytest.approx(free, rel=0.1)


@pytest.mark.skipif(bool(lacking("gpu_flat")), reason="FAISS sees no GPU")
def test_auto_goes_to_the_gpu_and_beyond_it():
    assert chosen_kind(200_000, 96, SETTINGS) == "gpu_flat"
    assert chosen_kind(2_000_000, 384, replace(SETTINGS, gpu_memory_limit_bytes=2**28)) == "coded"
