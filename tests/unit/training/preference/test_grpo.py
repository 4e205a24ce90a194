"""GRPO over the search loop: masks, rewards, groups, failed searches, exact resume, alarms."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fakes_agents import MemoryRetriever, passage
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState

from agents.search_loop import Rollout, SearchLimits
from retrieval.errors import IndexUnavailable
from retrieval.types import SearchRequest, SearchResult
from serving.prompt import NOT_IN_DOCUMENTS
from serving.tokenizer import ModelTokenizer
from training.errors import ConfigError, DataError
from training.joint.config import LoraConfig
from training.preference import grpo
from training.preference.alarms import AlarmSettings, CollapseAlarm
from training.preference.group_order import GroupOrder
from training.preference.job import JobResult
from training.preference.rewards import RewardWeights, reward_parts
from training.preference.search_rollouts import RolloutSettings, Scored, SearchRollouts, mean_reward
from training.preference.settings import PolicySettings, TrainSettings
from training.types import TrainingQuestion

MILL = passage("The mill was built in 1701.")
RETRIEVER = MemoryRetriever([MILL, passage("Boats are made of wood.", document="boats.md")])
QUESTIONS = [TrainingQuestion(f"q{n}", f"When was mill {n} built?", ("1701",)) for n in range(4)]
LIMITS = SearchLimits(max_turns=3, max_malformed=2, k_passages=1)
ROLLOUT = RolloutSettings(limits=LIMITS, max_turn_tokens=6, max_completion_tokens=120)


def search(requests: Sequence[SearchRequest]) -> list[SearchResult]:
    return asyncio.run(RETRIEVER.search(requests))


def config(folder: Path, lora: LoraConfig | None = None, **fields: object) -> grpo.GrpoConfig:
    train = {"steps": 4, "batch_size": 8, "lr": 1e-3, **fields.pop("train", {})}  # type: ignore[dict-item]
    return grpo.GrpoConfig(
        policy=PolicySettings(folder=folder, lora=lora),
        train=TrainSettings(**train),  # type: ignore[arg-type]
        rollout=ROLLOUT,
        group_size=4,
        **fields,  # type: ignore[arg-type]
    )


def digest(result: JobResult) -> str:
    files = sorted(result.model.glob("*.safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def rollouts(tokenizer: ModelTokenizer, search=search, **fields: object) -> SearchRollouts:  # type: ignore[no-untyped-def]
    options = {"seed": 0, "temperature": 1.0, "pad_id": 0, **fields}
    return SearchRollouts(QUESTIONS, search, tokenizer, ROLLOUT, RewardWeights(), **options)  # type: ignore[arg-type]


class Typist:
    """Stands for a model: writes given turns, one a call for every row."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: ModelTokenizer, turns: Sequence[str]) -> None:
        self.turns = [[*tokenizer.encode(turn, trusted=False), tokenizer.turn_end_id] for turn in turns]
        self.read: list[torch.Tensor] = []

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        self.read.append(input_ids)
        turn_T = torch.tensor(self.turns.pop(0))
        return torch.cat([input_ids, turn_T.expand(len(input_ids), -1)], dim=1)


WIDE = RolloutSettings(limits=LIMITS, max_turn_tokens=40, max_completion_tokens=300)


def typed(tokenizer: ModelTokenizer, turns: Sequence[str], search=search) -> tuple[list[Scored], Typist]:  # type: ignore[no-untyped-def]
    model = Typist(tokenizer, turns)
    made = SearchRollouts(
        QUESTIONS, search, tokenizer, WIDE, RewardWeights(), seed=0, temperature=0.0, pad_id=0
    )
    return made.collect(model, ["q0", "q1"], "x"), model  # type: ignore[arg-type]


def test_a_rollout_reads_its_own_tokens_back_and_is_masked_by_who_wrote_them(tokenizer: ModelTokenizer):
    scored, model = typed(tokenizer, ["search: mill", "answer: 1701 [1]"])
    for row, one in enumerate(scored):
        ids, mask = one.rollout.completion_ids, one.rollout.mask
        written = [token for token, mine in zip(ids, mask, strict=True) if mine]
        assert (
            tokenizer.decode(written, skip_control=False)
            == "search: mill<|im_end|>answer: 1701 [1]<|im_end|>"
        )
        read = [token for token in model.read[1][row].tolist() if token != 0]
        assert read == one.rollout.context_ids[: len(read)]
    assert scored[0].parts == (1.0, 1.0, 1.0, 0.0)
    assert scored[0].reward == pytest.approx(1.4)


