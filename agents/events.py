"""Events of a run: typed, ordered by `seq`, JSON-safe, ended by exactly one `RunFinished`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from agents.state import Citation, RunResult
from retrieval.types import Hit, Passage


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event carries."""

    type: ClassVar[str] = "event"
    run_id: str
    """The run."""
    seq: int
    """0, 1, 2, ... within the run."""
    t_ms: float
    """Milliseconds since the run started."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain JSON types, `type` included."""
        return {"type": self.type, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The run was admitted."""

    type: ClassVar[str] = "run_started"
    graph: str
    """Name of the graph."""
    thread_id: str | None
    """Thread it continues; None for a run that is not kept."""
    release: str
    """Release pinned for the whole run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted(Event):
    """A node began."""

    type: ClassVar[str] = "node_started"
    node: str
    """Its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFinished(Event):
    """A node ended."""

    type: ClassVar[str] = "node_finished"
    node: str
    """Its name."""
    duration_ms: float
    """Wall time of the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval(Event):
    """A search answered."""

    type: ClassVar[str] = "retrieval"
    query: str
    """The search string."""
    hits: tuple[Hit, ...]
    """Best first."""
    passages: tuple[Passage, ...]
    """Text of the hits, same order."""
    index_version: str
    """Index that answered."""
    duration_ms: float
    """Wall time of the search."""
    partial: bool = False
    """True when a shard did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(Event):
    """New characters of the draft answer."""

    type: ClassVar[str] = "token"
    text: str
    """The characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cited(Event):
    """The answer was aligned to its sources."""

    type: ClassVar[str] = "citation"
    citations: tuple[Citation, ...]
    """All citations, in order of number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something a person should know: a lost shard, a truncated history."""

    type: ClassVar[str] = "warning"
    message: str
    """What happened and what it means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The run ended; the last event of every run, also of failed and cancelled ones."""

    type: ClassVar[str] = "run_finished"
    result: RunResult
    """What the run returns."""


RunEvent = RunStarted | NodeStarted | NodeFinished | Retrieval | Token | Cited | Warned | RunFinished
"""Every event a run can emit."""

EVENT_TYPES = {
    cls.type: cls
    for cls in (RunStarted, NodeStarted, NodeFinished, Retrieval, Token, Cited, Warned, RunFinished)
}
"""Event classes by their JSON `type`."""
