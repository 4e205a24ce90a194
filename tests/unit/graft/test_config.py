from __future__ import annotations

import re
from pathlib import Path

import pytest

from graft.config import GraftConfig, ServerConfig, load_config
from graft.errors import ConfigError
from serving.types import KVReuse


def write(folder: Path, text: str) -> Path:
    path = folder / "graft.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_and_overrides_build_nested_config(tmp_path):
    path = write(tmp_path, "[server]\nport = 9000\n[agents]\nk_passages = 3\n")
    config = load_config(path, ["server.port=9001", "serving.model=some/model", "ray.address=none"])
    assert config.server.port == 9001
    assert config.agents.k_passages == 3
    assert config.serving.model == "some/model"
    assert config.ray.address is None


def test_a_file_turns_blending_on(tmp_path):
    path = write(
        tmp_path, '[serving]\nchunk_kv_bytes = 1048576\n[agents.reuse]\nmode = "blend"\nfirst_k = 8\n'
    )
    config = load_config(path, ["serving.blend_gate.window=4"])
    assert config.agents.reuse == KVReuse("blend", first_k=8)
    assert config.serving.chunk_kv_bytes == 1_048_576
    assert config.serving.blend_gate.window == 4


def test_file_in_current_folder_is_read(tmp_path, monkeypatch):
    write(tmp_path, "[server]\nport = 9002\n")
    monkeypatch.chdir(tmp_path)
    assert load_config().server.port == 9002


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[server]\nprot = 1\n", [], "unknown configuration key server.prot; did you mean server.port?"),
        ("zzz = 1\n", [], "unknown configuration key zzz; valid keys: home"),
        ("[server]\nport = 70000\n", [], "port must be in 0..65535, got 70000"),
        ("[server]\nport = 'x'\n", [], "server.port must be int, got 'x'"),
        ("[server]\ndrain_s = -1\n", [], "drain_s must be a number of seconds >= 0, got -1.0"),
        ("[server]\nport = true\n", [], "server.port must be int, got True"),
        ("server = 3\n", [], "server is a table"),
        ("not toml", [], "cannot be read as TOML"),
        ("", ["server.port"], "--set takes key=value"),
        ("", ["server.port.x=1", "server.port=2", "server.port.y=1"], "server"),
        (
            "[agents.reuse]\nmode = 'blnd'\n",
            [],
            "agents.reuse.mode must be one of exact, reorder, blend, got 'blnd'",
        ),
        (
            "[serving]\nchunk_kv_disk_bytes = 1\n",
            [],
            "and serving.chunk_kv_folder go together, got 1 and None",
        ),
        (
            "[serving]\nchunk_kv_bytes = 1\nchunk_kv_disk_bytes = 1\nchunk_kv_folder = 'chunks'\n",
            [],
            "serving.chunk_kv_folder must be an absolute path, got 'chunks'",
        ),
        (
            "[serving]\nchunk_kv_disk_bytes = 1\nchunk_kv_folder = '/chunks'\n",
            [],
            "set serving.chunk_kv_bytes above 0",
        ),
        (
            "[serving]\nchunk_kv_bytes = 1\nchunk_kv_codec = 'fine'\n",
            [],
            "serving.chunk_kv_codec is 'fine', but nothing is written to disk",
        ),
        ("[serving]\ndevice = 'tpu'\n", [], "serving.device must be one of auto, cpu, cuda, got 'tpu'"),
    ],
)
def test_mistake_is_named_with_remedy(tmp_path, text, overrides, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(path, overrides)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.toml does not exist"):
        load_config(tmp_path / "absent.toml")


def test_hash_changes_with_what_answers_depend_on_and_with_nothing_else(tmp_path):
    base = GraftConfig(home=tmp_path)
    assert base.hash == GraftConfig(home=tmp_path / "x", server=ServerConfig(port=1)).hash
    assert base.hash != load_config(overrides=["retrieval.alpha=0.25"]).hash
