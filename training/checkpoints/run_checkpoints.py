"""Checkpoints of a run: complete or absent, verified, resharded, written while training goes on.

Tensors are written by PyTorch's distributed checkpoint (DCP), which gathers and splits them for any number
of ranks. A checkpoint is a folder `step-<n>`: it is written as `step-<n>.partial`, its files fsynced, the
manifest with their hashes last, then renamed, then `LATEST` names it for people and scripts. A crash leaves
the one before as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from training.errors import CheckpointError, OutOfResources

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_LATEST = "LATEST"
_BEST = "BEST"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A complete checkpoint."""

    folder: Path
    """Where it is."""
    step: int
    """Optimizer steps done."""
    world_size: int
    """Ranks of the run that wrote it."""
    facts: dict[str, Any]
    """Everything but tensors, as it was given."""


class RunCheckpoints:
    """The checkpoints of one run; every rank makes one and calls it at the same steps."""

    def __init__(self, folder: Path, *, fingerprint: str, keep: int = 2) -> None:
        """Prepare, on every rank of the initialised process group (of one, where a run is alone).

        Args:
            folder: Of the run; made if missing.
            fingerprint: Of the configuration and the data: a checkpoint of another is refused.
            keep: Newest checkpoints kept.
        """
        self._folder, self._fingerprint, self._keep = folder, fingerprint, keep
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        # Files are written while the ranks train: their collectives must not mix.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._writing: tuple[Future[Any], int, dict[str, Any]] | None = None
        if self._rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("step-*.partial"):
                shutil.rmtree(left)

    def save(self, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write a checkpoint and return when it is complete.

        Args:
            step: Optimizer steps done.
            tensors: A state dict for DCP, the same keys on every rank.
            facts: JSON values beside it.

        Raises:
            OutOfResources: The disk is full; the checkpoint before is as it was.
            CheckpointError: It could not be written.
        """
        self.wait()
        try:
            save_tensors(tensors, checkpoint_id=str(self._partial(step)), process_group=self._group)
        except (CheckpointException, OSError) as error:
            raise self._failed(step, error) from error
        self._commit(step, facts)

    def begin(self, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Copy the state and write it in the background; the next call of any kind waits for it.

        Raises:
            OutOfResources: The disk was full for the one before.
            CheckpointError: The one before could not be written.
        """
        self.wait()
        future = async_save(tensors, checkpoint_id=str(self._partial(step)), process_group=self._group)
        if not isinstance(future, Future):
            future = future.upload_completion
        self._writing = (future, step, facts)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written and make it the newest; see `save` for errors."""
        if self._writing is None:
            return
        future, step, facts = self._writing
        self._writing = None
        try:
            future.result()
        except (CheckpointException, OSError) as error:
            raise self._failed(step, error) from error
        self._commit(step, facts)

    def mark_best(self, step: int) -> None:
        """Keep a checkpoint for good, until another is marked."""
        if self._rank == 0:
            _write_text(self._folder / _BEST, f"step-{step}")

    def newest(self) -> SavedRun | None:
        """Return the newest complete checkpoint, or None before the first.

        One whose files are damaged is left out with a warning: the run then repeats the steps since the one
        before, with the same result.

        Raises:
            CheckpointError: All are damaged, or the run had another configuration or other data.
        """
        found = sorted(self._folder.glob("step-*"), key=lambda path: -_step_of(path))
        found = [path for path in found if path.suffix != ".partial"]
        for folder in found:
            problem = _damage(folder)
            if problem is None:
                manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
                if manifest["fingerprint"] != self._fingerprint:
                    raise CheckpointError(
                        f"'{folder}' was written by a run of another configuration or other data "
                        f"({manifest['fingerprint']}, this one is {self._fingerprint}); use the same, "
                        "or another output folder"
                    )
                return SavedRun(folder, manifest["step"], manifest["world_size"], manifest["facts"])
            _log.warning("checkpoint '%s' is left out: %s", folder, problem)
        if found:
            raise CheckpointError(
                f"no checkpoint in '{self._folder}' is whole; restore one from a copy, or start anew in "
                "another output folder"
            )
        return None

    def kept_facts(self) -> list[dict[str, Any]]:
        """Return the facts of every complete checkpoint that is kept."""
        manifests = [path / _MANIFEST for path in self._folder.glob("step-*") if path.suffix != ".partial"]
        return [json.loads(path.read_text(encoding="utf-8"))["facts"] for path in manifests if path.exists()]

    def load(self, saved: SavedRun, tensors: dict[str, Any]) -> None:
        """Read a checkpoint into a state dict in place, for this number of ranks.

        Raises:
            CheckpointError: Its tensors are not those of the state dict.
        """
        try:
            load_tensors(tensors, checkpoint_id=str(saved.folder), process_group=self._group)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise CheckpointError(f"'{saved.folder}' does not fit this run's models: {error}") from error

    def _partial(self, step: int) -> Path:
        return self._folder / f"step-{step}.partial"

    def _commit(self, step: int, facts: dict[str, Any]) -> None:
        """Make what was written the newest checkpoint, on the first rank, once every rank has written."""
        if self._rank == 0:
            partial, folder = self._partial(step), self._folder / f"step-{step}"
            manifest = {
                "step": step,
                "fingerprint": self._fingerprint,
                "world_size": self._world_size,
                "facts": facts,
                "files": {path.name: _hash(path) for path in sorted(partial.iterdir())},
            }
            try:
                _write_text(partial / _MANIFEST, json.dumps(manifest))
            except OSError as error:
                raise self._failed(step, error) from error
            if folder.exists():  # A run that went back before this step comes by again.
                shutil.rmtree(folder)
            partial.rename(folder)
            _sync_folder(self._folder)
            _write_text(self._folder / _LATEST, folder.name)
            self._collect()
        dist.barrier(self._group)

    def _collect(self) -> None:
        best = self._folder / _BEST
        kept = {best.read_text(encoding="utf-8").strip()} if best.exists() else set()
        found = [path for path in self._folder.glob("step-*") if path.suffix != ".partial"]
        found.sort(key=_step_of)
        for old in found[: -self._keep]:
            if old.name not in kept:
                shutil.rmtree(old)

    def _failed(self, step: int, error: BaseException) -> Exception:
        if self._rank == 0:
            shutil.rmtree(self._partial(step), ignore_errors=True)
        # DCP gives a pair of exception and traceback for each rank that failed.
        causes = [error, *(pair[0] for pair in getattr(error, "failures", {}).values())]
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
            return OutOfResources(
                f"the disk of '{self._folder}' is full: the checkpoint of step {step} was not written, the "
                "one before is as it was. Free space and start the run again with the same arguments"
            )
        return CheckpointError(f"checkpoint {step} in '{self._folder}' could not be written: {error}")


def _step_of(folder: Path) -> int:
    return int(folder.name.removesuffix(".partial").removeprefix("step-"))


def _damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, None when nothing is."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"its manifest cannot be read ({error})"
    for name, wanted in files.items():
        path = folder / name
        if not path.exists():
            return f"'{name}' is missing"
        if _hash(path) != wanted:
            return f"'{name}' is not what was written"
    return None


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
