"""Which shard holds a document, and where the copies of the shards are on disk.

A document lives on shard `hash(document_id) % num_shards`, all its chunks with it. The map is one file, so a
reshard or a promotion is one atomic replacement of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrieval.errors import IndexUnavailable
from retrieval.sharding.durable_json import read_json, write_json

FILE_NAME = "placement.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """The map from documents to shards, and from shards to folders."""

    num_shards: int
    """Parts the documents are spread over."""
    generation: int = 1
    """1 for a new index; one more after each reshard."""
    primaries: tuple[int, ...] = ()
    """By shard: the slot of the copy that takes writes; empty means slot 0 everywhere."""

    def __post_init__(self) -> None:
        if self.num_shards < 1 or self.generation < 1:
            raise ValueError(f"num_shards and generation must be at least 1; got {self}")
        if self.primaries and len(self.primaries) != self.num_shards:
            raise ValueError(f"primaries must name a slot for each of {self.num_shards} shards; got {self}")

    def shard_of(self, document_id: str) -> int:
        """Return the shard that holds a document."""
        digest = hashlib.blake2b(document_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.num_shards

    def name(self, shard: int) -> str:
        """Return a shard's name, as `SearchResult.missing_shards` and `min_seq` give it.

        Shards made by a reshard have names of their own: their log starts anew, so a `min_seq` of the shards
        before must not be compared with it.
        """
        return f"shard-{shard}" if self.generation == 1 else f"shard-{shard}.{self.generation}"

    def primary(self, shard: int) -> int:
        """Return the slot of the copy that takes writes."""
        return self.primaries[shard] if self.primaries else 0

    def promoted(self, shard: int, slot: int) -> Placement:
        """Return the map in which another copy of a shard takes writes."""
        slots = [self.primary(number) for number in range(self.num_shards)]
        slots[shard] = slot
        return Placement(self.num_shards, self.generation, tuple(slots))

    def folder(self, root: Path, shard: int, slot: int) -> Path:
        """Return the folder of a copy; an index of one shard, never resharded, lives in the root itself."""
        if self.num_shards == 1 and self.generation == 1 and slot == 0:
            return root
        return generation_folder(root, self.generation) / (f"{shard}-replica-{slot}" if slot else f"{shard}")


def generation_folder(root: Path, generation: int) -> Path:
    """Return the folder that holds all shards of a generation, but for the one that is in the root itself."""
    return root / "shards" / f"{generation}"


def open_placement(root: Path, num_shards: int) -> Placement:
    """Return the stored map, made now in a new folder.

    Args:
        root: Folder of the map.
        num_shards: Shards it must have; 0 for as many as there are, and one in a new folder.

    Raises:
        IndexUnavailable: The folder holds another number of shards than asked for, or a map not ours.
    """
    stored = read_placement(root)
    if stored is None:
        # A folder from before shards existed holds one, in the root.
        here = 1 if (root / "shard.sqlite3").exists() else num_shards or 1
        stored = Placement(here)
        _check(stored, num_shards, root)
        write_placement(root, stored)
    _check(stored, num_shards, root)
    return stored


def read_placement(root: Path) -> Placement | None:
    """Return the stored map; None where there is none yet."""
    values = read_json(root / FILE_NAME)
    if values is None:
        return None
    try:
        if values.pop("format") != _FORMAT:
            raise ValueError("another format")
        return Placement(**{**values, "primaries": tuple(values["primaries"])})
    except (KeyError, TypeError, ValueError) as error:
        raise IndexUnavailable(
            f"'{root / FILE_NAME}' is no map of shards this program can read ({error}); use the program "
            "that made it, or another data folder"
        ) from error


def write_placement(root: Path, placement: Placement) -> None:
    """Replace the stored map durably."""
    values: dict[str, Any] = asdict(placement)
    write_json(root / FILE_NAME, {**values, "format": _FORMAT})


def _check(stored: Placement, num_shards: int, root: Path) -> None:
    if num_shards not in (0, stored.num_shards):
        raise IndexUnavailable(
            f"the index in '{root}' has {stored.num_shards} shard(s), and num_shards={num_shards}; set "
            f"retrieval.num_shards=0, start, and run `graft index reshard {num_shards}` to change it"
        )
