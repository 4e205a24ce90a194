"""SFT, DPO and reward jobs on a tiny policy: they learn, repeat, resume exactly, refuse what cannot be."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes_agents import passage
from safetensors.torch import load_file
from transformers import TrainerCallback

from serving.prompt import PromptPassage
from serving.tokenizer import ModelTokenizer
from training.errors import CheckpointError, ConfigError, DataError
from training.joint.config import LoraConfig
from training.preference import dpo, reward, sft
from training.preference.examples import CitedAnswer, SearchTrace, TraceTurn
from training.preference.job import COMPLETE, JobResult, newest_checkpoint
from training.preference.pairs import PreferencePair
from training.preference.settings import PolicySettings, TrainSettings

MILL = passage("The mill was built in 1701.")
SHOWN = (PromptPassage("mill", "mill", "The mill was built in 1701."),)
ANSWERS = [CitedAnswer(f"When was mill {n} built?", SHOWN, f"170{n} [1]") for n in range(6)]
TRACES = [
    SearchTrace(f"When {n}?", (TraceTurn("search: mill", (MILL,)), TraceTurn(f"answer: 170{n} [1]")))
    for n in range(2)
]
PAIRS = [
    PreferencePair(example, CitedAnswer(example.question, SHOWN, "I do not know")) for example in ANSWERS
] + [PreferencePair(trace, SearchTrace(trace.question, (TraceTurn("answer: perhaps"),))) for trace in TRACES]


def settings(**fields: object) -> TrainSettings:
    return TrainSettings(**{"steps": 6, "batch_size": 4, "lr": 1e-3, **fields})  # type: ignore[arg-type]


def digest(result: JobResult) -> str:
    files = sorted(result.model.glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class StopAt(TrainerCallback):
    """Stops a run as a kill between two steps would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == self.step:
            raise KeyboardInterrupt


def sft_config(folder: Path, lora: LoraConfig | None = None, **fields: object) -> sft.SftConfig:
    return sft.SftConfig(policy=PolicySettings(folder=folder, lora=lora), train=settings(**fields))


def dpo_config(folder: Path, lora: LoraConfig | None = None, **fields: object) -> dpo.DpoConfig:
    return dpo.DpoConfig(policy=PolicySettings(folder=folder, lora=lora), train=settings(**fields))


