"""Values and seams of retrieval: documents, chunks, hits, passages, and the protocols over them.

Nothing here imports faiss, torch or ray; every other package may depend on this file.
Scores: higher is better, always. Offsets count Unicode code points of the document's extracted text.

Above 400 lines on purpose: half are the strings under the fields, and users of
retrieval read this one file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

from retrieval.graph.types import Communities, Entities, Neighbourhood

if TYPE_CHECKING:
    import numpy as np

    from retrieval.filters import Filter
    from retrieval.versions import TokenCodec

MetadataValue = str | int | float | bool | tuple[str, ...]
"""What a metadata field may hold; a field has one type in a shard."""
Metadata = Mapping[str, MetadataValue]

Fusion = Literal["convex", "rrf"]
"""How hybrid search joins its legs: convex combination of normalised scores, or reciprocal ranks."""
Rerank = Literal["auto", "none", "maxsim", "cross_encoder"]
"""What reorders the fused candidates; `auto` is MaxSim where the version keeps token codes, else none."""
Expand = Literal["none", "parent", "neighbours"]
"""What a hit's passage grows by: the chunks on both sides (`parent_chunks`), or those after it (RETRO)."""
SearchMode = Literal["hybrid", "dense", "lexical"]
"""Which legs answer: both, embeddings only, BM25 only."""

DEFAULT_LIBRARY = "default"
DEFAULT_TENANT = "default"


