"""One GPU, divided once: what the model, the index and the embedder may take stays below the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from graft import doctor, gpu_split
from graft.config import GraftConfig
from graft.errors import ConfigError
from graft.gpu_split import GIB, split_of, split_of_cluster
from graft.platform import Platform
from retrieval.config import RetrievalConfig
from retrieval.vectors import VectorSettings, cuda_driver
from serving.config import ServingConfig
from serving.engine_arguments import engine_arguments

CONFIG = GraftConfig()


def configured(retrieval: RetrievalConfig | None = None, serving: ServingConfig | None = None) -> GraftConfig:
    return GraftConfig(retrieval=retrieval or RetrievalConfig(), serving=serving or ServingConfig())


@pytest.mark.parametrize("total_gib", [16, 24, 80, 141])
@pytest.mark.parametrize(
    "config",
    [
        configured(),
        configured(RetrievalConfig(gpu_memory_limit_bytes=GIB)),
        configured(RetrievalConfig(vector_device="cpu")),
        configured(RetrievalConfig(embed_device="cpu", num_replicas=1)),
        configured(serving=ServingConfig(gpu_memory_utilization=0.4)),
        configured(serving=ServingConfig(device="cpu")),
    ],
)
def test_shares_add_up_to_less_than_the_device_and_reach_engine_and_index(
    config: GraftConfig, total_gib: int
) -> None:
    total_bytes = total_gib * GIB
    split = split_of(config, total_bytes, num_shards=2)
    sized = split.applied(config)
    limit = VectorSettings.of(sized.retrieval).gpu_memory_limit_bytes
    arguments = engine_arguments(sized.serving, "folder", on_gpu=sized.serving.device != "cpu")
    share = arguments.get("gpu_memory_utilization", 0.0)
    assert (share > 0) == (config.serving.device != "cpu")
    num_bases = 2 * 2 * (1 + config.retrieval.num_replicas)
    taken = share * total_bytes + (limit * num_bases if config.retrieval.vector_device != "cpu" else 0)
    assert taken < total_bytes
    assert taken + split.other_bytes <= total_bytes
    if config.retrieval.gpu_memory_limit_bytes:
        assert limit == config.retrieval.gpu_memory_limit_bytes
    elif config.retrieval.vector_device != "cpu":
        assert limit > 0
    if config.serving.gpu_memory_utilization is not None:
        assert share == config.serving.gpu_memory_utilization


def test_engine_is_told_a_share_in_place_of_its_own_default() -> None:
    assert "gpu_memory_utilization" not in engine_arguments(ServingConfig(), "folder", on_gpu=True)
    sized = split_of(CONFIG, 80 * GIB).applied(CONFIG)
    arguments = engine_arguments(sized.serving, "folder", on_gpu=True)
    assert 0.5 < arguments["gpu_memory_utilization"] < 0.75


@pytest.mark.parametrize(
    "config",
    [
        configured(RetrievalConfig(gpu_memory_limit_bytes=12 * GIB)),
        configured(serving=ServingConfig(gpu_memory_utilization=0.9)),
    ],
)
def test_limits_that_do_not_fit_together_are_refused_with_the_remedy(config: GraftConfig) -> None:
    with pytest.raises(ConfigError, match=r"GPU of 24\.0 GiB.*lower retrieval\.gpu_memory_limit_bytes"):
        split_of(config, 24 * GIB)


def test_the_clusters_gpu_is_divided_and_a_cluster_without_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, home=tmp_path)
    monkeypatch.setattr(cuda_driver, "total_bytes", lambda _: 80 * GIB)
    monkeypatch.setattr(gpu_split, "num_gpus", lambda: 0.0)
    assert split_of_cluster(config) is None
    monkeypatch.setattr(gpu_split, "num_gpus", lambda: 1.0)
    assert split_of_cluster(config) == split_of(config, 80 * GIB)


def test_the_hash_of_answers_does_not_depend_on_the_device() -> None:
    split = split_of(CONFIG, 80 * GIB)
    assert split.applied(CONFIG).hash != CONFIG.hash, "so the platform keeps the one it was given"
    platform = Platform(CONFIG, None, None)  # type: ignore[arg-type]
    assert platform.config.hash == CONFIG.hash


def test_doctor_says_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, home=tmp_path)
    monkeypatch.setattr(cuda_driver, "total_bytes", lambda _: 24 * GIB)
    finding = doctor._gpu_split(config)
    assert finding.verdict == "ok"
    assert finding.seen.startswith("24.0 GiB: model ")
    assert "index 2 x 3.0 GiB" in finding.seen
    monkeypatch.setattr(cuda_driver, "total_bytes", lambda _: 4 * GIB)
    assert doctor._gpu_split(config).verdict == "fail"
