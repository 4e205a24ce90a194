"""What a run carries: citations, stop reasons, results, and the graph state."""

# langgraph is typed, but strict mode asks for stubs of a namespace package.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NotRequired, Required, TypedDict

from langgraph.channels import UntrackedValue
from langgraph.managed import RemainingSteps

from retrieval.types import Hit, Passage
from serving.types import TokenUsage

StopReason = Literal[
    "answered", "abstained", "steps", "model_calls", "retrievals", "tokens", "deadline", "cancelled", "error"
]
"""How a run ended. `abstained`: the passages do not support an answer; quotes are shown instead.
`steps`, `model_calls`, `retrievals`, `tokens`, `deadline`: that meter of the budget ran out."""


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a statement of the answer stands in a document. `quote == document_text[start:end]`."""

    number: int
    """The [n] in the answer it belongs to, from 1; for an abstention the number of the quote."""
    document_id: str
    """The document."""
    document: str
    """Its name."""
    chunk_id: str
    """The chunk that holds the quote."""
    page: int | None
    """1-based page, None where there are no pages."""
    start: int
    """Offset of the quote in the document's text."""
    end: int
    """Offset after the quote."""
    quote: str
    """The document's text from start to end."""
    score: float = 0.0
    """Support in [0, 1]: share of the statement's content words the quote holds."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """One message of a thread."""

    role: Literal["user", "assistant"]
    """Who spoke."""
    text: str
    """What was said."""
    citations: tuple[Citation, ...] = ()
    """Citations of an assistant's message."""
    stop_reason: StopReason | None = None
    """How the run behind an assistant's message ended."""


@dataclass(frozen=True, slots=True)
class ThreadInfo:
    """A conversation kept by the platform."""

    thread_id: str
    """Its id, without the tenant."""
    title: str
    """Its first question, cut to 80 characters."""
    updated_s: float
    """Unix time of its last message."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run returns; running out of budget is a result, not an exception."""

    run_id: str
    """Unique id of the run."""
    thread_id: str | None
    """The thread it belongs to; None for a run that is not kept."""
    answer: str
    """The answer with [n] marks; for an abstention, a sentence that says so followed by the quotes."""
    citations: tuple[Citation, ...]
    """One per [n] in the answer, in order of number."""
    stop_reason: StopReason
    """How it ended."""
    release: str
    """Release id that answered."""
    usage: TokenUsage = field(default_factory=TokenUsage)
    """Tokens of all model calls."""
    timings_ms: dict[str, float] = field(default_factory=dict)
    """Wall time per node, and `total`, `first_token`."""
    error: str | None = None
    """What went wrong; set when stop_reason is `error`."""
    error_kind: str | None = None
    """Class of the error, for example `Overloaded`; what a server maps to a status."""
    retry_after_s: float | None = None
    """Seconds after which a retry has a fair chance; set when the generator was overloaded."""


def add_usage(left: TokenUsage, right: TokenUsage) -> TokenUsage:
    """Return the sum, so that every model call of a run is counted."""
    return left + right


class RagInput(TypedDict):
    """What a caller gives a graph."""

    question: str
    """The user's words."""
    turns: NotRequired[Annotated[list[ChatTurn], operator.add]]
    """Earlier turns that no thread holds."""


class RagState(TypedDict, total=False):
    """State of every retrieval graph; small and plain, passage text stays out of checkpoints."""

    question: Required[str]
    """As asked; no node writes it after input."""
    turns: Annotated[list[ChatTurn], operator.add]
    """The thread so far, oldest first."""
    queries: list[str]
    """Queries sent in this run, in order."""
    hits: list[Hit]
    """What was found in this run; no text."""
    passages: Annotated[dict[str, Passage], UntrackedValue(dict)]
    """Text by chunk id; reloaded by id after a resume."""
    draft: str
    """What the model wrote, before citations were aligned."""
    answer: str
    """The final answer."""
    citations: list[Citation]
    """Citations of the final answer."""
    usage: Annotated[TokenUsage, add_usage]
    """Tokens so far."""
    num_model_calls: Annotated[int, operator.add]
    """Generations so far."""
    num_retrievals: Annotated[int, operator.add]
    """Searches so far."""
    stop_reason: StopReason | None
    """Set by the node that ends the run or finds a meter spent; None while neither happened."""
    remaining_steps: RemainingSteps
    """Supersteps LangGraph still allows."""


class RagOutput(TypedDict, total=False):
    """What a graph returns."""

    answer: str
    citations: Sequence[Citation]
    stop_reason: StopReason | None
    usage: TokenUsage
