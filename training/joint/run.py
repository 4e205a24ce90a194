"""A joint run from its configuration and data: towers, index and checkpoints composed on one rank."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from training.candidate import write_candidate
from training.checkpoints.peer_memory import PeerMemory, Peers
from training.checkpoints.run_checkpoints import RunCheckpoints
from training.data import fingerprint as data_fingerprint
from training.errors import ConfigError, DataError
from training.index import (
    EncoderPool,
    InlineEncoderPool,
    LoadEncoder,
    Refresher,
    ShardClient,
    ShardedSearch,
    ThreadEncoderPool,
    local_shards,
    versions_folder,
)
from training.joint.config import JointConfig
from training.joint.encoder_tower import EncoderTower, SnapshotEncoder
from training.joint.joint_model import JointModel
from training.joint.parallel import Ranks, Sharding, shard_tower
from training.joint.reader_tower import ReaderTower
from training.joint.trainer import JointTrainer, RunResult, Watch
from training.toml_config import fingerprint
from training.types import TrainingSet

BLOCK_ROWS = 256
"""Passages encoded in one piece: a lost encoder costs no more than one."""


@dataclass(frozen=True, slots=True)
class IndexParts:
    """Where the index of a run lives, when it is not in the trainer's process."""

    shards: tuple[ShardClient, ...]
    """All of them; every rank has clients of the same shards."""
    pool: EncoderPool | None
    """Encoders, on the first rank; None on the others."""


def index_folder(folder: Path) -> Path:
    """Return where a run keeps its index."""
    return folder / "index"


def candidate_folder(folder: Path) -> Path:
    """Return where a complete run leaves what it gives to the platform."""
    return folder / "candidate"


def load_encoder(config: JointConfig, device: str = "cpu") -> LoadEncoder:
    """Return what builds an encoder from a snapshot; picklable."""
    return partial(
        SnapshotEncoder,
        max_passage_tokens=config.encoder.max_passage_tokens,
        device=device,
        dtype=config.optim.dtype,
    )


def corpus_texts(data: TrainingSet) -> list[str]:
    """Return what encoders read of each passage, by row."""
    return [passage.full_text for passage in data.passages]


def run_fingerprint(config: JointConfig, data: TrainingSet) -> str:
    """Return what names a run's checkpoints: configuration and data, which only the same may take up."""
    return f"{fingerprint(config)}-{data_fingerprint(data)[:16]}"


def build_model(config: JointConfig, data: TrainingSet, ranks: Ranks) -> JointModel:
    """Return both towers on this rank's device; raises ConfigError for a model that cannot be trained."""
    encoder = EncoderTower(config.encoder, config.refresh.mode, ranks.device)
    has_reader = bool(config.reader.model) and config.reader.form != "none"
    reader = ReaderTower(config.reader, ranks.device) if has_reader else None
    return JointModel(config, encoder, reader, data.passages)


def run_joint(
    config: JointConfig,
    data: TrainingSet,
    folder: Path,
    *,
    held_out: TrainingSet | None = None,
    ranks: Ranks | None = None,
    watch: Watch | None = None,
    index: IndexParts | None = None,
    sharding: Sharding = "ddp",
    peers: Peers | None = None,
) -> RunResult:
    """Run, or go on with, the joint training of a folder; call it within an initialised process group.

    Args:
        config: What decides the result.
        data: Passages that are searched and questions trained on.
        folder: Of the run: checkpoints, index and logs. Started again with the same arguments, it goes on
            from the newest checkpoint and gives the same weights and metrics as a run that was never stopped.
        held_out: Questions it is judged by; its passages are the ones searched then.
        ranks: This process among the others; None where it is alone.
        watch: The outside.
        index: Shards and encoders elsewhere; None keeps both in this process.
        sharding: Whether every rank holds the whole reader, or FSDP2 shares it, on the devices or in host
            memory; the retriever is small and always whole.
        peers: Holders of copies in memory, which `checkpoint.memory_every_steps` asks for.

    Raises:
        TrainingError: See `JointTrainer.run` and the towers; nothing that was saved is touched.
    """
    ranks = ranks or Ranks()
    shares_reader = sharding != "ddp"
    if shares_reader and config.evaluation.generate and held_out is not None:
        raise ConfigError("a reader shared by FSDP2 does not generate: set evaluation.generate=false")
    if shares_reader and config.optim.kind == "adafactor":
        raise ConfigError(
            "optim.kind='adafactor' sums over whole rows, which FSDP2 cuts: use ddp or another kind"
        )
    if not data.passages or not data.questions:
        raise DataError(
            f"training set {data.name!r} has {len(data.passages):,} passages and {len(data.questions):,} "
            "questions; a joint run needs both"
        )
    if config.checkpoint.memory_every_steps and peers is None:
        raise ConfigError(
            "checkpoint.memory_every_steps needs processes that outlive the ranks: run as a job on Ray "
            "(ranks.num_workers of 1 or more), or set it to 0"
        )
    model = build_model(config, data, ranks)
    if shares_reader and model.reader is not None:
        shard_tower(model.reader, ranks, offload=sharding == "fsdp2_offload")
    texts = corpus_texts(data)
    parts = index or _local_index(config, texts, folder, ranks)
    refresher = Refresher(
        config.refresh,
        index_folder(folder),
        texts,
        model.encoder.dim,
        ShardedSearch(parts.shards, config.search.deadline_s),
        parts.pool,
        dtype="float32",
        block_rows=BLOCK_ROWS,
        probe_queries=[question.text for question in data.questions[: config.refresh.num_probe_queries]],
    )
    with closing(refresher), ExitStack() as stack:
        run_name = run_fingerprint(config, data)
        checkpoints = RunCheckpoints(
            folder / "checkpoints", fingerprint=run_name, keep=config.checkpoint.keep
        )
        memory = None
        if peers is not None and config.checkpoint.memory_every_steps:
            memory = stack.enter_context(closing(PeerMemory(peers, run_name)))
        trainer = JointTrainer(
            config,
            data,
            model,
            refresher,
            checkpoints,
            folder,
            held_out=held_out,
            ranks=ranks,
            watch=watch or Watch(),
            peers=memory,
        )
        result = trainer.run()
    if not result.is_complete:
        return result
    trains_reader = model.reader is not None and not config.reader.frozen
    reader_weights = model.reader.full_weights() if model.reader is not None and trains_reader else {}
    if ranks.is_first:
        write_candidate(
            candidate_folder(folder),
            model,
            config,
            reader_weights=reader_weights,
            data_fingerprint=data_fingerprint(data),
            steps=result.steps,
            before=result.before,
            after=result.after,
        )
    return result


def _local_index(config: JointConfig, texts: list[str], folder: Path, ranks: Ranks) -> IndexParts:
    """Return shards that read the run's folder, and on the first rank encoders in threads or in line."""
    shards = local_shards(
        versions_folder(index_folder(folder)), len(texts), BLOCK_ROWS, device=str(ranks.device)
    )
    pool = None
    if ranks.is_first:
        kind = ThreadEncoderPool if config.refresh.mode == "async" else InlineEncoderPool
        pool = kind(texts, load_encoder(config, str(ranks.device)))
    return IndexParts(tuple(shards), pool)
