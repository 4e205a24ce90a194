"""The package's names, its configurations as TOML, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import training.preference as package
from training.errors import ConfigError
from training.preference.grpo import GrpoConfig
from training.toml_config import from_table, load_toml

TOML = """
group_size = 4
beta = 0.01

[policy]
folder = "model"
lora = { rank = 8 }

[train]
steps = 100
batch_size = 16
save_every = 20

[rollout]
mode = "lexical"
limits = { max_turns = 4 }

[reward]
match = "f1"
searches = 0.05
"""


def test_public_names_are_true():
    assert sorted(package._HOMES) == package.__all__ == dir(package)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        package.Nothing  # noqa: B018


def test_importing_the_package_loads_no_torch():
    code = "import sys, training.preference; print([m for m in ('torch', 'trl', 'peft') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_configuration_is_read_from_toml(tmp_path: Path):
    path = tmp_path / "grpo.toml"
    path.write_text(TOML, encoding="utf-8")
    config = load_toml(GrpoConfig, path, ["train.seed=3"])
    assert config.policy.lora is not None
    assert (config.policy.lora.rank, config.train.seed, config.rollout.limits.max_turns) == (8, 3, 4)
    assert config.reward.weights == [1.0, 0.2, 0.2, -0.05]


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'group_size'"):
        from_table(GrpoConfig, {"group_sise": 4}, "test")
