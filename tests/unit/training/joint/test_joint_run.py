"""A joint run: it learns, repeats exactly, resumes exactly, and stops before it does harm."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from training.checkpoints.peer_memory import MemoryHolder, Peers
from training.checkpoints.run_checkpoints import RunCheckpoints
from training.errors import CheckpointError, ConfigError, DataError, NumericsError
from training.index.schedule import RefreshConfig
from training.joint.config import (
    CheckpointConfig,
    EncoderConfig,
    EvaluationConfig,
    JointConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    ReaderConfig,
    SearchConfig,
)
from training.joint.parallel import Ranks
from training.joint.run import build_model, load_encoder, run_fingerprint, run_joint
from training.joint.trainer import RunResult, Watch, load_weights
from training.types import TrainingQuestion, TrainingSet

pytestmark = pytest.mark.usefixtures("process_group")

STEPS = 8


@pytest.fixture
def config(tiny_encoder: Path, tiny_reader: Path) -> JointConfig:
    return JointConfig(
        seed=3,
        encoder=EncoderConfig(model=str(tiny_encoder), max_passage_tokens=64),
        reader=ReaderConfig(model=str(tiny_reader)),
        search=SearchConfig(k=3, rerank=2),
        refresh=RefreshConfig(mode="async", interval_steps=3, delay_steps=2),
        optim=OptimConfig(steps=STEPS, batch_questions=4, encoder_lr=1e-3, reader_lr=1e-3, warmup_steps=1),
        checkpoint=CheckpointConfig(every_steps=3),
        evaluation=EvaluationConfig(max_new_tokens=4),
    )


def _weights(folder: Path, step: int = STEPS) -> str:
    digest = hashlib.sha256()
    for path in sorted((folder / "checkpoints" / f"step-{step}").glob("*.distcp")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _log(folder: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def _run(config: JointConfig, data: TrainingSet, folder: Path, **asked) -> RunResult:
    return run_joint(config, data, folder, **asked)


def test_two_runs_of_one_configuration_are_bit_identical(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    for name in ("one", "two"):
        result = _run(config, lookup_set, tmp_path / name, held_out=lookup_set)
        assert (result.steps, result.is_complete) == (STEPS, True)
    assert _log(tmp_path / "one") == _log(tmp_path / "two")
    assert _log(tmp_path / "one", "evaluations") == _log(tmp_path / "two", "evaluations")
    assert _weights(tmp_path / "one") == _weights(tmp_path / "two")
    assert [line["index/staleness"] for line in _log(tmp_path / "one")] == [0, 1, 2, 3, 4, 2, 3, 4]


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_stopped_run_resumes_to_the_same_weights_and_log(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path, stop_after: int
):
    _run(config, lookup_set, tmp_path / "whole", held_out=lookup_set)
    done: list[int] = []
    watch = Watch(on_step=lambda step, _: done.append(step), should_stop=lambda: len(done) == stop_after)
    stopped = _run(config, lookup_set, tmp_path / "cut", held_out=lookup_set, watch=watch)
    assert (stopped.steps, stopped.is_complete, stopped.after) == (stop_after, False, None)
    resumed = _run(config, lookup_set, tmp_path / "cut", held_out=lookup_set)
    assert (resumed.steps, resumed.is_complete) == (STEPS, True)
    assert resumed.before is not None
    assert _log(tmp_path / "cut") == _log(tmp_path / "whole")
    assert _log(tmp_path / "cut", "evaluations") == _log(tmp_path / "whole", "evaluations")
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")


def _crash_after(steps: int) -> Watch:
    """Return a watch under which a run dies, without a chance to save."""

    def on_step(step: int, metrics: dict[str, float]) -> None:
        if step == steps - 1:
            raise KeyboardInterrupt

    return Watch(on_step=on_step)


def test_crashed_run_goes_on_from_the_newest_copy_in_memory(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    _run(config, lookup_set, tmp_path / "whole")
    kept = replace(config, checkpoint=CheckpointConfig(every_steps=100, memory_every_steps=2))
    peers = Peers((MemoryHolder("a"),), "a")
    with pytest.raises(KeyboardInterrupt):
        _run(kept, lookup_set, tmp_path / "cut", peers=peers, watch=_crash_after(6))
    done: list[int] = []
    watch = Watch(on_step=lambda step, _: done.append(step))
    assert _run(kept, lookup_set, tmp_path / "cut", peers=peers, watch=watch).is_complete
    assert done == [4, 5, 6, 7]  # The copy of step 6 was due after the crash.
    assert _log(tmp_path / "cut") == _log(tmp_path / "whole")
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")


def test_whichever_is_newer_is_resumed_from(config: JointConfig, lookup_set: TrainingSet, tmp_path: Path):
    saved = CheckpointConfig(every_steps=3, asynchronous=False, memory_every_steps=4)
    kept = replace(config, checkpoint=saved)
    peers = Peers((MemoryHolder("a"),), "a")
    for steps, goes_on_from in ((6, 4), (8, 6)):
        with pytest.raises(KeyboardInterrupt):
            _run(kept, lookup_set, tmp_path, peers=peers, watch=_crash_after(steps))
        done: list[int] = []
        watch = Watch(
            on_step=lambda step, _, done=done: done.append(step),
            should_stop=lambda done=done: bool(done),
        )
        _run(kept, lookup_set, tmp_path, peers=peers, watch=watch)
        assert done == [goes_on_from]


def test_copies_in_memory_need_processes_that_outlive_the_run(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    kept = replace(config, checkpoint=CheckpointConfig(memory_every_steps=1))
    with pytest.raises(ConfigError, match=r"memory_every_steps needs processes that outlive the ranks"):
        _run(kept, lookup_set, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_adafactor_keeps_little_and_resumes_exactly(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    config = replace(config, optim=replace(config.optim, kind="adafactor"))
    _run(config, lookup_set, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(config, lookup_set, tmp_path / "cut", watch=_crash_after(6))
    _run(config, lookup_set, tmp_path / "cut")
    assert _log(tmp_path / "cut") == _log(tmp_path / "whole")
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")
    held: dict[str, int] = {"model": 0, "optimizers": 0}
    stored = FileSystemReader(tmp_path / "whole" / "checkpoints" / f"step-{STEPS}").read_metadata()
    for name, tensor in stored.state_dict_metadata.items():
        if isinstance(tensor, TensorStorageMetadata):
            held[name.partition(".")[0]] += tensor.size.numel()
    assert 0 < held["optimizers"] < 0.2 * held["model"]
    assert _log(tmp_path / "whole")[-1]["loss/reader"] < _log(tmp_path / "whole")[0]["loss/reader"]
    with pytest.raises(ConfigError, match="which FSDP2 cuts"):
        _run(config, lookup_set, tmp_path / "shared", sharding="fsdp2")


def test_offloaded_reader_of_one_rank_learns_what_a_whole_one_does(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    _run(config, lookup_set, tmp_path / "whole")
    _run(config, lookup_set, tmp_path / "offloaded", sharding="fsdp2_offload")
    for whole, offloaded in zip(_log(tmp_path / "whole"), _log(tmp_path / "offloaded"), strict=True):
        assert offloaded["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    with pytest.raises(ConfigError, match="needs more than one rank"):
        _run(config, lookup_set, tmp_path / "shared", sharding="fsdp2")


def test_index_is_encoded_in_the_precision_of_training(config: JointConfig, lookup_set: TrainingSet):
    texts = [passage.full_text for passage in lookup_set.passages]
    full, half = (
        load_encoder(replace(config, optim=replace(config.optim, dtype=dtype)))(Path(config.encoder.model))
        for dtype in ("float32", "bfloat16")
    )
    full_ND, half_ND = full.encode(texts), half.encode(texts)
    assert half_ND.dtype == full_ND.dtype == np.float32
    assert not np.array_equal(full_ND, half_ND)
    assert ((full_ND * half_ND).sum(axis=1) > 0.99).all()


@pytest.mark.parametrize(
    "loss", ["pdist", "lsr", "emdr2_token", "emdr2_sequence", "rag_token", "rag_sequence", "loop"]
)
def test_every_retriever_loss_moves_the_retriever(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path, loss: str
):
    reader = replace(config.reader, form="concat" if loss == "loop" else "parallel")
    config = replace(
        config, reader=reader, loss=LossConfig(retriever=loss), optim=replace(config.optim, steps=2)
    )
    _run(config, lookup_set, tmp_path)
    log = _log(tmp_path)
    assert all(line["grad_norm/retriever"] > 0 for line in log)
    assert all(line["grad_norm/reader"] > 0 for line in log)
    assert {"loss/retriever", "loss/reader", "retriever/rank_correlation"} <= set(log[0])


def test_parts_of_a_step_change_nothing_but_rounding(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    config = replace(config, loss=LossConfig(contrastive_weight=0.5), optim=replace(config.optim, steps=3))
    _run(config, lookup_set, tmp_path / "whole")
    _run(replace(config, optim=replace(config.optim, accumulate=3)), lookup_set, tmp_path / "parts")
    for left, right in zip(_log(tmp_path / "whole"), _log(tmp_path / "parts"), strict=True):
        for name in ("loss", "loss/retriever", "loss/reader", "loss/contrastive", "grad_norm/retriever"):
            assert left[name] == pytest.approx(right[name], rel=2e-3), name


def test_shared_forward_equals_two_passes(config: JointConfig, lookup_set: TrainingSet, tmp_path: Path):
    config = replace(config, optim=replace(config.optim, steps=3))
    _run(config, lookup_set, tmp_path / "shared")
    _run(replace(config, loss=LossConfig(two_pass=True)), lookup_set, tmp_path / "two")
    for left, right in zip(_log(tmp_path / "shared"), _log(tmp_path / "two"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["grad_norm/retriever"] == pytest.approx(right["grad_norm/retriever"], rel=1e-4)


def test_gradcache_equals_the_plain_contrastive_loss(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    alone = replace(
        config,
        reader=ReaderConfig(),
        loss=LossConfig(retriever=None, contrastive_weight=1.0),
        optim=replace(config.optim, steps=3),
    )
    cached = replace(alone, loss=replace(alone.loss, contrastive_cache_rows=2))
    _run(alone, lookup_set, tmp_path / "plain")
    _run(cached, lookup_set, tmp_path / "cached")
    for left, right in zip(_log(tmp_path / "plain"), _log(tmp_path / "cached"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["grad_norm/retriever"] == pytest.approx(right["grad_norm/retriever"], rel=1e-4)


def test_contrastive_training_finds_more(config: JointConfig, lookup_set: TrainingSet, tmp_path: Path):
    config = replace(
        config,
        reader=ReaderConfig(),
        loss=LossConfig(retriever=None, contrastive_weight=1.0, contrastive_negatives=3),
        optim=replace(config.optim, steps=25, encoder_lr=3e-3, batch_questions=12),
    )
    result = _run(config, lookup_set, tmp_path, held_out=lookup_set)
    assert result.before is not None
    assert result.after is not None
    assert result.before.means()["recall@1"] < 0.7
    assert result.after.means()["recall@1"] > 0.9


@pytest.mark.parametrize(
    ("mode", "moved"), [("frozen", (False, False)), ("query_side", (True, False)), ("blocking", (True, True))]
)
def test_mode_decides_which_sides_move(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path, mode: str, moved: tuple[bool, bool]
):
    delay = {"delay_steps": 0} if mode == "blocking" else {}
    refresh = replace(config.refresh, mode=mode, **delay)
    config = replace(config, refresh=refresh, optim=replace(config.optim, steps=4))
    _run(config, lookup_set, tmp_path)
    fresh = build_model(config, lookup_set, Ranks())
    before = {side: fresh.encoder.embed(["a lighthouse"], side) for side in ("query", "passage")}
    checkpoints = RunCheckpoints(tmp_path / "checkpoints", fingerprint=run_fingerprint(config, lookup_set))
    assert load_weights(fresh, checkpoints) == 4
    after = {side: fresh.encoder.embed(["a lighthouse"], side) for side in ("query", "passage")}
    found = tuple(not torch.allclose(before[side], after[side], atol=1e-6) for side in ("query", "passage"))
    assert found == moved
    staleness = [line["index/staleness"] for line in _log(tmp_path)]
    assert staleness == ([0, 1, 2, 0] if mode == "blocking" else [0, 0, 0, 0])


def test_lora_trains_adapters_alone(config: JointConfig, lookup_set: TrainingSet, tmp_path: Path):
    lora = LoraConfig(rank=4)
    config = replace(
        config,
        encoder=replace(config.encoder, lora=lora),
        reader=replace(config.reader, lora=lora, checkpointing=True),
        optim=replace(config.optim, steps=4),
    )
    _run(config, lookup_set, tmp_path / "lora")
    sizes = [path.stat().st_size for path in (tmp_path / "lora").rglob("*.distcp")]
    assert max(sizes) < 1_000_000  # The base alone is several megabytes.
    assert all(line["grad_norm/retriever"] > 0 for line in _log(tmp_path / "lora"))


def test_checkpointing_changes_nothing(config: JointConfig, lookup_set: TrainingSet, tmp_path: Path):
    config = replace(config, optim=replace(config.optim, steps=2))
    saving = replace(
        config,
        encoder=replace(config.encoder, checkpointing=True),
        reader=replace(config.reader, checkpointing=True),
    )
    _run(config, lookup_set, tmp_path / "plain")
    _run(saving, lookup_set, tmp_path / "saving")
    for left, right in zip(_log(tmp_path / "plain"), _log(tmp_path / "saving"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-6)
        assert left["grad_norm/reader"] == pytest.approx(right["grad_norm/reader"], rel=1e-5)


def test_loss_that_is_not_finite_stops_before_a_weight_moves(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path, tiny_reader: Path
):
    broken = tmp_path / "reader"
    shutil.copytree(tiny_reader, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = replace(config, reader=replace(config.reader, model=str(broken)))
    with pytest.raises(NumericsError, match=r"no weight was moved.*'q\d+'"):
        _run(config, lookup_set, tmp_path / "run")
    assert _log(tmp_path / "run") == []


def test_another_configuration_does_not_take_up_the_run(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    short = replace(config, optim=replace(config.optim, steps=2))
    _run(short, lookup_set, tmp_path)
    with pytest.raises(CheckpointError, match="another configuration or other data"):
        _run(replace(short, seed=4), lookup_set, tmp_path)


def test_data_that_cannot_be_trained_on_is_refused(
    config: JointConfig, lookup_set: TrainingSet, tmp_path: Path
):
    with pytest.raises(DataError, match="0 questions"):
        _run(config, replace(lookup_set, questions=()), tmp_path)
    with pytest.raises(DataError, match=r"fewer than optim\.batch_questions"):
        _run(config, replace(lookup_set, questions=lookup_set.questions[:2]), tmp_path)
    with pytest.raises(DataError, match=r"fewer than search\.k=3"):
        _run(config, replace(lookup_set, passages=lookup_set.passages[:2]), tmp_path)
    unlabelled = replace(lookup_set, questions=(*lookup_set.questions[:3], TrainingQuestion("x", "Who?")))
    with pytest.raises(DataError, match="'x' has no answer"):
        _run(config, unlabelled, tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss": LossConfig(retriever="loop")}, "reader.form='concat'"),
        ({"reader": ReaderConfig()}, "needs a reader"),
        ({"loss": LossConfig(retriever=None, reader_weight=0)}, "nothing to train"),
    ],
)
def test_contradictions_are_refused(config: JointConfig, change: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        replace(config, **change)
