"""A checkpoint is whole or absent, verified when it is read, and never sees what came after it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from training.checkpoints.run_checkpoints import RunCheckpoints
from training.errors import CheckpointError, OutOfResources

pytestmark = pytest.mark.usefixtures("process_group")


def _tensors(value: float) -> dict[str, object]:
    return {"model": {"w": torch.full((4, 3), value)}, "optimizers": {"w": {"step": torch.tensor(value)}}}


def _open(folder: Path, **changed) -> RunCheckpoints:
    return RunCheckpoints(folder, **{"fingerprint": "abc", "keep": 2, **changed})


def test_saved_state_comes_back(tmp_path: Path):
    _open(tmp_path).save(10, _tensors(1.5), {"seed": 7})
    checkpoints, tensors = _open(tmp_path), _tensors(0.0)
    saved = checkpoints.newest()
    assert saved is not None
    assert (saved.step, saved.world_size, saved.facts) == (10, 1, {"seed": 7})
    checkpoints.load(saved, tensors)
    assert torch.equal(tensors["model"]["w"], torch.full((4, 3), 1.5))
    assert float(tensors["optimizers"]["w"]["step"]) == 1.5
    assert (tmp_path / "LATEST").read_text() == "step-10"


def test_background_save_does_not_see_the_next_step(tmp_path: Path):
    checkpoints, tensors = _open(tmp_path), {"w": torch.ones(400_000)}
    checkpoints.begin(1, tensors, {})
    tensors["w"].fill_(9.0)
    checkpoints.wait()
    saved = checkpoints.newest()
    assert saved is not None
    checkpoints.load(saved, tensors)
    assert torch.equal(tensors["w"], torch.ones(400_000))


def test_first_checkpoint_is_none(tmp_path: Path):
    assert _open(tmp_path / "new").newest() is None


def test_newest_and_best_are_kept(tmp_path: Path):
    checkpoints = _open(tmp_path)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, _tensors(step), {"step": step})
        if step == 1:
            checkpoints.mark_best(1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-1", "step-3", "step-4"]
    assert sorted(facts["step"] for facts in checkpoints.kept_facts()) == [1, 3, 4]


def test_half_written_checkpoint_is_not_there(tmp_path: Path):
    _open(tmp_path).save(1, _tensors(1), {})
    (tmp_path / "step-1").rename(tmp_path / "step-2.partial")
    _open(tmp_path).save(1, _tensors(3), {})
    reopened = _open(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    saved = reopened.newest()
    assert saved is not None
    assert saved.step == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_damaged_checkpoint_is_left_out_and_the_one_before_is_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    checkpoints = _open(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, _tensors(step), {})
    (file,) = (tmp_path / "step-2").glob("*.distcp")
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "cut":
        file.write_bytes(content[:100])
    elif damage == "remove":
        file.unlink()
    else:
        (tmp_path / "step-2" / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        saved = checkpoints.newest()
    assert saved is not None
    assert saved.step == 1
    assert "step-2" in caplog.text
    (file,) = (tmp_path / "step-1").glob("*.distcp")
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        checkpoints.newest()


def test_checkpoint_of_another_configuration_is_refused(tmp_path: Path):
    _open(tmp_path).save(1, _tensors(1), {})
    with pytest.raises(CheckpointError, match="another configuration"):
        _open(tmp_path, fingerprint="other").newest()


def test_checkpoint_of_another_model_is_refused(tmp_path: Path):
    checkpoints = _open(tmp_path)
    checkpoints.save(1, _tensors(1), {})
    saved = checkpoints.newest()
    assert saved is not None
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoints.load(saved, {"model": {"w": torch.zeros(5, 3)}})


@pytest.mark.parametrize("how", ["save", "begin"])
def test_full_disk_leaves_the_checkpoint_before(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch):
    checkpoints = _open(tmp_path)
    checkpoints.save(1, _tensors(1), {})

    def no_room(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", no_room)
    if how == "begin":
        checkpoints.begin(2, _tensors(2), {})
        with pytest.raises(OutOfResources, match=r"is full.*step 2"):
            checkpoints.wait()
    else:
        with pytest.raises(OutOfResources, match=r"is full.*step 2"):
            checkpoints.save(2, _tensors(2), {})
    monkeypatch.undo()
    saved = _open(tmp_path).newest()
    assert saved is not None
    assert saved.step == 1
    assert not list(tmp_path.glob("*.partial"))
