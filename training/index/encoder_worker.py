"""One encoder at work: it pulls blocks until there are none, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from training.index.encoding import LoadEncoder, PassageEncoder, RowRange, encode_block
from training.index.range_queue import EncodingJob, Lease


class BlockSource(Protocol):
    """Where an encoder gets its work; `RangeQueue`, here or behind an actor."""

    def take(self, encoder: str) -> Lease | None:
        """Return a block, or None when there is nothing to do now."""
        ...

    def done(self, encoder: str, lease: Lease) -> None:
        """Record that a block is on disk."""
        ...


class EncoderWorker:
    """Keeps the encoder of the last version loaded, since blocks of one version come in a row."""

    def __init__(
        self, name: str, load_encoder: LoadEncoder, texts_of: Callable[[RowRange], Sequence[str]]
    ) -> None:
        """Start without weights.

        Args:
            name: Unique within its pool.
            load_encoder: Builds an encoder from snapshot weights.
            texts_of: Returns the texts of a block.
        """
        self._name = name
        self._load_encoder = load_encoder
        self._texts_of = texts_of
        self._loaded: tuple[EncodingJob, PassageEncoder] | None = None

    def run(self, source: BlockSource) -> int:
        """Encode and store blocks until the source has none; return how many."""
        num_blocks = 0
        while (lease := source.take(self._name)) is not None:
            self.encode(lease.job, lease.rows)
            source.done(self._name, lease)
            num_blocks += 1
        return num_blocks

    def encode(self, job: EncodingJob, rows: RowRange) -> None:
        """Encode one block and store it; raises what `encode_block` and the encoder raise, and OSError."""
        texts = self._texts_of(rows)
        job.rows.write(rows, encode_block(self._encoder(job), texts, rows, job.spec.dim))

    def _encoder(self, job: EncodingJob) -> PassageEncoder:
        if self._loaded is None or self._loaded[0] != job:
            # Two sets of weights need not fit in memory at once.
            self._loaded = None
            self._loaded = (job, self._load_encoder(job.weights_folder))
        return self._loaded[1]
