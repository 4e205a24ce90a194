"""What a run brings to its nodes. Passed as LangGraph's runtime context, so it is never checkpointed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TypedDict
from uuid import uuid4

from agents.budget import Budget
from agents.config import AgentsConfig
from agents.errors import InvalidQuestion
from retrieval.types import DEFAULT_TENANT, Retriever
from serving.types import Generator


class Stamp(TypedDict):
    """The fields every event has."""

    run_id: str
    seq: int
    t_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Everything a node may use besides the state."""

    retriever: Retriever
    """Finds passages."""
    generator: Generator
    """Writes text."""
    run_id: str = field(default_factory=lambda: uuid4().hex)
    """Unique id of the run."""
    tenant: str = DEFAULT_TENANT
    """On whose behalf; filters act inside the index."""
    library: str | None = None
    """Only this library; None for all of the tenant's."""
    document_ids: tuple[str, ...] = ()
    """Only these documents; empty for all."""
    config: AgentsConfig = field(default_factory=AgentsConfig)
    """Sizes and thresholds."""
    budget: Budget = field(default_factory=Budget)
    """What the run may spend."""
    thread_id: str | None = None
    """The conversation it belongs to; None for none."""
    release: str = ""
    """Release pinned for the whole run."""
    started: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when the run was admitted."""
    began_s: float = field(default_factory=time.time)
    """The same in seconds since 1970: the generator finishes older runs first."""

    @property
    def remaining_s(self) -> float:
        """Return seconds left until the deadline; negative once it has passed."""
        return self.started + self.budget.deadline_s - time.monotonic()

    @property
    def session(self) -> str:
        """Return what its requests have in common, also with earlier ones of the same conversation."""
        return self.run_id if self.thread_id is None else f"{self.tenant}/{self.thread_id}"

    def stamp(self) -> Stamp:
        """Return what an event says of its run and time; `Run` numbers events as it passes them on."""
        return Stamp(run_id=self.run_id, seq=0, t_ms=round((time.monotonic() - self.started) * 1e3, 3))


def check_question(question: str, config: AgentsConfig) -> str:
    """Return the question without outer white space.

    Raises:
        InvalidQuestion: It is empty or longer than `config.max_question_chars`.
    """
    if len(question) > config.max_question_chars:
        raise InvalidQuestion(
            f"the question has {len(question):,} characters, the limit is {config.max_question_chars:,} "
            "(agents.max_question_chars); shorten it, or add the long text as a document and ask about it"
        )
    stripped = question.strip()
    if not any(char.isalnum() for char in stripped):
        raise InvalidQuestion("the question is empty; write at least one word")
    return stripped