class DocumentState(StrEnum):
    """Where a document stands on its way to being searchable."""

    QUEUED = "queued"
    """Its bytes are stored; work has not begun."""
    READING = "reading"
    """Text is being extracted."""
    CHUNKING = "chunking"
    """Text is being cut into chunks."""
    EMBEDDING = "embedding"
    """Chunks are being embedded."""
    READY = "ready"
    """Every store holds it; searches find it."""
    FAILED = "failed"
    """It could not be made searchable; `Document.error` says why."""


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a library, without its text."""

    document_id: str
    """Stable id: hash of tenant, library and name."""
    library: str
    """The named set it belongs to."""
    name: str
    """File name as given, without folders."""
    media_type: str
    """MIME type decided from the bytes and the name."""
    content_hash: str
    """sha256 of the bytes, hex."""
    num_bytes: int
    """Size of the original file."""
    state: DocumentState
    """Where it stands."""
    error: str | None = None
    """Why it failed and what to do; set when state is `failed`."""
    num_pages: int | None = None
    """Pages of a paged format; None for others."""
    num_chunks: int = 0
    """Searchable chunks."""
    created_s: float = 0.0
    """Unix time it was first added."""
    updated_s: float = 0.0
    """Unix time of the last change of state or content."""
    metadata: Metadata = field(default_factory=dict[str, MetadataValue])
    """Typed fields that filters can name."""
    share: float | None = None
    """Share of its chunks that are embedded, 0 to 1, while it is being embedded; None otherwise."""


@dataclass(frozen=True, slots=True)
class DocumentText:
    """The text a reader extracted, and where its pages begin."""

    text: str
    """All text, pages joined."""
    page_starts: tuple[int, ...] = ()
    """Offset at which each page begins, ascending, first is 0; empty for formats without pages."""

    def page_at(self, offset: int) -> int | None:
        """Return the 1-based page that holds `offset`, or None where there are no pages."""
        return bisect_right(self.page_starts, offset) or None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a document's text: the indexed unit. `text == document_text[start:end]`."""

    ordinal: int
    """0-based position within the document."""
    text: str
    """The characters."""
    start: int
    """Offset of its first character."""
    end: int
    """Offset after its last character."""
    page: int | None = None
    """1-based page of its first character; None where there are no pages."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk's text as shown to a model or a person."""

    chunk_id: str
    """`<document_id>:<content hash prefix>:<ordinal>`; changes when the document's content changes."""
    document_id: str
    """Its document."""
    document: str
    """Its document's name."""
    library: str
    """Its document's library."""
    text: str
    """The characters."""
    start: int
    """Offset of its first character in the document's text."""
    end: int
    """Offset after its last character."""
    page: int | None = None
    """1-based page of its first character."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A found chunk."""

    chunk_id: str
    """The chunk."""
    score: float
    """Fused score in [0, 1] for hybrid; cosine for dense; BM25 for lexical. Higher is better."""
    rank: int
    """0 is best."""
    dense_score: float | None = None
    """Cosine with the query; None where the dense leg did not return it."""
    lexical_score: float | None = None
    """BM25; None where the lexical leg did not return it."""
    fused_score: float | None = None
    """What fusion made of both, before any rerank."""
    rerank_score: float | None = None
    """MaxSim or cross-encoder score; None where no rerank looked at it."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One query."""

    query: str
    """Search string, not empty."""
    k: int = 10
    """Hits wanted, 1 to 1,000; fewer come back when fewer chunks exist."""
    library: str | None = None
    """Only this library; None for all of the tenant's."""
    document_ids: tuple[str, ...] = ()
    """Only these documents; empty for all."""
    mode: SearchMode = "hybrid"
    """Which legs answer."""
    tenant: str = DEFAULT_TENANT
    """Only this tenant's chunks are searched; the filter runs inside the index."""
    filter: Filter | None = None
    """Only documents whose metadata satisfy this predicate; see `retrieval.filters`."""
    fusion: Fusion = "convex"
    """How hybrid search joins its legs."""
    alpha: float | None = None
    """Weight of the dense leg in a convex combination, 0 to 1; None for the configured one, adapted."""
    rerank: Rerank = "auto"
    """What reorders the fused candidates."""
    mmr: float | None = None
    """Maximal marginal relevance: 1 is relevance alone, 0 diversity alone; None leaves the order."""
    expand: Expand = "none"
    """What each passage grows by."""
    version: str | None = None
    """Index version or alias that answers; None for the active one."""
    min_seq: Mapping[str, int] | None = None
    """Log position by shard name that the answer must reflect (read your writes); it waits until there."""
    deadline_s: float | None = None
    """Seconds after which shards and stages still under way are left out, and named; None for the default."""
    exact: bool = False
    """Whether the dense leg must be exact even where the index is approximate."""
    explain: bool = False
    """Whether `SearchResult.explanation` is filled."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a search: what it did, or why it was skipped."""

    name: str
    """`embed`, `dense`, `lexical`, `fuse`, `maxsim`, `cross_encoder`, `mmr`, `expand`, `passages`."""
    ms: float
    """Time it took; 0 when skipped."""
    skipped: str | None = None
    """Why it was skipped, such as `no token codes` or `time budget`; None when it ran."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an answer came about; hits carry their own scores before and after each stage."""

    version: str
    """Index version that answered."""
    epoch: int
    """Switch of versions the answer belongs to."""
    plans: Mapping[str, str]
    """By shard: how its dense leg was answered, such as `gather+exact 312 of 100,000`."""
    seqs: Mapping[str, int]
    """By shard: the log position it answered from."""
    dense: tuple[tuple[str, float], ...]
    """Chunk id and cosine of the dense leg's first candidates, best first."""
    lexical: tuple[tuple[str, float], ...]
    """Chunk id and BM25 of the lexical leg's first candidates, best first."""
    terms: tuple[str, ...]
    """Stemmed terms the lexical leg looked up."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits of one query with their passages, and how complete they are."""

    hits: tuple[Hit, ...]
    """Best first; ties broken by chunk id."""
    passages: tuple[Passage, ...]
    """`passages[i]` is the text of `hits[i]`."""
    index_version: str
    """The embedder and chunking that made the index."""
    seq: int
    """Log position the answer reflects."""
    partial: bool = False
    """True when a shard did not answer; `missing_shards` names it."""
    missing_shards: tuple[str, ...] = ()
    """Shards that did not answer."""
    embed_ms: float = 0.0
    """Time spent embedding the query."""
    search_ms: float = 0.0
    """Time spent in the index."""
    stages: tuple[Stage, ...] = ()
    """What ran and what was skipped, in order."""
    explanation: Explanation | None = None
    """Set when the request asked for it."""


