"""Configuration of a joint run: one frozen dataclass per concern, read from TOML, bounds checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from retrieval.config import PACKAGED_EMBEDDER
from training.errors import ConfigError
from training.index.schedule import RefreshConfig

Towers = Literal["tied", "untied"]
"""One encoder for queries and passages, or one for each that begin alike."""
RetrieverLoss = Literal["pdist", "lsr", "emdr2_token", "emdr2_sequence", "rag_token", "rag_sequence", "loop"]
"""How the reader's likelihoods teach the retriever; the names of `training.losses`, which loads torch."""
ReaderForm = Literal["none", "parallel", "concat"]
"""No reader; a row for each passage; or one row with all of them (a plain RAG prompt, RAFT)."""


def _check(owner: str, **bounds: tuple[float, float, float]) -> None:
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ConfigError(f"{owner}.{name}={value:g} must be from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters of one tower."""

    rank: int = 16
    """Rank of each update; 1 to 512."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get one; empty for all of them."""

    def __post_init__(self) -> None:
        """Refuse ranks that cannot be; raises ConfigError."""
        _check("lora", rank=(self.rank, 1, 512), alpha=(self.alpha, 1e-3, 1e4))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The retriever under training."""

    model: str = PACKAGED_EMBEDDER
    """sentence-transformers model: packaged, a folder, or a Hugging Face id."""
    towers: Towers = "tied"
    """Whether its two sides are one; `refresh.mode` says which are trained, and `query_side` parts them."""
    lora: LoraConfig | None = None
    """None trains all weights."""
    max_query_tokens: int = 64
    """Tokens read of a question."""
    max_passage_tokens: int = 192
    """Tokens read of a passage, the same while training and while indexing."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of being kept."""

    def __post_init__(self) -> None:
        """Refuse lengths out of bounds; raises ConfigError."""
        _check(
            "encoder",
            max_query_tokens=(self.max_query_tokens, 4, 32_768),
            max_passage_tokens=(self.max_passage_tokens, 4, 32_768),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderConfig:
    """The language model under training."""

    model: str = ""
    """Folder or Hugging Face id of a causal language model with ChatML tokens; empty trains no reader."""
    form: ReaderForm = "parallel"
    """How passages are put before it."""
    lora: LoraConfig | None = None
    """None trains all weights."""
    frozen: bool = False
    """Whether it only teaches (REPLUG) and is not trained."""
    max_passage_tokens: int = 256
    """Tokens shown of a passage."""
    max_answer_tokens: int = 64
    """Tokens taught of an answer."""
    oracle_drop: float = 0.0
    """concat: share of questions whose gold passages are left out of the row (RAFT's 1 - p)."""
    row_tokens: int = 0
    """Rows are packed into rows of this many tokens; 0 pads them instead."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of being kept."""

    def __post_init__(self) -> None:
        """Refuse contradictions; raises ConfigError."""
        _check(
            "reader",
            max_passage_tokens=(self.max_passage_tokens, 4, 32_768),
            max_answer_tokens=(self.max_answer_tokens, 1, 4096),
            oracle_drop=(self.oracle_drop, 0.0, 1.0),
            row_tokens=(self.row_tokens, 0, 1_048_576),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    retriever: RetrieverLoss | None = "pdist"
    """The reader teaches the retriever by this; None (`"none"` in TOML) by nothing."""
    retriever_weight: float = 1.0
    """Weight of the retriever loss."""
    reader_weight: float = 1.0
    """Weight of the reader's own loss on answers."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive loss over labelled positives, mined negatives and the rest of the batch."""
    reader_passages: Literal["uniform", "retriever"] = "uniform"
    """parallel: whether each passage's row counts the same, or as much as the retriever believes in it."""
    score_temperature: float = 0.05
    """Cosines are divided by it before the softmax."""
    teacher_temperature: float = 0.0
    """Fixed temperature of the reader's likelihoods; 0 keeps their entropy at `teacher_entropy`."""
    teacher_entropy: float = 0.5
    """Share of ln(k) at which the teacher's mean entropy is kept."""
    min_spread: float = 1e-3
    """Questions whose likelihoods differ less than this over the passages teach nothing and are skipped."""
    contrastive_negatives: int = 1
    """Wrong passages of each question beside those of the others: judged, mined, or retrieved."""
    contrastive_cache_rows: int = 0
    """Rows encoded at a time by GradCache; 0 encodes all at once."""
    null_passage: bool = True
    """parallel: whether each answer is also scored without a passage, which tells what retrieval is worth."""
    two_pass: bool = False
    """Whether the teacher's likelihoods come from a second forward pass; the oracle of the shared one."""

    def __post_init__(self) -> None:
        """Refuse weights and temperatures out of bounds; raises ConfigError."""
        _check(
            "loss",
            retriever_weight=(self.retriever_weight, 0.0, 1e3),
            reader_weight=(self.reader_weight, 0.0, 1e3),
            contrastive_weight=(self.contrastive_weight, 0.0, 1e3),
            contrastive_negatives=(self.contrastive_negatives, 0, 1000),
            contrastive_cache_rows=(self.contrastive_cache_rows, 0, 1e6),
            score_temperature=(self.score_temperature, 1e-4, 1e3),
            teacher_temperature=(self.teacher_temperature, 0.0, 1e3),
            teacher_entropy=(self.teacher_entropy, 0.01, 0.99),
            min_spread=(self.min_spread, 0.0, 1e3),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What a step retrieves."""

    k: int = 8
    """Passages a question trains on; 2 to 512."""
    rerank: int = 2
    """k times this many are fetched and put in order by the fresh encoder; 1 takes the index's own order."""
    deadline_s: float = 60.0
    """Longest wait for the index; then the step fails instead of training on fewer passages."""

    def __post_init__(self) -> None:
        """Refuse sizes out of bounds; raises ConfigError."""
        _check(
            "search",
            k=(self.k, 2, 512),
            rerank=(self.rerank, 1, 64),
            deadline_s=(self.deadline_s, 0.1, 86_400),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """How weights move."""

    steps: int = 1000
    """Optimizer steps of the run."""
    batch_questions: int = 16
    """Questions a step over all ranks; independent of how many ranks share them."""
    accumulate: int = 1
    """Parts a rank computes its questions in, one after the other."""
    encoder_lr: float = 2e-5
    """Peak rate of the retriever."""
    reader_lr: float = 2e-5
    """Peak rate of the reader."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What follows the warm-up."""
    clip: float = 1.0
    """Largest gradient norm of each tower."""
    kind: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    """AdamW with states of 32 bits, or of 8; Adafactor keeps sums over rows and columns in their place."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; weights and losses stay float32."""

    def __post_init__(self) -> None:
        """Refuse numbers out of bounds; raises ConfigError."""
        _check(
            "optim",
            steps=(self.steps, 1, 1e9),
            batch_questions=(self.batch_questions, 1, 1e6),
            accumulate=(self.accumulate, 1, self.batch_questions),
            encoder_lr=(self.encoder_lr, 0.0, 10.0),
            reader_lr=(self.reader_lr, 0.0, 10.0),
            weight_decay=(self.weight_decay, 0.0, 1.0),
            warmup_steps=(self.warmup_steps, 0, self.steps),
            clip=(self.clip, 1e-6, 1e6),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved."""

    every_steps: int = 100
    """Steps between checkpoints; one is also written at the end and at a notice of preemption."""
    keep: int = 2
    """Newest checkpoints kept, at least 1; the best by the evaluation is kept besides."""
    asynchronous: bool = True
    """Whether files are written while the next steps run; the state is copied first."""
    memory_every_steps: int = 0
    """Steps between copies in the memory of Ray actors on the ranks' nodes, for restarts; 0 keeps none."""

    def __post_init__(self) -> None:
        """Refuse numbers out of bounds; raises ConfigError."""
        _check(
            "checkpoint",
            every_steps=(self.every_steps, 1, 1e9),
            keep=(self.keep, 1, 1000),
            memory_every_steps=(self.memory_every_steps, 0, 1e9),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What is measured on the held-out questions."""

    every_steps: int = 0
    """Steps between evaluations; 0 measures before the first step and after the last only."""
    max_questions: int = 200
    """Held-out questions used, the same each time."""
    k: int = 5
    """Passages a question's answer is read from."""
    generate: bool = True
    """Whether the reader answers, for EM and F1; retrieval alone is much faster."""
    max_new_tokens: int = 24
    """Tokens generated of an answer."""

    def __post_init__(self) -> None:
        """Refuse numbers out of bounds; raises ConfigError."""
        _check(
            "evaluation",
            every_steps=(self.every_steps, 0, 1e9),
            max_questions=(self.max_questions, 1, 1e9),
            k=(self.k, 1, 100),
            max_new_tokens=(self.max_new_tokens, 1, 4096),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JointConfig:
    """Everything that decides the result of a joint run, and nothing else."""

    seed: int = 20261127
    """Of the order of questions and of everything random."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """The retriever."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """The language model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """What a step retrieves."""
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    """How fresh the index is kept."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How weights move."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the run is saved."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured."""

    def __post_init__(self) -> None:
        """Refuse parts that contradict each other.

        Raises:
            ConfigError: Naming the two fields and the remedy.
        """
        has_reader = bool(self.reader.model) and self.reader.form != "none"
        if self.loss.retriever is not None and self.loss.retriever_weight > 0 and not has_reader:
            raise ConfigError(
                f"loss.retriever={self.loss.retriever!r} needs a reader to learn from: set reader.model, "
                "or loss.retriever='none' and a loss.contrastive_weight"
            )
        if self.loss.retriever == "loop" and self.reader.form != "concat":
            raise ConfigError(
                "loss.retriever='loop' leaves passages out of one row: set reader.form='concat'"
            )
        if self.loss.retriever not in (None, "loop") and has_reader and self.reader.form != "parallel":
            raise ConfigError(
                f"loss.retriever={self.loss.retriever!r} needs a likelihood for each passage: "
                "set reader.form='parallel', or loss.retriever='loop'"
            )
        if (self.loss.retriever or "").startswith("rag") and self.reader.frozen:
            raise ConfigError("the rag losses train the reader too: set reader.frozen=false, or use emdr2")
        if self.refresh.mode == "frozen" and self.loss.reader_weight == 0:
            raise ConfigError(
                "refresh.mode='frozen' trains the reader alone: give loss.reader_weight above 0"
            )
        weights = self.loss.retriever_weight * (self.loss.retriever is not None)
        weights += self.loss.contrastive_weight + self.loss.reader_weight * has_reader
        if weights == 0:
            raise ConfigError("every loss has weight 0: there is nothing to train")
        if self.refresh.mode == "frozen" and (not has_reader or self.reader.frozen):
            raise ConfigError(
                "refresh.mode='frozen' trains no retriever and there is no reader to train either"
            )


def load_joint_config(path: Path, overrides: tuple[str, ...] = ()) -> JointConfig:
    """Return the configuration of a TOML file and `key=value` overrides; raises ConfigError."""
    from training.toml_config import load_toml

    return load_toml(JointConfig, path, overrides)
