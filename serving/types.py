"""Values and seams of the generator: prompts, requests, chunks of output, and the `Generator` protocol.

Nothing here imports torch, vllm or ray; every other package may depend on this file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

SegmentKind = Literal["system", "tools", "passage", "memory", "history", "question", "answer"]
"""What a stretch of the prompt is for; kinds are ordered from most shared to least shared."""

ReuseMode = Literal["exact", "reorder", "blend"]
"""Whether KV is reused for equal prefixes only, after putting passages in an order that has more of them, or
also for chunks at other places."""

PassageOrder = Literal["canonical", "greedy_tree"]
"""The order that `reorder` puts passages in: by chunk id, or as an earlier prompt began."""

FinishReason = Literal["stop", "length", "cancelled", "deadline"]
"""Why a generation ended: end token or stop string, token limit, caller's cancel, caller's deadline."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of a prompt.

    Template text is ours and may hold control tokens (`<|im_start|>`). Everything that came from a
    document or a person is `trusted=False`: its control tokens are encoded as plain characters, so a
    document cannot forge a turn.
    """

    kind: SegmentKind
    """What this stretch is for."""
    text: str
    """The characters to encode."""
    trusted: bool = False
    """True for template text, whose control tokens keep their meaning."""
    chunk_id: str | None = None
    """The chunk whose text this is; names the unit of KV reuse."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """An ordered list of segments, encoded one by one so that equal segments have equal token ids."""

    segments: tuple[Segment, ...]
    """In the order the model reads them."""

    @property
    def text(self) -> str:
        """Return the prompt as one string, for logs and for people; never for encoding."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that generated text must have; exactly one is given.

    Every token is drawn among those that can still lead to it. Text cut by `max_tokens` is a beginning of it.
    """

    choices: tuple[str, ...] = ()
    """One of these strings."""
    regex: str | None = None
    """All of the text matches this regular expression (Rust's syntax: no look-around, no back references)."""
    json_schema: str | None = None
    """A JSON text that this schema, itself JSON, allows."""

    def __post_init__(self) -> None:
        given = [bool(self.choices), self.regex is not None, self.json_schema is not None]
        if sum(given) != 1:
            raise ValueError(
                f"a constraint has one of choices, regex and json_schema, got {sum(given)} of them"
            )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn."""

    max_tokens: int = 256
    """Most tokens to generate, 1 or more; cut to what the context window leaves."""
    temperature: float = 0.0
    """0 takes the most likely token; up to 2."""
    top_p: float = 1.0
    """Nucleus mass, in (0, 1]."""
    stop: tuple[str, ...] = ()
    """Strings that end the generation; they are not part of the output."""
    seed: int | None = None
    """Seed of this request's own random stream."""
    constraint: Constraint | None = None
    """A form the text must have; None for any."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}")
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


@dataclass(frozen=True, slots=True)
class KVReuse:
    """How much of a prompt's KV may be taken from other prompts."""

    mode: ReuseMode = "exact"
    """`exact` reuses equal prefixes, which changes no answer. `reorder` puts the passages in another order
    first, so that more is equal: exact for that order, which `GeneratedChunk.chunk_order` tells. `blend`
    takes the KV of chunks from the chunk store, wherever they stand: sooner, and close to the exact answer.
    It is served exactly where the model or the settings do not allow it; `TokenUsage.mode` says what was
    done."""
    order: PassageOrder = "greedy_tree"
    """The order of `reorder`."""
    first_k: int = 16
    """Tokens at the start of every blended chunk that are computed anew, 0 or more."""
    repair_share: float = 0.0
    """Share of all blended tokens that is computed anew, those whose keys differ most; 0 to 1."""

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "reorder", "blend"):
            raise ValueError(f"reuse.mode must be exact, reorder or blend, got {self.mode!r}")
        if self.order not in ("canonical", "greedy_tree"):
            raise ValueError(f"reuse.order must be canonical or greedy_tree, got {self.order!r}")
        if self.first_k < 0:
            raise ValueError(f"reuse.first_k must be >= 0, got {self.first_k}")
        if not 0.0 <= self.repair_share <= 1.0:
            raise ValueError(f"reuse.repair_share must be in [0, 1], got {self.repair_share}")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation asked of a `Generator`."""

    prompt: Prompt
    """What the model reads."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are drawn."""
    request_id: str = ""
    """Unique per generator; empty lets the generator choose one."""
    tenant: str = "default"
    """Whose request this is; cached KV is never shared between tenants."""
    priority: int = 0
    """Lower runs sooner: 0 a person waiting, 10 a grader, 20 a batch job."""
    run_began_s: float | None = None
    """When the run that asks began, seconds since 1970: of a tenant's requests those of its oldest run go
    first. None for a request of its own."""
    deadline_s: float | None = None
    """Seconds from acceptance after which the engine stops working on it; None for no limit."""
    session: str = ""
    """The conversation it belongs to, whose requests go to one of several replicas where that costs little;
    empty for none."""
    reuse: KVReuse = KVReuse()
    """What KV may be reused."""
    adapter: str | None = None
    """Id of a loaded LoRA adapter to generate with; None for the model as it is."""

    def __post_init__(self) -> None:
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise ValueError(f"deadline_s must be > 0, got {self.deadline_s}")


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens one generation cost."""

    prompt_tokens: int = 0
    """Tokens in the prompt."""
    cached_tokens: int = 0
    """Prompt tokens whose KV was that of an equal prefix."""
    completion_tokens: int = 0
    """Tokens generated."""
    blended_tokens: int = 0
    """Prompt tokens whose KV came from the chunk store."""
    repaired_tokens: int = 0
    """Tokens of a blended prompt computed up to its last chunk: repairs and what stands between chunks."""
    reordered: bool = False
    """Whether passages were put in another order than they were given in."""

    @property
    def mode(self) -> ReuseMode:
        """Return what was done to the prompt."""
        return "blend" if self.blended_tokens else "reorder" if self.reordered else "exact"

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.blended_tokens + other.blended_tokens,
            self.repaired_tokens + other.repaired_tokens,
            self.reordered or other.reordered,
        )


@dataclass(frozen=True, slots=True)
class GeneratedChunk:
    """A piece of streamed output; the last one carries `finish_reason` and `usage`."""

    text: str
    """New characters since the previous chunk; may be empty."""
    token_ids: tuple[int, ...] = ()
    """New token ids since the previous chunk."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk only."""
    usage: TokenUsage | None = None
    """Set on the last chunk only."""
    chunk_order: tuple[str, ...] = ()
    """Chunk ids in the order the model read them; set on the last chunk, where `reuse.mode` is `reorder`."""
    weights: str | None = None
    """What wrote the text: hash of the model's weights, and `+` the adapter's id; set on the last chunk."""


