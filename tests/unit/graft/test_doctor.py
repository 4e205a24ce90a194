from __future__ import annotations

import socket
from dataclasses import replace

from graft.config import GraftConfig, ServerConfig
from graft.doctor import examine, port_error
from serving.config import ServingConfig


def findings(config: GraftConfig) -> dict:
    return {item.check: item for item in examine(config)}


def test_every_check_that_is_not_ok_says_what_to_do(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = GraftConfig(
            home=tmp_path / "not" / "made",
            server=ServerConfig(port=taken.getsockname()[1]),
            serving=ServingConfig(model="some/model"),
        )
        seen = findings(config)
    assert seen["port"].verdict == "fail"
    assert "--set server.port=" in seen["port"].remedy
    assert seen["model"].verdict == "warn"
    for item in seen.values():
        assert item.seen
        assert bool(item.remedy) == (item.verdict != "ok"), item


def test_model_folder_without_config_fails(tmp_path):
    config = GraftConfig(home=tmp_path, serving=ServingConfig(model=str(tmp_path)))
    assert findings(config)["model"].verdict == "fail"


def test_examining_changes_nothing(tmp_path):
    config = GraftConfig(home=tmp_path / "home", server=ServerConfig(port=0))
    examine(replace(config))
    assert not (tmp_path / "home").exists()


def test_free_port_has_no_error():
    assert port_error("127.0.0.1", 0) == ""
