"""The note beside a base segment's files: what it is, how it was built and how it was tuned."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from retrieval.vectors.types import CorruptBase, SearchEffort
from retrieval.versions import IndexKind

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTE_NAME = "vectors.json"


@dataclass(frozen=True, slots=True)
class Note:
    """What `open_base` needs to know before it reads an index file."""

    kind: IndexKind
    """Which structure."""
    effort: SearchEffort
    """What the tuner chose."""
    measured_recall: float | None = None
    """Recall@10 at that effort; None where it is exact or was not measured."""
    structure: Mapping[str, int] = field(default_factory=dict[str, int])
    """Numbers it was built with, such as how many lists."""

    def write(self, folder: Path) -> Path:
        """Write it into a folder and return the file."""
        path = folder / NOTE_NAME
        values = {
            "kind": self.kind,
            "probes": self.effort.probes,
            "rerank": self.effort.rerank,
            "measured_recall": self.measured_recall,
            "structure": dict(self.structure),
        }
        path.write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: Path) -> Note:
        """Return the note of a folder.

        Raises:
            CorruptBase: There is none, or it is not what `write` wrote.
        """
        path = folder / NOTE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            kind, recall = values["kind"], values["measured_recall"]
            if kind not in get_args(IndexKind) or kind == "auto":
                raise ValueError(f"unknown kind {kind!r}")
            return cls(
                cast("IndexKind", kind),
                SearchEffort(int(values["probes"]), int(values["rerank"])),
                None if recall is None else float(recall),
                {str(name): int(number) for name, number in values["structure"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptBase(f"{path} does not describe a vector base: {error}; build it again") from error
