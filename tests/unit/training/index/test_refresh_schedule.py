"""The active version is a function of the step, and never older than the bound."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import CheckpointError, ConfigError
from training.index.schedule import RefreshConfig, RefreshPlan

STEPS = st.integers(0, 10_000)


@st.composite
def configs(draw: st.DrawFn) -> RefreshConfig:
    interval = draw(st.integers(1, 300))
    delay = draw(st.integers(0, interval))
    return RefreshConfig("async" if delay else "blocking", interval_steps=interval, delay_steps=delay)


@st.composite
def adaptive_configs(draw: st.DrawFn) -> RefreshConfig:
    low, middle, high = sorted(draw(st.lists(st.integers(1, 40), min_size=3, max_size=3)))
    delay = draw(st.integers(0, low))
    mode = "async" if delay else "blocking"
    return RefreshConfig(mode, middle, delay, min_interval_steps=low, max_interval_steps=high)


@given(configs(), STEPS)
def test_active_version_was_snapshotted_a_delay_before(config, step):
    plan = RefreshPlan.start(config)
    version = plan.version(plan.active(step))
    assert version.activation_step <= step
    assert version.number == 0 or version.snapshot_step + config.delay_steps <= step


@given(configs(), STEPS)
def test_staleness_never_exceeds_the_bound(config, step):
    plan = RefreshPlan.start(config)
    assert 0 <= plan.staleness(step) <= plan.max_staleness == config.interval_steps + config.delay_steps - 1


@given(configs())
def test_bound_is_reached_so_it_is_not_loose(config):
    plan = RefreshPlan.start(config)
    seen = {plan.staleness(step) for step in range(3 * config.interval_steps + config.delay_steps)}
    assert max(seen) == plan.max_staleness


@given(configs(), STEPS)
def test_versions_follow_each_other_and_one_is_pending_at_most(config, step):
    plan = RefreshPlan.start(config)
    assert plan.active(step) <= plan.active(step + 1) <= plan.active(step) + 1
    assert 0 <= plan.snapshotted(step) - plan.active(step) <= 1


@given(configs(), STEPS)
def test_due_steps_are_those_of_the_version(config, step):
    plan = RefreshPlan.start(config)
    snapshot, activation = plan.snapshot_due(step), plan.activation_due(step)
    assert snapshot is None or plan.version(snapshot).snapshot_step == step
    assert activation is None or plan.version(activation).activation_step == step
    is_snapshot_step = step % config.interval_steps == 0
    assert (snapshot is not None) == is_snapshot_step


@given(adaptive_configs(), st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adaptive_plan_keeps_the_bound_whatever_is_decided(config, overlaps):
    plan = RefreshPlan.start(config)
    decisions = iter(overlaps)
    actives = []
    for step in range(2000):
        number = plan.activation_due(step)
        if number is not None and number == plan.decided_versions[-1].number:
            overlap = next(decisions, None)
            if overlap is None:
                break
            plan = plan.decided(step, overlap)
        assert 0 <= plan.staleness(step) <= plan.max_staleness
        assert 0 <= plan.snapshotted(step) - plan.active(step) <= 1
        actives.append(plan.active(step))
    assert actives == sorted(actives)
    intervals = [
        later.snapshot_step - earlier.snapshot_step for earlier, later in pairwise(plan.decided_versions)
    ]
    assert all(config.shortest_steps <= steps <= config.longest_steps for steps in intervals)


def test_interval_halves_on_drift_doubles_without_and_stays_between():
    config = RefreshConfig("async", 40, 10, min_interval_steps=15, max_interval_steps=100)
    plan = RefreshPlan.start(config)

    def next_interval(overlap: float) -> int:
        last = plan.decided_versions[-1]
        return (
            plan.decided(last.activation_step, overlap).decided_versions[-1].snapshot_step
            - last.snapshot_step
        )

    assert next_interval(0.89) == 20
    assert next_interval(0.95) == 40
    assert next_interval(0.99) == 80
    for _ in range(3):
        plan = plan.decided(plan.decided_versions[-1].activation_step, 0.0)
    assert next_interval(0.0) == 15
    for _ in range(6):
        plan = plan.decided(plan.decided_versions[-1].activation_step, 1.0)
    assert next_interval(1.0) == 100


def test_interval_is_decided_at_an_activation_only():
    plan = RefreshPlan.start(RefreshConfig("async", 40, 10, min_interval_steps=20, max_interval_steps=80))
    with pytest.raises(ValueError, match="next one is at step 50, not 49"):
        plan.decided(49, 0.5)
    with pytest.raises(ValueError, match="no interval was decided"):
        plan.active(51)


@pytest.mark.parametrize("mode", ["frozen", "query_side"])
@given(step=STEPS)
def test_index_of_a_tower_that_does_not_train_is_never_stale(mode, step):
    plan = RefreshPlan.start(RefreshConfig(mode))
    assert (plan.active(step), plan.staleness(step), plan.max_staleness) == (0, 0, 0)
    assert plan.snapshot_due(step) == (0 if step == 0 else None)


def test_plan_survives_json():
    plan = RefreshPlan.start(RefreshConfig("async", 40, 10, min_interval_steps=20, max_interval_steps=80))
    plan = plan.decided(50, 0.99)
    assert RefreshPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(CheckpointError, match="cannot be read"):
        RefreshPlan.from_json({"config": {"mode": "often"}, "decided_versions": []})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval_steps": 0}, "at least 1"),
        ({"interval_steps": 10, "delay_steps": 11}, "delay_steps=11"),
        ({"interval_steps": 10, "delay_steps": 0}, "delay_steps=0"),
        ({"mode": "blocking", "delay_steps": 3}, "set delay_steps=0"),
        ({"mode": "sometimes"}, "sometimes"),
        ({"min_interval_steps": 5}, "set together"),
        ({"interval_steps": 10, "min_interval_steps": 20, "max_interval_steps": 30}, "min_interval_steps=20"),
        ({"early_overlap": 0.99}, "early_overlap"),
        ({"probe_k": 30}, "probe_depth=20"),
    ],
)
def test_config_that_cannot_be_planned_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        RefreshConfig(**values)