def test_importing_trl_warns_of_nothing():
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning); import training.preference.trl_names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sft_learns_answers_and_loops_and_keeps_the_tokenizer(policy_folder: Path, tmp_path: Path):
    result = sft.run(sft_config(policy_folder, steps=20), [*ANSWERS, *TRACES], tmp_path / "job")
    assert result.num_steps == 20
    losses = [record["loss"] for record in result.history if "loss" in record]
    assert losses[-1] < losses[0] / 2
    assert 0 < result.metrics["mask_coverage"] < 0.5
    before, after = (folder / "tokenizer.json" for folder in (policy_folder, result.model))
    assert after.read_bytes() == before.read_bytes()
    ModelTokenizer(after)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_sft_repeats_and_resumes_bit_for_bit(policy_folder: Path, tmp_path: Path, lora: LoraConfig | None):
    config = sft_config(policy_folder, lora, save_every=2)
    examples = [*ANSWERS, *TRACES]
    whole = sft.run(config, examples, tmp_path / "whole")
    again = sft.run(config, examples, tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        sft.run(config, examples, tmp_path / "cut", callbacks=[StopAt(5)])
    (tmp_path / "cut" / "checkpoints" / "checkpoint-9").mkdir()  # what a crash inside a save leaves
    at = newest_checkpoint(tmp_path / "cut")
    assert at is not None
    assert at.name == "checkpoint-4"
    resumed = sft.run(config, examples, tmp_path / "cut", resume=True)
    assert digest(whole) == digest(again) == digest(resumed)
    assert resumed.num_steps == 6
    losses = [[record["loss"] for record in one.history if "loss" in record] for one in (whole, resumed)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_dpo_prefers_the_chosen_and_resumes_bit_for_bit(
    policy_folder: Path, tmp_path: Path, lora: LoraConfig | None
):
    config = dpo_config(policy_folder, lora, steps=8, lr=2e-3, save_every=4)
    whole = dpo.run(config, PAIRS, tmp_path / "whole")
    accuracy = [record["rewards/accuracies"] for record in whole.history if "rewards/accuracies" in record]
    assert accuracy[-1] == 1.0
    assert whole.metrics["rewards/margins"] > 0
    with pytest.raises(KeyboardInterrupt):
        dpo.run(config, PAIRS, tmp_path / "cut", callbacks=[StopAt(5)])
    resumed = dpo.run(config, PAIRS, tmp_path / "cut", resume=True)
    assert digest(whole) == digest(resumed)


def test_dpo_leaves_what_a_search_showed_out_of_its_log_probabilities(policy_folder: Path, tmp_path: Path):
    seen: list[torch.Tensor] = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **_):  # type: ignore[no-untyped-def]
            seen.extend(batch["completion_mask"] for batch in train_dataloader)

    pairs = [pair for pair in PAIRS if isinstance(pair.chosen, SearchTrace)]
    dpo.run(dpo_config(policy_folder, steps=1, batch_size=2), pairs, tmp_path / "job", callbacks=[Look()])
    (mask_BT,) = seen
    tokenizer = ModelTokenizer(policy_folder / "tokenizer.json")
    chosen = [sum(pair.chosen.replay(tokenizer, sft.SearchLimits(), 999).mask) for pair in pairs]  # type: ignore[union-attr]
    assert sorted(mask_BT[:2].sum(dim=1).tolist()) == sorted(chosen)
    # An observation stands between two stretches of the model's: the mask falls and rises again.
    steps = (mask_BT[0, 1:] - mask_BT[0, :-1]).tolist()
    assert steps.count(1) == 2


def test_a_reward_model_scores_the_chosen_higher(policy_folder: Path, tmp_path: Path):
    config = reward.RewardModelConfig(
        policy=PolicySettings(folder=policy_folder), train=settings(steps=30, lr=2e-3)
    )
    result = reward.run(config, PAIRS, tmp_path / "job")
    assert result.metrics["accuracy"] == 1.0
    model = reward.RewardModel(result.model)
    chosen = model.scores([pair.chosen for pair in PAIRS])
    rejected = model.scores([pair.rejected for pair in PAIRS])
    assert all(good > bad for good, bad in zip(chosen, rejected, strict=True))


def test_lora_trains_the_adapter_alone(policy_folder: Path, tmp_path: Path):
    result = sft.run(sft_config(policy_folder, LoraConfig(rank=4), steps=2), ANSWERS, tmp_path / "job")
    tensors = load_file(result.model / "adapter_model.safetensors")
    assert all("lora_" in name for name in tensors)
    assert json.loads((result.model / "adapter_config.json").read_text())["r"] == 4


def test_a_folder_in_use_is_not_overwritten(policy_folder: Path, tmp_path: Path):
    config = sft_config(policy_folder, steps=1, save_every=1)
    sft.run(config, ANSWERS, tmp_path)
    with pytest.raises(CheckpointError, match="holds a run already"):
        sft.run(config, ANSWERS, tmp_path)
    with pytest.raises(CheckpointError, match="belongs to configuration"):
        sft.run(sft_config(policy_folder, steps=2), ANSWERS, tmp_path, resume=True)
    assert (tmp_path / "checkpoints" / "checkpoint-1" / COMPLETE).exists()


def test_what_does_not_fit_is_refused_before_anything_starts(policy_folder: Path, tmp_path: Path):
    small = sft.SftConfig(policy=PolicySettings(folder=policy_folder), train=settings(), max_tokens=16)
    with pytest.raises(DataError, match="none of 6 examples"):
        sft.run(small, ANSWERS, tmp_path / "a")
    wide = sft.SftConfig(policy=PolicySettings(folder=policy_folder), train=settings(), max_tokens=9_999)
    with pytest.raises(ConfigError, match="window of 2,048"):
        sft.run(wide, ANSWERS, tmp_path / "b")
    pairs = dpo.DpoConfig(policy=PolicySettings(folder=policy_folder), train=settings(), max_tokens=20)
    with pytest.raises(DataError, match="none of 8 pairs"):
        dpo.run(pairs, PAIRS, tmp_path / "c")
    with pytest.raises(ConfigError, match=r"policy\.folder"):
        sft.run(sft_config(tmp_path / "nowhere"), ANSWERS, tmp_path / "d")
    mixed = [PreferencePair(ANSWERS[0], CitedAnswer(ANSWERS[0].question, (), "no"))]
    with pytest.raises(DataError, match="different prompts"):
        dpo.run(dpo_config(policy_folder), mixed, tmp_path / "e")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields", [{"steps": 0}, {"lr": 0.0}, {"warmup_steps": 9}, {"save_every": -1}, {"batch_size": 0}]
)
def test_settings_out_of_bounds_are_refused(fields: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        settings(**fields)