@dataclass(frozen=True, slots=True)
class GeneratorInfo:
    """What a generator is; part of a release."""

    model_id: str
    """Name or path the weights were loaded from."""
    model_hash: str
    """sha256 over the weight files, first 16 hex digits."""
    tokenizer_hash: str
    """sha256 over tokenizer.json, first 16 hex digits."""
    max_model_len: int
    """Context window in tokens, prompt and output together."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A loaded LoRA adapter."""

    adapter_id: str
    """`name@hash`; other files have another id."""
    name: str
    """As given when it was loaded."""
    rank: int
    """Its largest rank."""
    num_requests: int
    """Requests that use it now."""
    is_leaving: bool
    """Whether it is removed after them; new ones are refused."""


@dataclass(frozen=True, slots=True)
class GeneratorStats:
    """A snapshot of a generator's load and totals since it started."""

    num_running: int
    """Requests that hold KV blocks now."""
    num_waiting: int
    """Requests accepted and not started."""
    num_finished: int
    """Requests ended by stop or length."""
    num_cancelled: int
    """Requests ended by a cancel or a deadline."""
    prompt_tokens: int
    """Prompt tokens of all requests that have ended."""
    cached_tokens: int
    """Of those, tokens whose KV was reused."""
    completion_tokens: int
    """Tokens generated for all requests that have ended."""
    no_blend_reason: str | None = None
    """Why requests with `reuse.mode="blend"` are served exactly, or None where they are blended."""
    kv_usage: float | None = None
    """Share of the engine's KV blocks that requests under way hold, 0 to 1, what is only cached not counted;
    None where the engine does not tell."""


class Generator(Protocol):
    """A language model that streams text: the vLLM driver, its actor handle, or the scripted fake.

    One contract suite runs over all of them (`tests/contract/test_generator.py`).
    """

    def generate(self, request: GenerateRequest) -> AsyncIterator[GeneratedChunk]:
        """Stream the output of one request.

        Closing the iterator (`aclose`, or cancelling the task that reads it) aborts the request in
        the engine and frees its slot.

        Raises:
            PromptTooLong: The prompt leaves no room for one token.
            UnknownAdapter: The adapter it names is not loaded.
            Overloaded: The waiting queue is full; the caller should retry after `retry_after_s`.
            GeneratorUnavailable: The engine died or is stopping.
        """
        ...

    async def count_tokens(self, prompt: Prompt) -> int:
        """Return how many tokens the prompt encodes to."""
        ...

    async def info(self) -> GeneratorInfo:
        """Return what this generator is."""
        ...

    async def stats(self) -> GeneratorStats:
        """Return the load now and the totals since start."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """A generator that takes LoRA adapters: the local one and its actor's client; not the one over HTTP."""

    async def load_adapter(self, name: str, folder: Path) -> AdapterInfo:
        """Load a LoRA adapter in PEFT's form for requests to name; the same files again do nothing.

        Args:
            name: Letters, digits and `._/-`, up to 100; `AdapterInfo.adapter_id` adds a hash of the files.
            folder: On the generator's machine; what becomes of it later does not matter.

        Raises:
            InvalidAdapter: The name, the files or their rank are not usable, or as many are loaded as may be.
            GeneratorUnavailable: The engine died or is stopping.
        """
        ...

    async def unload_adapter(self, adapter_id: str) -> None:
        """Refuse new requests for an adapter, and remove it once those that use it have ended.

        Raises:
            UnknownAdapter: It is not loaded, or is being unloaded already.
        """
        ...

    async def adapters(self) -> list[AdapterInfo]:
        """Return the adapters that are loaded, oldest first."""
        ...
