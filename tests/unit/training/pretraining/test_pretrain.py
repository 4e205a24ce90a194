from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from training.errors import CheckpointError, ConfigError
from training.pretrain import CALIBRATION_STEPS, Pretrainer, RunOptions
from training.pretraining.config import PretrainConfig
from training.pretraining.mixture import Library, StageConfig
from training.pretraining.model import ModelConfig
from training.pretraining.optimizer import OptimizerConfig, orthogonalize, schedule_factor

CONFIGS = Path(__file__).parents[4] / "training" / "configs"


def micro(steps: tuple[int, int] = (8, 6), **optimizer: object) -> PretrainConfig:
    mixture = {"lookup": 1.0, "statements": 1.0, "text": 0.3}
    stages = tuple(
        StageConfig(
            name=f"s{index}",
            steps=count,
            share=0.5,
            rows=4,
            row_tokens=192,
            passages=(1, 2),
            max_chars=(60, 120),
            questions=(2, 4),
            unanswerable=0.2,
            mixture=mixture,
        )
        for index, count in enumerate(steps)
    )
    model = ModelConfig(vocab_size=512, hidden_dim=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32,
                        mlp_dim=96, max_tokens=256, induction_init=False)  # fmt: skip
    settings = {"kind": "adamw", "matrix_lr": 0.003, "warmup_steps": 2, **optimizer}
    return PretrainConfig(stages=stages, seed=11, model=model, optimizer=OptimizerConfig(**settings))


def train(config: PretrainConfig, library: Library, out: Path, **options: object) -> Pretrainer:
    torch.set_num_threads(1)
    run = Pretrainer(config, RunOptions(out, **options), library)
    run.run()
    return run


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [3, 10])
def test_a_resumed_run_ends_with_bit_identical_weights(
    library: Library, tmp_path: Path, kind: str, stop: int
):
    config = micro(kind=kind)
    straight = train(config, library, tmp_path / "straight")
    train(config, library, tmp_path / "broken", stop_after=stop)
    resumed = train(config, library, tmp_path / "broken")
    assert resumed.progress.step == straight.progress.step == 14
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_loss_falls_on_a_micro_model(library: Library, tmp_path: Path):
    train(micro((80, 40)), library, tmp_path, log_every=10)
    losses = [json.loads(line)["answer_loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[0] > 4.5
    assert losses[-1] < 0.75 * losses[0]


def test_a_checkpoint_of_another_configuration_is_refused(library: Library, tmp_path: Path):
    train(micro(), library, tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match="use the same --config"):
        train(micro(matrix_lr=0.004), library, tmp_path)


def test_a_wall_clock_limit_fixes_steps_that_repeat_the_run_exactly(library: Library, tmp_path: Path):
    limited = train(micro(), library, tmp_path / "limited", minutes=0.12)
    plan = json.loads((tmp_path / "limited" / "plan.json").read_text())["steps"]
    assert sum(plan) == limited.progress.step
    assert min(plan) > CALIBRATION_STEPS
    repeated = train(micro(tuple(plan)), library, tmp_path / "repeated")
    for name, tensor in limited.model.state_dict().items():
        assert torch.equal(tensor, repeated.model.state_dict()[name]), name


def test_cosine_needs_a_number_of_steps(library: Library, tmp_path: Path):
    with pytest.raises(ConfigError, match="steps instead of --minutes"):
        Pretrainer(micro(schedule="cosine"), RunOptions(tmp_path, minutes=1.0), library)


def test_wsd_warms_up_stays_and_falls_to_zero():
    config = OptimizerConfig(warmup_steps=10, schedule="wsd")
    factors = [schedule_factor(config, step=step, decay_start=60, total=100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:60] == [1.0] * 51
    assert factors[80] == pytest.approx(0.5)
    assert factors[100] == 0.0


def test_cosine_is_half_way_down_in_the_middle():
    config = OptimizerConfig(warmup_steps=1, schedule="cosine")
    assert schedule_factor(config, step=50, decay_start=0, total=100) == pytest.approx(0.5)


def test_orthogonalize_pulls_singular_values_towards_one():
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("graft-mini-*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path):
    config = PretrainConfig.from_toml(path)
    assert max(stage.row_tokens for stage in config.stages) <= config.model.max_tokens


def test_an_unknown_key_names_the_nearest_one(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text("sed = 1\nstages = []\n")
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        PretrainConfig.from_toml(path)


def test_shares_must_add_up(tmp_path: Path):
    stage = micro().stages[0]
    with pytest.raises(ConfigError, match="add up to 1"):
        PretrainConfig(stages=(stage,))
