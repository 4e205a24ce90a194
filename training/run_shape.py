"""The sizes that decide what a joint run costs: its models, what moves in them, and the lengths of texts."""

from __future__ import annotations

from retrieval.model_files import model_folder
from training.errors import ConfigError
from training.joint.config import JointConfig
from training.model_shape import ModelShape
from training.workload import Lengths, Workload

_PROMPT_TOKENS = 64
"""System text, roles and marks around a question and its passages."""


class RunShape:
    """A configuration on a workload."""

    def __init__(self, config: JointConfig, workload: Workload) -> None:
        """Read the sizes of the models; no weight is loaded.

        Raises:
            ConfigError: A model cannot be found.
        """
        self.config, self.workload = config, workload
        try:
            self.encoder = ModelShape.of(model_folder(config.encoder.model))
            has_reader = bool(config.reader.model) and config.reader.form != "none"
            self.reader = ModelShape.of(model_folder(config.reader.model)) if has_reader else None
        except FileNotFoundError as error:
            raise ConfigError(f"a model of the run cannot be found: {error}") from error

    @property
    def queries(self) -> Lengths:
        """Return the lengths of questions."""
        return self.workload.queries or Lengths.fixed(self.config.encoder.max_query_tokens)

    @property
    def passages(self) -> Lengths:
        """Return the lengths of passages as the encoder reads them."""
        return self.workload.passages or Lengths.fixed(self.config.encoder.max_passage_tokens)

    @property
    def rows(self) -> Lengths:
        """Return the lengths of reader rows."""
        if self.workload.rows is not None:
            return self.workload.rows
        reader = self.config.reader
        shown = self.config.search.k if reader.form == "concat" else 1
        fixed = _PROMPT_TOKENS + self.queries.longest + reader.max_answer_tokens
        return Lengths.fixed(fixed + shown * reader.max_passage_tokens)

    @property
    def trains_passages(self) -> bool:
        """Return whether passages are encoded with gradients."""
        return self.config.refresh.refreshes

    @property
    def teaches(self) -> bool:
        """Return whether the reader teaches the retriever."""
        return self.reader is not None and self.config.loss.retriever is not None

    @property
    def num_weights(self) -> tuple[int, int]:
        """Return the weights of the retriever, both sides, and of the reader."""
        is_parted = self.config.encoder.towers == "untied" or self.config.refresh.mode == "query_side"
        return (2 if is_parted else 1) * self.encoder.num_params, self.reader.num_params if self.reader else 0

    @property
    def num_trained(self) -> tuple[int, int]:
        """Return the weights of each that move."""
        sides = 0 if self.config.refresh.mode == "frozen" else 1
        if self.trains_passages and self.config.encoder.towers == "untied":
            sides = 2
        of_reader = 0
        if self.reader is not None and not self.config.reader.frozen:
            of_reader = self.reader.num_trained(self.config.reader.lora)
        return sides * self.encoder.num_trained(self.config.encoder.lora), of_reader

    def rows_of(self, questions: float) -> float:
        """Return the reader rows of some questions."""
        return questions * (self.config.search.k if self.config.reader.form == "parallel" else 1)

    def encoded_flops(self, rows: float, lengths: Lengths, calls: int, *, is_distinct: bool = False) -> float:
        """Return the FLOPs of encoding rows in some calls, each padded to its longest.

        Args:
            rows: Over all calls.
            lengths: Of the texts.
            calls: Batches.
            is_distinct: Whether a passage that stands twice in a batch is encoded once.
        """
        in_call = rows / calls
        if is_distinct:
            in_call = min(in_call, float(self.workload.num_passages))
        padded = lengths.padded(in_call)
        return self.encoder.forward_flops(calls * in_call * padded, padded)
