"""Weights of the passage encoder at a snapshot, kept as long as its version may be encoded again."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from training.errors import CheckpointError, OutOfResources
from training.index.durable_files import PARTIAL_SUFFIX, partial_path, rename_durably

SaveWeights = Callable[[Path], None]
"""Writes the passage encoder of the moment into an empty folder, for `LoadEncoder` to read."""


class SnapshotWeights:
    """Folders of weights by version number."""

    def __init__(self, folder: Path) -> None:
        """Keep them in a folder, which is made when it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def path(self, number: int) -> Path:
        """Return the folder of a version."""
        return self._folder / f"w{number}"

    def save(self, number: int, save_weights: SaveWeights) -> str:
        """Store weights, whole or not at all, and return their hash; what was stored before is replaced.

        Args:
            number: Version they belong to.
            save_weights: Writes them.

        Raises:
            OutOfResources: The disk is full.
            ValueError: Nothing was written.
        """
        for left in self._folder.glob(f"*{PARTIAL_SUFFIX}"):
            shutil.rmtree(left)
        partial = partial_path(self.path(number))
        partial.mkdir()
        try:
            save_weights(partial)
            weights_hash = _folder_hash(partial)
            if self.path(number).exists():
                if _folder_hash(self.path(number)) == weights_hash:
                    return weights_hash
                shutil.rmtree(self.path(number))
            rename_durably(partial, self.path(number))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise OutOfResources(
                    f"the disk is full, snapshot {number} cannot be stored in {self._folder}: free space or "
                    "keep fewer checkpoints, then resume"
                ) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return weights_hash

    def check(self, number: int, weights_hash: str) -> None:
        """Make sure that pinned weights are what a checkpoint recorded.

        Raises:
            CheckpointError: They are missing or damaged.
        """
        path = self.path(number)
        if not path.is_dir():
            raise CheckpointError(f"snapshot weights {path} are missing: resume from another checkpoint")
        if _folder_hash(path) != weights_hash:
            raise CheckpointError(
                f"snapshot weights {path} are not those of the checkpoint: resume from another checkpoint"
            )

    def numbers(self) -> list[int]:
        """Return the versions whose weights are stored."""
        return sorted(int(path.name[1:]) for path in self._folder.glob("w*") if path.name[1:].isdecimal())

    def delete(self, number: int) -> None:
        """Delete the weights of a version."""
        shutil.rmtree(self.path(number), ignore_errors=True)


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise ValueError(f"{folder} holds no weights: save_weights must write at least one file")
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(folder).as_posix().encode()
        digest.update(len(name).to_bytes(8, "little") + name)
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
