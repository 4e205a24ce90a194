"""Copies in memory: the same suite on holders in this process and on holders in Ray actors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch

from training.checkpoints.peer_memory import CopyLabel, HolderClient, MemoryHolder, PeerMemory, Peers
from training.checkpoints.ray_holders import start_ray_holders
from training.errors import CheckpointError
from training.joint.parallel import torchrun_ranks

StartHolders = Callable[[], list[HolderClient]]


@pytest.fixture(params=["here", "ray"])
def start_holders(request: pytest.FixtureRequest) -> Iterator[StartHolders]:
    started: list = []

    def start() -> list[HolderClient]:
        if request.param == "here":
            return [MemoryHolder("a")]
        started.extend(start_ray_holders())
        return list(started)

    if request.param == "ray":
        request.getfixturevalue("ray_session")
    yield start
    for holder in started:
        holder.close()


@pytest.fixture
def group() -> Iterator[None]:
    with torchrun_ranks():
        yield


def state(value: float) -> dict:
    weight = torch.full((3, 2), value)
    return {
        "model": {"weight": weight, "bias": torch.tensor(value)},
        "optimizers": {"state": {"weight": {"step": torch.tensor(value), "betas": (0.9, value)}}},
        "lr": value,
    }


def memory(holders: list[HolderClient], fingerprint: str = "f") -> PeerMemory:
    return PeerMemory(Peers(tuple(holders), holders[0].node), fingerprint)


def test_a_restarted_rank_goes_on_from_the_newest_copy(group: None, start_holders: StartHolders):
    holders = start_holders()
    before = memory(holders)
    for step in (1, 2, 3):
        tensors = state(float(step))
        before.begin(step, tensors, {"at": step})
        tensors["model"]["weight"].add_(100.0)  # Training goes on while the copy is sent.
    before.wait()
    assert before.kept_facts() == [{"at": 2}, {"at": 3}]
    after, tensors = memory(holders), state(0.0)
    weight = tensors["model"]["weight"]
    assert after.newest() == 3
    assert after.load(3, tensors) == {"at": 3}
    assert torch.equal(weight, torch.full((3, 2), 3.0))
    assert tensors["model"]["bias"] == 3.0
    assert tensors["optimizers"]["state"]["weight"] == {"step": torch.tensor(3.0), "betas": (0.9, 3.0)}
    assert tensors["lr"] == 3.0
    assert after.kept_facts() == [{"at": 3}]


def test_a_run_that_comes_by_a_step_again_replaces_its_copy(group: None, start_holders: StartHolders):
    run = memory(start_holders())
    for step, value in ((1, 1.0), (2, 2.0), (1, 7.0)):
        run.begin(step, state(value), {})
    run.wait()
    tensors = state(0.0)
    run.load(1, tensors)
    assert tensors["lr"] == 7.0


def test_copies_of_another_run_are_not_seen(group: None, start_holders: StartHolders):
    holders = start_holders()
    run = memory(holders)
    run.begin(1, state(1.0), {})
    run.wait()
    assert memory(holders, "another").newest() is None
    with pytest.raises(CheckpointError, match="copy of step 1 of rank 0 is in no holder's memory"):
        memory(holders, "another").load(1, state(0.0))


def test_a_copy_of_other_tensors_is_refused(group: None, start_holders: StartHolders):
    holders = start_holders()
    run = memory(holders)
    run.begin(1, state(1.0), {})
    run.wait()
    other = state(0.0)
    other["model"]["weight"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"'model\.weight' is \[3, 2\], not \[5\]"):
        run.load(1, other)
    with pytest.raises(CheckpointError, match="'model' has other keys"):
        run.load(1, {**state(0.0), "model": {}})


def test_the_step_that_every_copy_has_and_no_more_than_two_are_kept(start_holders: StartHolders):
    (holder, *_) = start_holders()
    labels = [CopyLabel(step, 0, 1, "f") for step in range(4)]
    for label in labels:
        holder.put(label, torch.arange(4, dtype=torch.uint8).numpy())
    assert holder.labels(0) == labels[2:]
    assert holder.labels(1) == []
    assert holder.get(labels[3]).tolist() == [0, 1, 2, 3]
    with pytest.raises(KeyError):
        holder.get(labels[0])


def test_a_dead_holder_costs_its_copies_and_nothing_else(
    group: None, ray_session: None, caplog: pytest.LogCaptureFixture
):
    holders = start_ray_holders()
    run = memory(list(holders))
    run.begin(1, state(1.0), {})
    run.wait()
    for holder in holders:
        holder.close()
    with caplog.at_level(logging.WARNING):
        run.begin(2, state(2.0), {})
        run.wait()
        assert run.newest() is None
    assert "step 2 has no copy on" in caplog.text
    assert "are lost" in caplog.text
