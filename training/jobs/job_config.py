"""A training job as one TOML file: what is trained, on which data, by how many ranks, into which folder.

The table of a job's kind (`[joint]`, `[sft]`, ...) is that kind's own configuration, loaded when it is read:
this file imports neither torch nor ray.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, get_args

from training.data import Faulty, SetKind, SynthesisConfig
from training.errors import ConfigError
from training.joint.config import EncoderConfig
from training.toml_config import apply_overrides, from_table

JobKind = Literal["joint", "sft", "dpo", "reward", "grpo", "mine"]
"""Retriever and reader together; the reader alone by examples, pairs or rewards; hard negatives."""
SourceKind = Literal[SetKind, "library"]
"""Formats of `training.data`, and the records that `graft index export` writes."""

_TABLES: Mapping[JobKind, Mapping[str, str]] = {
    "joint": {"joint": "training.joint.config:JointConfig"},
    "sft": {"sft": "training.preference.sft:SftConfig", "raft": "training.preference.raft:RaftConfig"},
    "dpo": {"dpo": "training.preference.dpo:DpoConfig"},
    "reward": {"reward": "training.preference.reward:RewardModelConfig"},
    "grpo": {"grpo": "training.preference.grpo:GrpoConfig"},
    "mine": {"mine": "training.negatives.mining:MiningConfig"},
}
"""Tables of each kind and the dataclass that each becomes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """Where a set is read from; paths are those of the machine that trains."""

    kind: SourceKind
    """The format."""
    path: Path
    """A file, or for `beir` a folder; for `library` a `.jsonl` of `graft index export`."""
    corpus: Path | None = None
    """More passages to search among."""
    split: str = "train"
    """Which `qrels/SPLIT.tsv` of a `beir` folder."""
    faulty: Faulty = "refuse"
    """Whether questions without an answer in the corpus end the job, or are left out and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What a job learns from and is judged by."""

    train: SourceConfig
    """Passages and questions trained on."""
    held_out: SourceConfig | None = None
    """Questions it is judged by."""
    dev_share: float = 0.0
    """Share of the training questions held out instead, by group; 0 to below 1."""
    library: Path | None = None
    """Records of `graft index export` that `feedback` refers to."""
    leaked: Literal["refuse", "drop"] = "refuse"
    """What becomes of training questions and passages that are held-out ones too."""
    synthesis: SynthesisConfig | None = None
    """Makes questions from the passages, for a library without any."""
    negatives: Path | None = None
    """What a job of kind `mine` wrote for the same training set."""
    ranker: EncoderConfig = field(default_factory=EncoderConfig)
    """Encoder that ranks passages where a job needs them ranked: synthesis, sft, grpo, mine."""

    def __post_init__(self) -> None:
        """Refuse contradictions; raises ConfigError."""
        if not 0.0 <= self.dev_share < 1.0:
            raise ConfigError(f"data.dev_share must be from 0 to below 1, got {self.dev_share}")
        if self.held_out is not None and self.dev_share > 0:
            raise ConfigError("give data.held_out or data.dev_share, not both")
        sources = [one for one in (self.train, self.held_out) if one is not None]
        if self.library is not None and all(one.kind != "feedback" for one in sources):
            raise ConfigError(
                "data.library is what feedback refers to; leave it out without a feedback source"
            )
        if self.train.kind == "library" and self.synthesis is None:
            raise ConfigError(
                "a library has no questions: add a [data.synthesis] table to make some, "
                "or train on a set that brings its own"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksConfig:
    """Who computes."""

    num_workers: int = 0
    """Ray Train workers, 1 or more; 0 runs in this process, alone or as a rank of torchrun."""
    cpus: int = 1
    """CPUs of a worker, which is also its number of threads, 1 or more."""
    gpus: float = 0.0
    """GPUs of a worker, 0 or 1."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom Ray resources of a worker, for nodes set aside."""
    sharding: Literal["ddp", "fsdp2", "fsdp2_offload"] = "ddp"
    """Whether every rank holds the whole reader, or a share of its weights, there or in host memory."""
    max_failures: int = 3
    """Restarts after worker failures, each from the newest checkpoint; -1 for any number."""
    memory_gib: float = 0.0
    """Memory of a rank that the estimate must fit; 0 for what the machine has."""

    def __post_init__(self) -> None:
        """Refuse numbers out of bounds; raises ConfigError."""
        if self.num_workers < 0 or self.cpus < 1 or self.max_failures < -1 or self.memory_gib < 0:
            raise ConfigError(
                f"ranks.num_workers={self.num_workers} and ranks.memory_gib={self.memory_gib:g} must be 0 or "
                f"more, ranks.cpus={self.cpus} 1 or more, ranks.max_failures={self.max_failures} -1 or more"
            )
        if self.gpus not in (0.0, 1.0):
            raise ConfigError(f"ranks.gpus={self.gpus:g} must be 0 or 1: a worker drives one GPU")
        if self.sharding == "fsdp2" and self.num_workers == 1:
            raise ConfigError("ranks.sharding='fsdp2' needs more than one worker; use 'ddp'")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """Where the index of a joint job lives under Ray; with `ranks.num_workers=0` it is in the process."""

    num_shards: int = 1
    """Shard actors, 1 or more."""
    num_encoders: int = 1
    """Encoder actors, 1 or more; `training.estimate` says how many keep up."""
    shard_cpus: int = 1
    """CPUs and threads of a shard."""
    encoder_cpus: int = 1
    """CPUs and threads of an encoder."""
    encoder_gpus: float = 0.0
    """GPUs of an encoder, or a share of one."""
    shard_gpus: float = 0.0
    """GPUs of a shard, or a share of one; above 0 it holds its vectors there."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom Ray resources of each of these actors."""

    def __post_init__(self) -> None:
        """Refuse numbers out of bounds; raises ConfigError."""
        for name in ("num_shards", "num_encoders", "shard_cpus", "encoder_cpus"):
            if getattr(self, name) < 1:
                raise ConfigError(f"index.{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("encoder_gpus", "shard_gpus"):
            if getattr(self, name) < 0:
                raise ConfigError(f"index.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """One job."""

    kind: JobKind
    """What is done."""
    out: Path
    """Folder of the job: state, logs, checkpoints, result. On a cluster every node must reach it."""
    data: DataConfig
    """What it learns from."""
    ranks: RanksConfig = field(default_factory=RanksConfig)
    """Who computes."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """Where the index lives under Ray."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """The kind's own configuration by table name, parsed."""

    def __post_init__(self) -> None:
        """Refuse what no kind can do; raises ConfigError."""
        if self.kind != "joint" and self.ranks.num_workers > 1:
            raise ConfigError(
                f"kind {self.kind!r} runs on one rank: set ranks.num_workers to 0 or 1, got "
                f"{self.ranks.num_workers}"
            )

    @property
    def name(self) -> str:
        """Return what lists call the job: the name of its folder."""
        return self.out.name

    @property
    def num_steps(self) -> int:
        """Return the optimizer steps of the whole job; 0 where it takes none."""
        own = self.tables[self.kind]
        if self.kind == "mine":
            return 0
        return own.optim.steps if self.kind == "joint" else own.train.steps

    def resolved(self) -> JobConfig:
        """Return the job with absolute paths, for processes with another working folder."""
        data = self.data
        return replace(
            self,
            out=self.out.resolve(),
            data=replace(
                data,
                train=_resolved(data.train),
                held_out=None if data.held_out is None else _resolved(data.held_out),
                library=None if data.library is None else data.library.resolve(),
                negatives=None if data.negatives is None else data.negatives.resolve(),
            ),
        )

    def relative_paths(self) -> list[str]:
        """Return the fields whose path depends on the working folder, as `field=path`."""
        data = self.data
        paths = {"out": self.out, "data.train.path": data.train.path, "data.train.corpus": data.train.corpus}
        if data.held_out is not None:
            paths |= {"data.held_out.path": data.held_out.path, "data.held_out.corpus": data.held_out.corpus}
        paths |= {"data.library": data.library, "data.negatives": data.negatives}
        return [
            f"{name}='{path}'" for name, path in paths.items() if path is not None and not path.is_absolute()
        ]


def load_job(path: Path, overrides: Iterable[str] = ()) -> JobConfig:
    """Return the job of a TOML file and `dotted.key=value` overrides.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, missing, of a wrong type or out of bounds.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse_job(text, overrides, str(path))


def parse_job(text: str, overrides: Iterable[str] = (), where: str = "job") -> JobConfig:
    """Return the job of a TOML text; see `load_job`.

    Args:
        text: The file's content.
        overrides: Later ones win.
        where: What messages name it by.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} cannot be read as TOML: {error}") from error
    apply_overrides(table, overrides)
    kind = cast(JobKind, table.get("kind"))
    if kind not in get_args(JobKind):
        raise ConfigError(f"{where}: kind must be one of {', '.join(get_args(JobKind))}, got {kind!r}")
    if "tables" in table:
        raise ConfigError(f"{where}: unknown key 'tables'; write the table [{kind}]")
    wanted = _TABLES[kind]
    own = {name: table.pop(name, {}) for name in wanted}
    _refuse_foreign(table, kind, where)
    config = from_table(JobConfig, table, where)
    parsed = {name: _parsed(wanted[name], content, f"{where}: {name}") for name, content in own.items()}
    return replace(config, tables=parsed)


def _refuse_foreign(table: Mapping[str, Any], kind: JobKind, where: str) -> None:
    """Refuse tables of another kind, and misspelt names of this one's, which `from_table` cannot know."""
    for key in table:
        owner = next((other for other, names in _TABLES.items() if key in names), None)
        if owner is not None:
            raise ConfigError(
                f"{where}: table [{key}] belongs to kind {owner!r}, this job is of kind {kind!r}"
            )
        near = difflib.get_close_matches(key, _TABLES[kind], n=1)
        if near and key not in JobConfig.__dataclass_fields__:
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")


def _parsed(home: str, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is a table, got {content!r}")
    module, _, name = home.partition(":")
    return from_table(getattr(import_module(module), name), content, where)


def _resolved(source: SourceConfig) -> SourceConfig:
    corpus = None if source.corpus is None else source.corpus.resolve()
    return replace(source, path=source.path.resolve(), corpus=corpus)
