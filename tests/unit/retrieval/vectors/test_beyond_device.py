"""Segments larger than their device: limits hold, pages stream, `auto` picks them, shards map their files."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_model import ALL, SPEC, Beside, fill, segment_of

from retrieval.config import RetrievalConfig
from retrieval.streamed import StreamedIndex
from retrieval.vectors import (
    IndexTooLarge,
    NoSuchDevice,
    SearchEffort,
    VectorSettings,
    build_base,
    chosen_kind,
    cuda_driver,
    exact,
    faiss_runtime,
    memory,
    open_base,
)

GIB = 2**30
SETTINGS = VectorSettings(num_threads=1, device="cpu", gather_max_rows=0)


def unit_rows(num_rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((num_rows, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


ROWS, QUERIES = unit_rows(3000, 32, 0), unit_rows(20, 32, 1)
TRUTH = np.argsort(-(QUERIES.astype(np.float64) @ ROWS.T), axis=1)


def test_lists_larger_than_the_limit_stream_within_it() -> None:
    limit = ROWS.nbytes // 8
    settings = replace(SETTINGS, gpu_memory_limit_bytes=limit)
    base = build_base(ROWS, "streamed", settings, queries_QD=QUERIES[:4])
    _, positions = base.search(QUERIES, 10, None, SearchEffort(base.max_probes, 1))
    assert np.array_equal(positions, TRUTH[:, :10])
    index = base._index
    assert isinstance(index, StreamedIndex)
    assert index.memory.peak_bytes <= limit
    assert index.traffic.bytes_moved >= ROWS.nbytes // 2, "every list crossed"
    assert base.resident_bytes <= limit


def test_more_hits_than_the_device_has_room_for_are_answered_exactly() -> None:
    limit = memory.needed_bytes("streamed", *ROWS.shape) + 1000
    settings = replace(SETTINGS, gpu_memory_limit_bytes=limit)
    base = build_base(ROWS, "streamed", settings, queries_QD=QUERIES[:4])
    _, positions = base.search(QUERIES, 2500, None, SearchEffort(1, 1))
    assert np.array_equal(positions, exact.search(QUERIES, ROWS, 2500, None, 1)[1])


@pytest.mark.parametrize("kind", ["coded", "streamed"])
def test_device_too_small_is_refused_with_a_kind_that_fits(kind: str, tmp_path: Path) -> None:
    with pytest.raises(IndexTooLarge, match=f"kind '{kind}'.*gpu_memory_limit_bytes, or use kind '"):
        build_base(ROWS, kind, replace(SETTINGS, gpu_memory_limit_bytes=2000))
    build_base(ROWS, kind, SETTINGS).save(tmp_path)
    with pytest.raises(IndexTooLarge, match="gpu_memory_limit_bytes"):
        open_base(tmp_path, ROWS, replace(SETTINGS, gpu_memory_limit_bytes=2000))


def test_a_gpu_that_torch_lacks_is_refused_by_name() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    with pytest.raises(NoSuchDevice, match="torch sees no such GPU"):
        build_base(ROWS, "coded", replace(SETTINGS, device="cuda"))


def test_collected_base_ends_the_threads_of_its_device() -> None:
    base = build_base(ROWS, "streamed", SETTINGS)
    copier = base._index._device._copier
    del base
    gc.collect()
    with pytest.raises(RuntimeError, match="after shutdown"):
        copier.submit(int)


def test_auto_goes_from_flat_to_codes_to_lists_as_a_gpu_gets_too_small(monkeypatch) -> None:
    monkeypatch.setattr(faiss_runtime, "num_gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda_driver, "free_bytes", lambda _: 80 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 64 * GIB}))

    def picked(num_rows: int, limit: int) -> str:
        return chosen_kind(num_rows, 384, VectorSettings(gpu_memory_limit_bytes=limit))

    assert picked(1_000_000, 0) == "gpu_flat"
    assert picked(10_000_000, 0) == "gpu_ivf"
    assert picked(10_000_000, GIB) == "coded"
    assert picked(100_000_000, GIB) == "streamed"
    assert picked(100_000, 1000) == "exact"


def test_auto_on_a_host_short_of_memory_takes_codes_then_lists(monkeypatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 64 * GIB}))

    def picked(host: int, device: int = 0) -> str:
        settings = VectorSettings(device="cpu", memory_limit_bytes=host, gpu_memory_limit_bytes=device)
        return chosen_kind(50_000_000, 384, settings)

    assert picked(12 * GIB) == "ivf_pq"
    assert picked(9 * GIB) == "coded"
    assert picked(9 * GIB, device=GIB) == "streamed"
    assert picked(GIB) == "exact"


@pytest.mark.parametrize("kind", ["coded", "streamed"])
def test_shard_serves_the_kind_from_its_segments_files(tmp_path: Path, kind: str, monkeypatch) -> None:
    monkeypatch.setattr("shard_model.SPEC", replace(SPEC, kind=kind))
    monkeypatch.setattr("retrieval.vectors.kinds.MIN_APPROXIMATE_ROWS", 200)
    beside = Beside(tmp_path / "shard", RetrievalConfig(num_candidates=300, gather_max_rows=0))
    fill(beside, 260)
    beside.shard.compact()
    beside.put("t", "late", "apple late")
    beside.delete("t", "r0")
    for _ in range(2):
        beside.check(ALL)
        (report,) = beside.shard.segments()
        assert (report.kind, report.num_base_rows, report.num_delta_rows) == (kind, 260, 1)
        beside.reopen()
    names = {path.name for path in (segment_of(beside) / "vectors").rglob("*")}
    assert names >= ({"vectors.bin", "ids.npy"} if kind == "streamed" else {"bits.npy", "factors.npy"})
    beside.shard.close()