@dataclass(frozen=True, slots=True)
class Record:
    """A text indexed as it is, as one chunk, under an id of the caller's; the unit of a vector database."""

    name: str
    """Its id within the library: a plain name."""
    text: str
    """The characters; not cut, at most `RetrievalConfig.max_record_chars`."""
    vector: Sequence[float] | None = None
    """float[dim] made by the active version's embedder; None to have it embedded here."""
    metadata: Metadata = field(default_factory=dict[str, MetadataValue])
    """Typed fields that filters can name."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A write that is durable."""

    seqs: Mapping[str, int]
    """Log position by shard name; give it to `SearchRequest.min_seq` to read this write anywhere."""
    count: int
    """Records or documents written."""


@dataclass(frozen=True, slots=True)
class Library:
    """A named set of documents."""

    name: str
    """Its name."""
    num_documents: int
    """Documents in any state."""
    num_ready: int
    """Documents searches find."""
    num_chunks: int
    """Searchable chunks."""


@dataclass(frozen=True, slots=True)
class EmbedderInfo:
    """What an embedder is; part of an index version."""

    model_id: str
    """Name or path the weights were loaded from."""
    model_hash: str
    """sha256 over the weight files, first 16 hex digits."""
    dim: int
    """Numbers per vector."""
    max_tokens: int
    """Tokens it reads of a text; more are cut."""
    backend: str = "torch-fp32"
    """What computes it: `torch-fp32`, `torch-fp16` or `onnx-int8`."""


@dataclass(frozen=True, slots=True)
class EncodedTokens:
    """The token vectors of a batch of texts, compressed."""

    codes: tuple[bytes, ...]
    """Per text, the codes of its tokens' unit vectors; see `retrieval.ranking.token_codes`."""
    codec: TokenCodec
    """How they were compressed."""