def test_an_empty_search_is_shown_and_a_failed_one_drops_the_rollout(tokenizer: ModelTokenizer):
    def nothing(requests: Sequence[SearchRequest]) -> list[SearchResult]:
        return [SearchResult((), (), "v", 1) for _ in requests]

    scored, _ = typed(tokenizer, ["search: mill", "answer: 1701"], nothing)
    assert scored[0].parts == (1.0, 1.0, 0.0, 0.0)
    assert "Nothing was found." in tokenizer.decode(scored[0].rollout.completion_ids)
    num_tries = 0

    def broken(requests: Sequence[SearchRequest]) -> list[SearchResult]:
        nonlocal num_tries
        num_tries += 1
        raise IndexUnavailable("gone")

    scored, _ = typed(tokenizer, ["search: mill", "answer: 1701"], broken)
    assert num_tries == 2
    assert [one.parts for one in scored] == [None, None]
    assert mean_reward(scored) == 0.0

    def partial(requests: Sequence[SearchRequest]) -> list[SearchResult]:
        return [SearchResult((), (), "v", 1, partial=True) for _ in requests]

    scored, _ = typed(tokenizer, ["search: mill", "answer: 1701"], partial)
    assert [one.parts for one in scored] == [None, None]


def test_the_same_key_samples_the_same_tokens_whatever_the_global_state(
    policy_folder: Path, tokenizer: ModelTokenizer
):
    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    made = rollouts(tokenizer)
    ids = ["q0", "q0", "q1"]

    def sampled(key: str) -> list[list[int]]:
        return [one.rollout.completion_ids for one in made.collect(model, ids, key)]

    first = sampled("3:0")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert sampled("3:0") == first
    assert torch.equal(torch.get_rng_state(), before)
    assert sampled("4:0") != first
    assert first[0] != first[1]


def ended(tokenizer: ModelTokenizer, turns: Sequence[str], question: TrainingQuestion) -> tuple[float, ...]:
    one = Rollout(question.text, LIMITS, tokenizer, 400)
    for turn in turns:
        if one.take([*tokenizer.encode(turn, trusted=False), tokenizer.turn_end_id]) is not None:
            one.show([MILL])
    return reward_parts(one, question, "em")


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        (["search: mill", "answer: 1701 [1]"], (1.0, 1.0, 1.0, 0.0)),
        (["search: mill", "search: the mill", "answer: 1702"], (0.0, 1.0, 1.0, 1.0)),
        (["answer: 1701"], (1.0, 1.0, 0.0, 0.0)),
        (["hello", "answer: 1701"], (1.0, 0.0, 0.0, 0.0)),
        (["hello", "hello"], (0.0, 0.0, 0.0, 0.0)),
        (["answer: 1701 or 1702"], (0.0, 1.0, 0.0, 0.0)),
    ],
)
def test_rewards_are_of_answer_format_evidence_and_searches(
    turns: list[str], parts: tuple[float, ...], tokenizer: ModelTokenizer
):
    assert ended(tokenizer, turns, QUESTIONS[0]) == parts


def test_an_unanswerable_question_rewards_the_refusal(tokenizer: ModelTokenizer):
    question = TrainingQuestion("q", "Who?", is_unanswerable=True)
    assert ended(tokenizer, [f"answer: {NOT_IN_DOCUMENTS}"], question)[0] == 1.0
    assert ended(tokenizer, ["answer: Ida"], question)[0] == 0.0


def scored(*rewards: float | None, tokenizer: ModelTokenizer) -> list[Scored]:
    one = Rollout("Q?", LIMITS, tokenizer, 100)
    return [Scored(one, None if reward is None else (reward, 0, 0, 0), reward or 0.0) for reward in rewards]


def test_groups_of_equal_rewards_and_failed_rollouts_are_dropped(tokenizer: ModelTokenizer):
    group = scored(0.7, 0.7 + 1e-9, 0.7, 0.7, 0.0, 1.4, 0.0, None, tokenizer=tokenizer)
    assert grpo.informative(group, 4) == [False] * 4 + [True, True, True, False]
    assert grpo.informative(scored(1.0, None, None, None, tokenizer=tokenizer), 4) == [False] * 4


