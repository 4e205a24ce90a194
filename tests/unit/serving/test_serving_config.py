"""Settings, the engine's environment, model files and the package's front."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import build_tiny_model

import serving
from serving.config import ServingConfig, usable_cores
from serving.environment import engine_environment
from serving.errors import ModelUnusable, Overloaded
from serving.weights import BUNDLED_FOLDER, HashCache, model_folder, model_hash, tokenizer_hash

HEAVY = ("torch", "vllm", "ray", "transformers", "langchain_core", "faiss", "gradio")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": " "}, "serving.model is empty"),
        ({"max_model_len": 63}, r"max_model_len must be in \[64, 1048576\], got 63"),
        ({"block_size": 48}, "multiple of 32, got 48"),
        ({"block_size": 0}, "multiple of 32, got 0"),
        ({"kv_cache_bytes": 1}, "kv_cache_bytes must be in"),
        ({"gpu_memory_utilization": 1.0}, r"gpu_memory_utilization must be in \[0.05, 0.98\], got 1.0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be in"),
        ({"max_queued_requests": -1}, "max_queued_requests must be in"),
        ({"num_threads": 0}, "num_threads must be in"),
        ({"default_deadline_s": 0.0}, "default_deadline_s must be > 0"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"dtype": "int8"}, "dtype must be one of"),
        (
            {
                "chunk_kv_codec": "int8",
                "chunk_kv_bytes": 1,
                "chunk_kv_disk_bytes": 1,
                "chunk_kv_folder": "/chunks",
            },
            "chunk_kv_codec must be one of none, fine, medium, coarse, got 'int8'",
        ),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_bounds(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServingConfig(**settings)  # type: ignore[arg-type]


def test_the_default_takes_every_usable_core() -> None:
    assert ServingConfig().engine_threads == usable_cores() >= 1
    assert ServingConfig(num_threads=3).engine_threads == 3


def test_the_environment_keeps_idle_threads_passive_and_engines_unbound() -> None:
    environment = engine_environment(ServingConfig(num_threads=3))
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment


def test_the_environment_keeps_the_users_offline_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert engine_environment(ServingConfig())["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert engine_environment(ServingConfig())["HF_HUB_OFFLINE"] == "0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_tiny_model(tmp_path / "model")


def test_a_folder_is_a_model(folder: Path) -> None:
    assert model_folder(str(folder)) == folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_with_a_remedy(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelUnusable, match=f"{name.split('.')[-1]}.*save"):
        model_folder(str(folder))


def test_an_unknown_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnusable, match="graft-mini"):
        model_folder("nobody/no-such-model")


@pytest.mark.skipif(BUNDLED_FOLDER.is_dir(), reason="graft-mini is in this checkout")
def test_a_checkout_without_the_bundled_model_says_so() -> None:
    with pytest.raises(ModelUnusable, match="not in this checkout"):
        model_folder("graft-mini")


def test_hashes_change_with_the_files_and_only_with_them(folder: Path, tmp_path: Path) -> None:
    cache = HashCache(tmp_path / "cache" / "hashes.json")
    first = model_hash(folder, cache)
    assert model_hash(folder, cache) == first == model_hash(folder, HashCache(tmp_path / "other.json"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    assert model_hash(folder, cache) != first
    expected = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()[:16]
    assert tokenizer_hash(folder) == expected


def test_an_unchanged_file_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    cache = HashCache(tmp_path / "hashes.json")
    weights = folder / "model.safetensors"
    digest = cache.hash_of(weights)
    status = weights.stat()
    weights.write_bytes(bytes(status.st_size))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert HashCache(tmp_path / "hashes.json").hash_of(weights) == digest


def test_a_damaged_or_unwritable_cache_costs_time_only(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "hashes.json"
    damaged.write_text("{", encoding="utf-8")
    unwritable = HashCache(Path("/proc/no-such-folder/hashes.json"))
    weights = folder / "model.safetensors"
    assert HashCache(damaged).hash_of(weights) == unwritable.hash_of(weights)


def test_overloaded_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(Overloaded("full", 2.5)))
    assert str(error) == "full"
    assert error.retry_after_s == 2.5


def test_every_public_name_exists_and_has_one_home() -> None:
    assert sorted(serving.__all__) == serving.__all__
    for name in serving.__all__:
        assert getattr(serving, name).__module__.startswith("serving."), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = serving.no_such_name


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, serving, serving.config, serving.types, serving.prompt, serving.generator; " + (
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("field", dataclasses.fields(ServingConfig), ids=lambda field: field.name)
def test_every_setting_is_documented(field: dataclasses.Field[object]) -> None:
    source = Path(serving.config.__file__).read_text(encoding="utf-8")
    after = source.split(f"\n    {field.name}: ", 1)[1]
    assert after.splitlines()[1].strip().startswith('"""')
