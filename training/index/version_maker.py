"""How the rank that drives makes versions: pins weights, has blocks encoded, repairs and deletes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from training.index.encoder_pool import EncoderPool
from training.index.range_queue import EncodingJob
from training.index.snapshot_weights import SaveWeights, SnapshotWeights
from training.index.version_rows import RowsDtype, VersionSpec


@dataclass(frozen=True, slots=True)
class IndexLayout:
    """What all versions of a run have in common."""

    corpus_fingerprint: str
    """Names the texts and their order."""
    num_rows: int
    """Texts of the corpus."""
    dim: int
    """Columns."""
    dtype: RowsDtype
    """How numbers are stored."""
    block_rows: int
    """Rows that are encoded, stored and scored together."""

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that name the layout."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


class VersionMaker:
    """Makes versions with the encoders of a pool, one folder of vectors and one of weights for each."""

    def __init__(
        self,
        versions_folder: Path,
        weights_folder: Path,
        layout: IndexLayout,
        pool: EncoderPool,
        timeout_s: float,
    ) -> None:
        """Start without versions.

        Args:
            versions_folder: Where vectors go.
            weights_folder: Where snapshot weights go.
            layout: Of every version.
            pool: Encoders; closed with this object.
            timeout_s: Longest wait for a version.
        """
        self._versions_folder = versions_folder
        self._weights = SnapshotWeights(weights_folder)
        self._layout = layout
        self._pool = pool
        self._timeout_s = timeout_s
        self._jobs: dict[int, EncodingJob] = {}
        self._num_damaged = 0

    @property
    def weights_hashes(self) -> Mapping[int, str]:
        """Return the hash of the snapshot weights of each version made or resumed here."""
        return {number: job.spec.weights_hash for number, job in self._jobs.items()}

    @property
    def num_again(self) -> int:
        """Return how many blocks were encoded more than once."""
        return self._num_damaged + self._pool.num_again

    def snapshot(self, number: int, step: int, save_weights: SaveWeights) -> None:
        """Pin the weights of the moment and begin to encode with them; raises like `SnapshotWeights.save`."""
        self._begin(number, step, self._weights.save(number, save_weights))

    def resume(self, number: int, step: int, weights_hash: str) -> None:
        """Go on with a version of a checkpoint: finished blocks are kept, the others encoded.

        Raises:
            CheckpointError: Its pinned weights are missing or damaged.
        """
        self._weights.check(number, weights_hash)
        self._begin(number, step, weights_hash)

    def num_pending(self, number: int) -> int:
        """Return how many blocks of a version lack."""
        return self._pool.num_pending(number)

    def complete(self, number: int) -> None:
        """Return when a version is finished; raises like `EncoderPool.wait`."""
        self._pool.wait(number, self._timeout_s)

    def repair(self, number: int, num_damaged: int) -> None:
        """Encode the damaged blocks of a finished version again, and wait for them."""
        self._num_damaged += num_damaged
        self._pool.begin(self._jobs[number])
        self.complete(number)

    def collect(self, needed: set[int]) -> list[int]:
        """Delete vectors and weights of all other versions; return their numbers."""
        stored = {
            int(path.name[1:]) for path in self._versions_folder.glob("v*") if path.name[1:].isdecimal()
        }
        surplus = sorted((stored | set(self._weights.numbers())) - needed)
        for number in surplus:
            shutil.rmtree(self._versions_folder / f"v{number}", ignore_errors=True)
            self._weights.delete(number)
            self._jobs.pop(number, None)
        return surplus

    def close(self) -> None:
        """Stop the encoders; what is on disk stays."""
        self._pool.close()

    def _begin(self, number: int, step: int, weights_hash: str) -> None:
        spec = VersionSpec(number=number, step=step, weights_hash=weights_hash, **asdict(self._layout))
        self._jobs[number] = EncodingJob(spec, self._versions_folder, self._weights.path(number))
        self._pool.begin(self._jobs[number])
