"""Estimates of joint runs: every number against one worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tiny_encoder import build_tiny_encoder
from tiny_model import build_tiny_model

from training.calibration import OPERATORS, Calibration, Point, calibrate
from training.errors import CheckpointError, DataMissingError, OutOfResources
from training.estimate import Hardware, JointEstimator
from training.index.schedule import RefreshConfig
from training.joint.config import (
    EncoderConfig,
    JointConfig,
    LoraConfig,
    LossConfig,
    OptimConfig,
    ReaderConfig,
    SearchConfig,
)
from training.memory_estimate import GIB, estimate_memory
from training.model_shape import ModelShape
from training.run_shape import RunShape
from training.types import TrainingPassage, TrainingQuestion, TrainingSet
from training.workload import Lengths, Workload, measured_workload

HIDDEN, MLP, LAYERS, VOCAB = 8, 16, 2, 50
MATMUL = LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * MLP)
PARAMS = MATMUL + VOCAB * HIDDEN


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
    }
    (folder / "config.json").write_text(json.dumps({**sizes, "hidden_act": "gelu"}))
    tensors = {"embeddings.weight": np.zeros((VOCAB, HIDDEN), np.float32)}
    for layer in range(LAYERS):
        tensors |= {f"layer.{layer}.{i}": np.zeros((HIDDEN, HIDDEN), np.float32) for i in range(4)}
        tensors |= {f"layer.{layer}.up{i}": np.zeros((HIDDEN, MLP), np.float32) for i in range(2)}
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def config(model: Path) -> JointConfig:
    return JointConfig(
        encoder=EncoderConfig(model=str(model), max_query_tokens=10, max_passage_tokens=20),
        reader=ReaderConfig(model=str(model), max_passage_tokens=20, max_answer_tokens=6),
        search=SearchConfig(k=4, rerank=2),
        refresh=RefreshConfig(mode="async", interval_steps=10, delay_steps=5),
        loss=LossConfig(null_passage=False),
        optim=OptimConfig(steps=100, batch_questions=8),
    )


def calibration(per_s: float = 1e9) -> Calibration:
    return Calibration("hand", tuple(Point(name, per_s, 1.0) for name in OPERATORS))


def test_sizes_are_read_from_the_files_alone(model: Path):
    shape = ModelShape.of(model)
    assert (shape.num_params, shape.num_matmul_params) == (PARAMS, MATMUL)
    assert shape.forward_flops(30, 10) == 30 * (2 * MATMUL + 4 * LAYERS * HIDDEN * 10)
    assert shape.num_trained(None) == PARAMS
    assert shape.num_trained(LoraConfig(rank=3)) == LAYERS * (4 * 3 * 2 * HIDDEN + 2 * 3 * (HIDDEN + MLP))


@pytest.mark.parametrize("build", [build_tiny_encoder, build_tiny_model])
def test_sizes_of_real_files_are_those_of_the_loaded_model(build, tmp_path: Path):
    folder = build(tmp_path / "model")
    if build is build_tiny_model:
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(folder)
    else:
        from sentence_transformers import SentenceTransformer

        loaded = SentenceTransformer(str(folder), device="cpu")
    shape = ModelShape.of(folder)
    assert shape.num_params == sum(weight.numel() for weight in loaded.parameters())


def test_memory_of_a_rank_is_the_sum_of_its_parts(config: JointConfig):
    parts = estimate_memory(RunShape(config, Workload(num_passages=1_000, text_bytes=500)), 1).parts
    assert parts["weights"] == 4 * 2 * PARAMS
    assert parts["gradients"] == 4 * 2 * PARAMS
    assert parts["optimizer"] == 8 * 2 * PARAMS
    assert parts["index"] == 2 * 4 * 1_000 * HIDDEN
    assert parts["texts"] == 500
    block = 9 * HIDDEN + 2 * MLP
    encoder = 8 * (10 + 4 * 20) * LAYERS * block
    row_tokens = 64 + 10 + 6 + 20
    reader = 8 * 4 * row_tokens * LAYERS * block + 3 * 8 * 4 * 6 * VOCAB
    assert parts["activations"] == pytest.approx(1.2 * 4 * (encoder + reader))


def test_what_saves_memory_saves_it_where_it_should(config: JointConfig):
    def parts(config: JointConfig, *asked, **named) -> dict[str, float]:
        return dict(estimate_memory(RunShape(config, Workload(num_passages=1_000)), *asked, **named).parts)

    plain = parts(config, 4)
    shared = parts(config, 4, "fsdp2")
    assert shared["optimizer"] == 8 * PARAMS * (1 + 1 / 4)
    assert shared["weights"] == 4 * (PARAMS * (1 + 1 / 4) + 2 * MATMUL / LAYERS)
    assert shared["activations"] == plain["activations"]
    lora = replace(config, reader=replace(config.reader, lora=LoraConfig(rank=1)))
    assert parts(lora, 4)["optimizer"] < plain["optimizer"]
    eight = replace(config, optim=replace(config.optim, kind="adamw_8bit"))
    assert parts(eight, 4)["optimizer"] == plain["optimizer"] / 4
    factored = replace(config, optim=replace(config.optim, kind="adafactor"))
    assert parts(factored, 4)["optimizer"] < plain["optimizer"] / 100
    half = replace(config, optim=replace(config.optim, dtype="bfloat16"))
    assert parts(half, 4)["activations"] == plain["activations"] / 2
    cut = replace(config, optim=replace(config.optim, accumulate=2))
    assert parts(cut, 4)["activations"] == plain["activations"] / 2
    kept = replace(config, encoder=replace(config.encoder, checkpointing=True))
    assert parts(kept, 4)["activations"] < plain["activations"]
    frozen = replace(config, refresh=RefreshConfig(mode="query_side"))
    assert parts(frozen, 4)["index"] == plain["index"] / 2
    assert parts(config, 4, holds_index=False)["index"] == 0


def test_time_of_a_step_is_the_sum_of_its_operators(config: JointConfig):
    estimator = JointEstimator(config, Workload(num_passages=1_000))
    seconds = estimator.step_parts(calibration(), 2, Hardware(per_node=2), "ddp")
    forward = ModelShape.of(Path(config.encoder.model)).forward_flops
    queries = forward(4 * 10, 10)
    assert seconds["select"] == pytest.approx((queries + forward(4 * 8 * 20, 20)) / 1e9)
    assert seconds["search"] == pytest.approx(2 * 4 * 1_000 * HIDDEN / 1e9)
    assert seconds["retriever"] == pytest.approx((queries + forward(4 * 4 * 20, 20)) / 1e9)
    assert seconds["reader"] == pytest.approx(forward(4 * 4 * 100, 100) / 1e9)
    assert seconds["optimizer"] == pytest.approx(2 * PARAMS / 1e9)
    assert seconds["exchange"] == pytest.approx(2 * 4 * 2 * PARAMS * 0.5 / 300e9)


def test_variants_cost_what_they_add(config: JointConfig):
    def seconds(config: JointConfig) -> dict[str, float]:
        return dict(
            JointEstimator(config, Workload(num_passages=1_000)).step_parts(
                calibration(), 1, Hardware(), "ddp"
            )
        )

    plain = seconds(config)
    two = seconds(replace(config, loss=replace(config.loss, two_pass=True)))
    assert two["reader"] == pytest.approx(2 * plain["reader"])
    null = seconds(replace(config, loss=replace(config.loss, null_passage=True)))
    assert null["reader"] == pytest.approx(1.25 * plain["reader"])
    lora = LoraConfig(rank=1)
    for tower, operator in (("reader", "reader"), ("encoder", "retriever")):
        adapted = replace(getattr(config, tower), lora=lora)
        assert seconds(replace(config, **{tower: adapted}))[operator] == pytest.approx(
            2 / 3 * plain[operator]
        )
    saving = replace(config.reader, checkpointing=True)
    assert seconds(replace(config, reader=saving))["reader"] == pytest.approx(4 / 3 * plain["reader"])
    query_side = seconds(replace(config, refresh=RefreshConfig(mode="query_side")))
    assert query_side["retriever"] == pytest.approx(plain["retriever"])  # same rates, fewer gradients
    assert "retriever" not in seconds(
        replace(config, refresh=RefreshConfig(mode="frozen"), loss=replace(config.loss, retriever=None))
    )


def test_as_few_devices_embed_as_finish_in_time(config: JointConfig):
    hardware = Hardware(per_node=8, memory_gib=10)
    estimator = JointEstimator(config, Workload(num_passages=2_000))
    few = estimator.plan(calibration(), hardware)
    assert few.stall_s == 0
    assert few.refresh_s <= 5 * few.step_s
    assert few.num_ranks + few.num_encoders <= 8
    assert 8 % few.num_ranks == 0
    one_less = estimator.refresh_s(calibration(), 1)
    assert few.num_encoders == 1 or one_less > 5 * few.step_s
    many = JointEstimator(config, Workload(num_passages=20_000)).plan(calibration(), hardware)
    assert many.num_encoders > few.num_encoders
    drowned = JointEstimator(config, Workload(num_passages=2_000_000)).plan(calibration(), hardware)
    assert drowned.stall_s > 0
    alone = estimator.plan(calibration(), Hardware(per_node=1, memory_gib=10))
    assert (alone.num_ranks, alone.num_encoders, alone.shares_device, alone.stall_s) == (1, 0, True, 0.0)
    assert "8 ranks" in JointEstimator(
        replace(config, refresh=RefreshConfig(mode="query_side")), Workload(num_passages=10)
    ).plan(calibration(), hardware).told(config)


def test_weights_are_shared_only_where_they_do_not_fit(config: JointConfig):
    estimator = JointEstimator(config, Workload(num_passages=100))
    run = RunShape(config, Workload(num_passages=100))
    whole = estimate_memory(run, 4, device="cuda", holds_index=False).total
    shared = estimate_memory(run, 4, "fsdp2", device="cuda", holds_index=False).total
    assert shared < whole

    def planned(memory_bytes: float) -> str:
        hardware = Hardware(per_node=5, memory_gib=memory_bytes / GIB)
        return estimator.plan(calibration(), hardware).sharding

    assert planned(1.01 * whole) == "ddp"
    assert planned((whole + shared) / 2) == "fsdp2"
    offloaded = estimate_memory(run, 4, "fsdp2_offload", device="cuda", holds_index=False)
    assert offloaded.parts["activations"] > 0
    assert offloaded.total < shared
    assert planned((shared + offloaded.total) / 2) == "fsdp2_offload"
    with pytest.raises(OutOfResources, match=r"GiB are missing .*Raise optim.accumulate"):
        planned(0.9 * offloaded.total)


def test_costs_are_the_line_through_the_measured_points():
    points = [Point(name, 1.0, 1.0) for name in OPERATORS if name != "encode"]
    points += [Point("encode", work, 0.5 + work / 4) for work in (2.0, 8.0)]
    cost = Calibration("x", tuple(points)).costs["encode"]
    assert (cost.overhead_s, cost.per_s) == (pytest.approx(0.5), pytest.approx(4.0))
    assert cost.seconds(12.0, calls=3) == pytest.approx(4.5)
    falling = [Point("encode", 2.0, 1.0), Point("encode", 8.0, 1.0)]
    cost = Calibration("x", (*points[:-2], *falling)).costs["encode"]
    assert (cost.overhead_s, cost.per_s) == (0.0, 5.0)


def test_a_calibration_measures_every_operator_and_is_kept(tmp_path: Path):
    config = JointConfig(
        encoder=EncoderConfig(model=str(build_tiny_encoder(tmp_path / "e")), max_passage_tokens=32),
        reader=ReaderConfig(model=str(build_tiny_model(tmp_path / "r")), max_passage_tokens=16),
    )
    measured = calibrate(config, torch.device("cpu"), sizes=(1, 2))
    assert {point.operator for point in measured.points} == set(OPERATORS)
    assert all(point.seconds > 0 for point in measured.points)
    assert all(cost.per_s > 0 for cost in measured.costs.values())
    measured.save(tmp_path / "machine.json")
    assert Calibration.load(tmp_path / "machine.json") == measured
    with pytest.raises(DataMissingError):
        Calibration.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"device": "x", "points": []}')
    with pytest.raises(CheckpointError, match="lacks encode"):
        Calibration.load(tmp_path / "bad.json")


def test_time_follows_padding_and_memory_the_longest_text(config: JointConfig):
    lengths = Lengths(tuple([5] * 50 + [15] * 50), longest=18)
    assert lengths.mean == 10
    assert lengths.padded(0.5) == 5
    assert lengths.padded(31) == 15
    fixed = {"num_passages": 1_000, "queries": Lengths.fixed(10), "rows": Lengths.fixed(100)}
    mixed = Workload(**fixed, passages=lengths)
    at_15, at_18 = (Workload(**fixed, passages=Lengths.fixed(tokens)) for tokens in (15, 18))

    def refresh_s(workload: Workload) -> float:
        return JointEstimator(config, workload).refresh_s(calibration(), 1)

    assert refresh_s(mixed) == refresh_s(at_15)
    assert estimate_memory(RunShape(config, mixed), 1) == estimate_memory(RunShape(config, at_18), 1)


def test_a_passage_that_stands_twice_in_a_batch_is_encoded_once(config: JointConfig):
    def seconds(num_passages: int) -> float:
        estimator = JointEstimator(config, Workload(num_passages=num_passages))
        return estimator.step_parts(calibration(), 1, Hardware(), "ddp")["retriever"]

    forward = ModelShape.of(Path(config.encoder.model)).forward_flops
    assert seconds(3) == pytest.approx((forward(8 * 10, 10) + forward(3 * 20, 20)) / 1e9)
    assert seconds(32) == seconds(10_000)


def test_lengths_are_those_of_the_runs_own_tokenizers(tmp_path: Path):
    config = JointConfig(
        encoder=EncoderConfig(model=str(build_tiny_encoder(tmp_path / "e")), max_passage_tokens=16),
        reader=ReaderConfig(model=str(build_tiny_model(tmp_path / "r")), max_passage_tokens=16),
    )
    texts = ["one", "one two", "word " * 50]
    train = TrainingSet(
        "x",
        tuple(TrainingPassage(f"p{i}", text) for i, text in enumerate(texts)),
        tuple(TrainingQuestion(f"q{i}", "who?", answers=("a",)) for i in range(3)),
    )
    found = measured_workload(config, train)
    assert (found.num_passages, found.text_bytes) == (3, sum(map(len, texts)))
    assert found.passages == Lengths((3, 4, 16), 16)  # with the marks around; cut at the limit
    assert found.queries == Lengths((4, 4, 4), 4)
    from training.joint.reader_tower import ReaderTower

    rows = ReaderTower(config.reader, torch.device("cpu")).rows
    longest = rows.row(train.questions[0], [train.passages[2]], 1)
    assert found.rows is not None
    assert found.rows.longest == longest.num_tokens
