"""What each kind of job does on one rank, behind one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from training.checkpoints.peer_memory import Peers
from training.errors import ConfigError, DataError
from training.jobs.feedback_rows import feedback_rows
from training.jobs.job_config import JobConfig
from training.jobs.job_data import JobSets
from training.jobs.passage_index import PassageIndex
from training.jobs.rank_end import KindOutcome
from training.joint.config import JointConfig
from training.joint.parallel import Ranks
from training.joint.run import IndexParts, run_joint
from training.joint.trainer import Watch
from training.negatives import MiningConfig, NegativeMiner
from training.types import TrainingPassage

if TYPE_CHECKING:
    from training.preference.examples import CitedAnswer
    from training.preference.job import JobResult
    from training.preference.pairs import Outcome, PreferencePair

NEGATIVES = "negatives.json"


@dataclass(frozen=True, slots=True)
class KindRun:
    """Everything a kind needs besides its configuration."""

    sets: JobSets
    """What it learns from."""
    ranks: Ranks
    """This process among the others."""
    watch: Watch
    """The outside."""
    index: IndexParts | None = None
    """joint: shards and encoders elsewhere; None keeps both in this process."""
    peers: Peers | None = None
    """joint: holders of copies in memory; None where every process ends with the run."""


def run_kind(config: JobConfig, run: KindRun) -> KindOutcome:
    """Do the work of a job on this rank, from its newest checkpoint.

    Args:
        config: The job; its folder is this rank's to write where it is the first.
        run: The rest.

    Raises:
        TrainingError: See the kind's own `run`.
    """
    return _KINDS[config.kind](config, run)


def index_maker(
    config: JobConfig, device: torch.device
) -> Callable[[Sequence[TrainingPassage]], PassageIndex]:
    """Return what ranks passages for a job on a device."""
    return lambda passages: PassageIndex(passages, config.data.ranker, device)


def _joint(config: JobConfig, run: KindRun) -> KindOutcome:
    result = run_joint(
        cast(JointConfig, config.tables["joint"]),
        run.sets.train,
        config.out,
        held_out=run.sets.held_out,
        ranks=run.ranks,
        watch=run.watch,
        index=run.index,
        sharding=config.ranks.sharding,
        peers=run.peers,
    )
    return KindOutcome(result.steps, result.is_complete)


def _mine(config: JobConfig, run: KindRun) -> KindOutcome:
    train = run.sets.train
    index = index_maker(config, run.ranks.device)(train.passages)
    miner = NegativeMiner(train, cast(MiningConfig, config.tables["mine"]))
    mined = miner.mine(index.encode_queries([question.text for question in train.questions]), index)
    mined.save(config.out / NEGATIVES)
    report = mined.report
    return KindOutcome(
        0,
        is_complete=True,
        message=f"{report.num_mined:,} mined and {report.num_random:,} random negatives for "
        f"{len(mined.negatives):,} questions in '{config.out / NEGATIVES}'",
    )


def _sft(config: JobConfig, run: KindRun) -> KindOutcome:
    from training.preference import sft

    examples = _examples(config, run)
    settings = cast(sft.SftConfig, config.tables["sft"])
    return _trl(config, run, lambda asked: sft.run(settings, examples, config.out, **asked))


def _dpo(config: JobConfig, run: KindRun) -> KindOutcome:
    from training.preference import dpo

    pairs = _pairs(config)
    settings = cast(dpo.DpoConfig, config.tables["dpo"])
    return _trl(config, run, lambda asked: dpo.run(settings, pairs, config.out, **asked))


def _reward(config: JobConfig, run: KindRun) -> KindOutcome:
    from training.preference import reward

    pairs = _pairs(config)
    settings = cast(reward.RewardModelConfig, config.tables["reward"])
    return _trl(config, run, lambda asked: reward.run(settings, pairs, config.out, **asked))


def _grpo(config: JobConfig, run: KindRun) -> KindOutcome:
    from training.preference import grpo

    train = run.sets.train
    questions = [one for one in train.questions if one.answers or one.is_unanswerable]
    index = index_maker(config, run.ranks.device)(train.passages)
    settings = cast(grpo.GrpoConfig, config.tables["grpo"])
    return _trl(config, run, lambda asked: grpo.run(settings, questions, index.answer, config.out, **asked))


def _trl(config: JobConfig, run: KindRun, train: Callable[[dict[str, Any]], JobResult]) -> KindOutcome:
    """Run a trainer of TRL under the watch of a job."""
    from training.jobs.trl_watch import TrlWatch

    if run.ranks.world_size > 1:
        raise ConfigError(f"kind {config.kind!r} runs on one rank, here are {run.ranks.world_size}")
    settings = config.tables[config.kind]
    watch = TrlWatch(config.out, run.watch, boundary=getattr(settings, "iterations", 1))
    result = train({"resume": True, "callbacks": [watch]})
    is_complete = bool(result.stopped) or result.num_steps >= config.num_steps
    message = f"{result.stopped}; " if result.stopped else ""
    return KindOutcome(result.num_steps, is_complete, f"{message}model in '{result.model}'")


def _examples(config: JobConfig, run: KindRun) -> list[CitedAnswer]:
    """Return what people approved of, from feedback, or RAFT's mixture of retrieved passages, from a set."""
    from training.preference.examples import CitedAnswer
    from training.preference.raft import RaftConfig, raft_examples

    if config.data.train.kind == "feedback":
        good = [one.example for one in _outcomes(config) if one.is_good]
        return [one for one in good if isinstance(one, CitedAnswer)]
    raft, train = cast(RaftConfig, config.tables["raft"]), run.sets.train
    index = index_maker(config, run.ranks.device)(train.passages)
    queries_QD = index.encode_queries([question.text for question in train.questions])
    rows_QK, _ = index.search(queries_QD, 2 * raft.num_passages)
    retrieved = {
        question.question_id: [train.passages[row].passage_id for row in rows_K]
        for question, rows_K in zip(train.questions, rows_QK.tolist(), strict=True)
    }
    return raft_examples(train, retrieved, raft)


def _pairs(config: JobConfig) -> list[PreferencePair]:
    from training.preference.pairs import preference_pairs

    pairs = preference_pairs(_outcomes(config))
    if not pairs:
        raise DataError(
            f"'{config.data.train.path}' holds no two answers to one question of which people preferred one; "
            "a pair needs an answer rated down or corrected, and one rated up"
        )
    return pairs


def _outcomes(config: JobConfig) -> list[Outcome]:
    from training.preference.pairs import feedback_outcomes

    if config.data.train.kind != "feedback":
        raise ConfigError(
            f"kind {config.kind!r} learns from people's judgement: data.train.kind must be 'feedback', "
            f"got {config.data.train.kind!r}"
        )
    return [outcome for row in feedback_rows(config.data.train.path) for outcome in feedback_outcomes(row)]


_KINDS: dict[str, Callable[[JobConfig, KindRun], KindOutcome]] = {
    "joint": _joint,
    "mine": _mine,
    "sft": _sft,
    "dpo": _dpo,
    "reward": _reward,
    "grpo": _grpo,
}