class Embedder(Protocol):
    """Turns texts into unit vectors. One contract suite runs over all implementations."""

    async def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim], L2-normalised."""
        ...

    async def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[len(texts), dim], L2-normalised."""
        ...

    async def embed_passages_with_tokens(
        self, texts: Sequence[str], codec: TokenCodec
    ) -> tuple[np.ndarray, EncodedTokens]:
        """Return the vectors, and the token vectors of the same forward pass, compressed."""
        ...

    async def embed_queries_with_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the vectors and, per query, float32[num_tokens, dim] unit vectors of its tokens."""
        ...

    async def info(self) -> EmbedderInfo:
        """Return what this embedder is."""
        ...


class Retriever(Protocol):
    """Anything that finds passages: the platform's searcher, a remote platform, or a fake."""

    async def search(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Return one result per request, in order; a batch shares one embedding call.

        Raises:
            InvalidSearch: A request is out of its bounds.
            IndexUnavailable: No shard could answer.
        """
        ...

    async def passages(
        self, chunk_ids: Sequence[str], *, tenant: str = DEFAULT_TENANT
    ) -> list[Passage | None]:
        """Return the passages of chunks, in order; None where deleted or not the tenant's."""
        ...


class DocumentStore(Protocol):
    """Where documents are added, watched, read and deleted."""

    async def add(
        self,
        name: str,
        data: bytes,
        *,
        library: str = DEFAULT_LIBRARY,
        tenant: str = DEFAULT_TENANT,
        metadata: Metadata | None = None,
    ) -> Document:
        """Store a file durably and queue it; returns once it is acknowledged (state `queued`).

        Unchanged bytes under the same name are a no-op that returns the document as it is; one that had
        failed is queued again. Changed bytes replace it: the old content answers until the new is ready.

        Raises:
            InvalidDocument: The file is empty, too large, or its name is not a plain file name.
            InvalidMetadata: A field's name or type cannot be stored.
            StorageFull: The disk is full; nothing was stored.
        """
        ...

    async def upsert(
        self, records: Sequence[Record], *, library: str = DEFAULT_LIBRARY, tenant: str = DEFAULT_TENANT
    ) -> Acknowledged:
        """Store records in one transaction a shard; searchable when this returns, replacing equal names.

        Raises:
            InvalidDocument: A record is empty or too long, or two have one name.
            InvalidVector: A vector has another dimension than the index, or holds NaN or infinity.
            InvalidMetadata: A field's name or type cannot be stored.
            StorageFull: The disk is full; nothing was stored.
        """
        ...

    async def documents(self, *, library: str | None = None, tenant: str = DEFAULT_TENANT) -> list[Document]:
        """Return documents ordered by name."""
        ...

    async def document(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> Document:
        """Return one document.

        Raises:
            UnknownDocument: No such document, or it is another tenant's.
        """
        ...

    async def text(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> DocumentText:
        """Return the extracted text of a document that is or was ready.

        Raises:
            UnknownDocument: No such document, it is another tenant's, or it has no text yet.
        """
        ...

    async def content(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> bytes:
        """Return the original bytes.

        Raises:
            UnknownDocument: No such document, or it is another tenant's.
        """
        ...

    async def delete(self, document_id: str, *, tenant: str = DEFAULT_TENANT) -> None:
        """Remove a document from every store; when this returns, no query finds it.

        Raises:
            UnknownDocument: No such document, or it is another tenant's.
        """
        ...

    async def libraries(self, *, tenant: str = DEFAULT_TENANT) -> list[Library]:
        """Return the tenant's libraries ordered by name."""
        ...

    async def wait_ready(
        self, document_ids: Sequence[str], *, timeout_s: float, tenant: str = DEFAULT_TENANT
    ) -> list[Document]:
        """Return the documents once each is `ready` or `failed`.

        Raises:
            IngestTimeout: Some were still under way after `timeout_s`; the message names them.
        """
        ...


class GraphReader(Protocol):
    """The graph of entities that the active version's chunks name. One contract suite runs over all forms.

    Every method raises GraphDisabled where no graph is kept, InvalidSearch for a limit out of its bounds, and
    IndexUnavailable when no shard could answer. A deleted document's entities are gone when `delete` returns.
    """

    async def entities(
        self,
        name: str = "",
        *,
        library: str | None = None,
        limit: int = 20,
        tenant: str = DEFAULT_TENANT,
    ) -> Entities:
        """Return entities by a name or a part of one; those most mentioned for an empty one.

        Args:
            name: Any form of it; case, hyphens, articles and plurals do not count.
            library: Only this library; None for all of the tenant's, as if they were one.
            limit: Most entities returned, 1 to 1,000.
            tenant: Whose libraries.
        """
        ...

    async def neighbourhood(
        self,
        question: str = "",
        *,
        entities: Sequence[str] = (),
        library: str | None = None,
        max_neighbours: int = 20,
        max_chunks: int = 20,
        tenant: str = DEFAULT_TENANT,
    ) -> Neighbourhood:
        """Return what is known around entities and those a question names; empty when none is known.

        Args:
            question: Entities are found in it.
            entities: Names of more, whole.
            library: Only this library; None for all of the tenant's, as if they were one.
            max_neighbours: Most connected entities returned, 1 to 1,000.
            max_chunks: Most chunks returned, 1 to 1,000.
            tenant: Whose libraries.
        """
        ...

    async def communities(
        self,
        *,
        library: str | None = None,
        level: int = 0,
        limit: int = 100,
        tenant: str = DEFAULT_TENANT,
    ) -> Communities:
        """Return groups of entities that belong together, those that most chunks speak of first.

        Args:
            library: Only this library; None for all of the tenant's, each by itself.
            level: 0 for the coarsest; deeper levels also have the communities that were not divided.
            limit: Most communities returned, 1 to 1,000.
            tenant: Whose libraries.
        """
        ...