def reward_of_ids(rollout: Rollout, question: TrainingQuestion, match: str) -> tuple[float, ...]:
    """Return rewards that differ within a group whatever a random policy writes."""
    return (sum(rollout.completion_ids) % 101 / 101, float(rollout.num_refused == 0), 0.0, 0.0)


@pytest.fixture
def ids_rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.preference.search_rollouts.reward_parts", reward_of_ids)


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("ids_rewarded")
@pytest.mark.parametrize(
    ("lora", "iterations", "beta"),
    [(None, 1, 0.0), (LoraConfig(rank=4), 2, 0.05)],
    ids=["full, second pass", "lora, several passes over a batch"],
)
def test_a_run_resumes_bit_for_bit_from_a_generation_boundary(
    policy_folder: Path, tmp_path: Path, lora: LoraConfig | None, iterations: int, beta: float
):
    cfg = config(policy_folder, lora, iterations=iterations, beta=beta, train={"save_every": 2})
    whole = grpo.run(cfg, QUESTIONS, search, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        grpo.run(cfg, QUESTIONS, search, tmp_path / "cut", callbacks=[StopAt(3)])
    resumed = grpo.run(cfg, QUESTIONS, search, tmp_path / "cut", resume=True)
    assert digest(whole) == digest(resumed)
    rewards = [[record["reward"] for record in one.history if "reward" in record] for one in (whole, resumed)]
    assert rewards[0] == rewards[1]
    made = [record for record in whole.history if "mask/coverage" in record]
    assert len(made) == 4 // iterations
    assert all(0 < record["mask/coverage"] < 1 and record["groups/kept"] == 1.0 for record in made)
    if beta:
        assert whole.metrics["kl"] > 0


def test_a_batch_without_differences_leaves_the_weights_alone(policy_folder: Path, tmp_path: Path):
    result = grpo.run(config(policy_folder, train={"steps": 1}), QUESTIONS, search, tmp_path)
    assert result.metrics["groups/kept"] == 0.0
    assert "entropy" not in result.metrics  # of no token; a zero would look like a collapse
    before = AutoModelForCausalLM.from_pretrained(policy_folder).state_dict()
    after = AutoModelForCausalLM.from_pretrained(result.model).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("ids_rewarded")
@pytest.mark.parametrize("mask", [True, False])
def test_only_the_ablation_learns_what_a_search_showed(
    mask: bool, policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    batches: list[dict[str, torch.Tensor]] = []
    generate = grpo._SearchTrainer._generate_and_score_completions

    def watched(self, inputs):  # type: ignore[no-untyped-def]
        batches.append(generate(self, inputs) | {"mine": [one.rollout.mask for one in self.rollouts.last]})  # type: ignore[dict-item]
        return {name: value for name, value in batches[-1].items() if name != "mine"}

    monkeypatch.setattr(grpo._SearchTrainer, "_generate_and_score_completions", watched)
    cfg = config(policy_folder, mask_observations=mask, train={"steps": 1})
    grpo.run(cfg, QUESTIONS, search, tmp_path)
    (batch,) = batches
    learned = (batch["tool_mask"] * batch["completion_mask"]).sum(dim=1).tolist()
    mine = [sum(one) if mask else len(one) for one in batch["mine"]]
    assert learned == mine
    assert sum(mine) == int(batch["num_items_in_batch"])
    assert any(0 in one for one in batch["mine"])


def test_questions_are_asked_in_an_order_that_position_and_seed_decide():
    def order(num_batches: int, seed: int = 0) -> list[int]:
        sizes = {"questions_per_batch": 2, "group_size": 3, "repeats": 2, "num_batches": num_batches}
        return list(GroupOrder(5, seed=seed, **sizes))

    rows = order(10)
    assert rows[:60] == order(5)
    assert rows != order(10, seed=1)
    batches = [rows[at : at + 12] for at in range(0, len(rows), 12)]
    assert all(batch[:6] == batch[6:] for batch in batches)
    asked = [row for batch in batches for row in batch[:6:3]]
    assert [sorted(asked[at : at + 5]) for at in (0, 5, 10, 15)] == [[0, 1, 2, 3, 4]] * 4
    assert asked[:5] != asked[5:10]


def look(alarm: CollapseAlarm, step: int, **logs: float) -> TrainerControl:
    control, state = TrainerControl(), TrainerState()
    state.global_step = step
    names = {"formed": "rewards/format/mean"}
    alarm.on_log(None, state, control, {names.get(name, name): value for name, value in logs.items()})  # type: ignore[arg-type]
    return control


@pytest.mark.parametrize(
    ("logs", "reason"),
    [
        ({"entropy": 0.001}, "entropy 0.0010 is below 0.005"),
        ({"kl": 3.0}, "kl 3.000 is above 1.0"),
        ({"formed": 0.01}, "well-formed rollouts 0.010 is below 0.05"),
        ({"kl": float("nan")}, "kl is nan"),
    ],
)
def test_a_collapse_stops_the_run_after_its_patience(logs: dict[str, float], reason: str, tmp_path: Path):
    alarm = CollapseAlarm(AlarmSettings(patience=3), tmp_path / "best")
    good = {"reward": 1.0, "entropy": 1.0, "kl": 0.1, "formed": 0.9}
    assert not look(alarm, 1, **good).should_training_stop
    for step in (2, 3):
        assert not look(alarm, step, **{**good, **logs}).should_training_stop
    assert not look(alarm, 4, **good).should_training_stop  # a record in between starts the count anew
    stops = [look(alarm, step, **{**good, **logs}).should_training_stop for step in (5, 6, 7)]
    assert stops == [False, False, True]
    assert reason in alarm.reason
    assert "step 7" in alarm.reason


def test_a_policy_that_never_spoke_the_format_is_not_stopped_for_it(tmp_path: Path):
    alarm = CollapseAlarm(AlarmSettings(patience=1), tmp_path / "best")
    assert not look(alarm, 1, reward=0.0, formed=0.0).should_training_stop


@pytest.mark.usefixtures("ids_rewarded")
def test_a_run_that_is_stopped_gives_the_best_policy_before(policy_folder: Path, tmp_path: Path):
    class Collapse(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):  # type: ignore[no-untyped-def]
            if state.global_step == 2:
                with torch.no_grad():
                    model.lm_head.weight.mul_(50)  # every token certain

    # One deterministic answer leaves no group that differs, and so no token whose entropy would be measured.
    alarms = AlarmSettings(patience=1, window=1, max_idle=2)
    cfg = config(policy_folder, alarms=alarms, train={"steps": 8})
    result = grpo.run(cfg, QUESTIONS, search, tmp_path, callbacks=[Collapse()])
    assert result.num_steps == 4
    assert "no group of rollouts differed in reward for 2 records" in result.stopped
    assert result.model == tmp_path / "best"
    ModelTokenizer(result.model / "tokenizer.json")


def test_what_cannot_be_run_is_refused(policy_folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="group_size=3"):
        grpo.GrpoConfig(
            policy=PolicySettings(folder=policy_folder),
            train=TrainSettings(steps=1, batch_size=8),
            rollout=ROLLOUT,
            group_size=3,
        )
    with pytest.raises(ConfigError, match="save_every=3 must be a multiple of iterations=2"):
        config(policy_folder, iterations=2, train={"save_every": 3})
    with pytest.raises(ConfigError, match="max_turn_tokens"):
        RolloutSettings(limits=LIMITS, max_turn_tokens=10, max_completion_tokens=5)
    with pytest.raises(DataError, match="no question"):
        grpo.run(config(policy_folder), [], search, tmp_path / "a")
    with pytest.raises(DataError, match="no accepted answer"):
        grpo.run(config(policy_folder), [TrainingQuestion("q", "Who?")], search, tmp_path / "a")
    with pytest.raises(DataError, match="share an id"):
        grpo.run(config(policy_folder), [QUESTIONS[0]] * 2, search, tmp_path / "a")
    long = [TrainingQuestion("q", "word " * 3_000, ("x",))]
    with pytest.raises(ConfigError, match=r"window has 2,048"):
        grpo.run(config(policy_folder), long, search, tmp_path / "a")
    assert not list(tmp_path.iterdir())
