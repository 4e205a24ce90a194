from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import CheckpointError, ConfigError
from training.losses.agreement import entropy_share
from training.losses.passage_distribution import passage_log_probs
from training.losses.temperature import (
    EntropyControlledTemperature,
    FixedTemperature,
    temperature_for_entropy,
)


def likelihoods(seed: int, *, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) * spread


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.95), st.floats(1e-2, 1e2))
def test_the_teacher_gets_the_wanted_entropy_at_any_spread(seed: int, share: float, spread: float):
    ell = likelihoods(seed, spread=spread)
    control = EntropyControlledTemperature(entropy_share=share)
    tau = control.update(ell)
    found = entropy_share(passage_log_probs(ell.double(), temperature=tau)).mean()
    assert float(found) == pytest.approx(share, abs=1e-6)


def test_padding_and_questions_without_signal_do_not_move_it():
    ell = likelihoods(0)
    plain = EntropyControlledTemperature().update(ell)
    padded = torch.cat((ell, torch.full((6, 2), 99.0)), dim=1)
    padded = torch.cat((padded, torch.full((3, 10), -1.0)))
    mask = torch.zeros(9, 10, dtype=torch.bool)
    mask[:, :8] = True
    assert EntropyControlledTemperature().update(padded, mask) == pytest.approx(plain, rel=1e-12)


def test_a_batch_without_signal_changes_nothing():
    control = EntropyControlledTemperature(initial_temperature=0.3)
    assert control.update(torch.zeros(4, 5)) == pytest.approx(0.3)
    assert control.state_dict()["num_updates"] == 0


def test_the_first_update_takes_what_it_finds_and_later_ones_smooth_its_logarithm():
    control = EntropyControlledTemperature(decay=0.75, initial_temperature=50.0)
    first = EntropyControlledTemperature().update(likelihoods(1))
    second = EntropyControlledTemperature().update(likelihoods(2, spread=3.0))
    assert control.update(likelihoods(1)) == first
    wanted = math.exp(0.75 * math.log(first) + 0.25 * math.log(second))
    assert control.update(likelihoods(2, spread=3.0)) == pytest.approx(wanted, rel=1e-12)


def test_a_share_out_of_reach_gives_the_nearer_bound():
    tied = torch.tensor([[0.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    assert temperature_for_entropy(tied, None, 0.5, (1e-3, 1e3)) == pytest.approx(1e-3)


def test_a_resumed_control_goes_on_bit_identically():
    whole, before = EntropyControlledTemperature(), EntropyControlledTemperature()
    for seed in range(3):
        whole.update(likelihoods(seed))
        before.update(likelihoods(seed))
    after = EntropyControlledTemperature()
    after.load_state_dict(before.state_dict())
    assert after.temperature == before.temperature
    assert after.update(likelihoods(3)) == whole.update(likelihoods(3))
    assert after.state_dict() == whole.state_dict()


def test_a_state_of_another_kind_is_refused():
    control, fixed = EntropyControlledTemperature(), FixedTemperature(0.1)
    with pytest.raises(CheckpointError, match="not of an entropy-controlled"):
        control.load_state_dict(fixed.state_dict())
    with pytest.raises(CheckpointError, match="resume with the configuration of the run"):
        fixed.load_state_dict(FixedTemperature(0.2).state_dict())
    fixed.load_state_dict(fixed.state_dict())
    assert fixed.update(likelihoods(0)) == 0.1


@pytest.mark.parametrize(
    "setting",
    [
        {"entropy_share": 0.0},
        {"entropy_share": 1.0},
        {"decay": 1.0},
        {"decay": -0.1},
        {"initial_temperature": 1e5},
        {"min_temperature": 0.0},
        {"max_temperature": math.inf},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        EntropyControlledTemperature(**setting)
    with pytest.raises(ConfigError, match="teacher_temperature"):
        FixedTemperature(0.0)
