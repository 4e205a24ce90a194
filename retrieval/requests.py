"""The bounds of a search request and of names, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from retrieval.config import RetrievalConfig
from retrieval.errors import InvalidDocument, InvalidSearch
from retrieval.extraction.files import check_name, check_path_name
from retrieval.filters import check_shape
from retrieval.types import Expand, Fusion, Rerank, SearchMode, SearchRequest

MAX_K = 1000
MAX_DOCUMENT_IDS = 10_000
MAX_DEADLINE_S = 3600.0


def check_searches(requests: Sequence[SearchRequest], config: RetrievalConfig) -> None:
    """Check every request of a batch.

    Raises:
        InvalidSearch: One is out of its bounds; the message says which bound and what to do.
    """
    if len(requests) > config.max_batch_requests:
        raise InvalidSearch(
            f"{len(requests):,} queries in one call, above max_batch_requests={config.max_batch_requests:,}; "
            "send them in several calls"
        )
    for request in requests:
        _check_query(request, config)
        _check_scope(request)
        _check_ranking(request, config)
        if request.deadline_s is not None:
            _check_number("deadline_s", request.deadline_s, 0.0, MAX_DEADLINE_S)
            if request.deadline_s == 0:
                raise InvalidSearch("deadline_s is 0: no shard could answer; give seconds above 0")


def _check_query(request: SearchRequest, config: RetrievalConfig) -> None:
    if not request.query.strip():
        raise InvalidSearch("the query is empty; give at least one word")
    if len(request.query) > config.max_query_chars:
        raise InvalidSearch(
            f"the query has {len(request.query):,} characters, above max_query_chars="
            f"{config.max_query_chars:,}; shorten it, or ingest the text as a document and ask about it"
        )
    try:
        request.query.encode()
    except UnicodeEncodeError as error:
        raise InvalidSearch(
            f"the query holds half a character (a lone surrogate) at {error.start}; send valid Unicode"
        ) from error
    if not _is_whole(request.k) or not 1 <= request.k <= MAX_K:
        raise InvalidSearch(f"k must be from 1 to {MAX_K:,}; got {request.k}")


def _check_scope(request: SearchRequest) -> None:
    """Check what is searched: documents, filter, version, position of the log."""
    if len(request.document_ids) > MAX_DOCUMENT_IDS:
        raise InvalidSearch(
            f"{len(request.document_ids):,} document_ids, above the limit of {MAX_DOCUMENT_IDS:,}; "
            "search their library instead"
        )
    if request.filter is not None:
        check_shape(request.filter)
    if request.version is not None and not request.version.strip():
        raise InvalidSearch("version is empty; name an index version or an alias, or leave it out")
    for shard, seq in (request.min_seq or {}).items():
        if not _is_whole(seq) or seq < 0:
            raise InvalidSearch(
                f"min_seq of {shard!r} must be a log position, a whole number from 0; got {seq!r}; "
                "pass on what upsert returned"
            )


def _check_ranking(request: SearchRequest, config: RetrievalConfig) -> None:
    """Check how candidates are found and ordered."""
    for name, values in (
        ("mode", get_args(SearchMode)),
        ("fusion", get_args(Fusion)),
        ("rerank", get_args(Rerank)),
        ("expand", get_args(Expand)),
    ):
        value = getattr(request, name)
        if value not in values:
            raise InvalidSearch(f"{name} must be one of {', '.join(values)}; got {value!r}")
    if request.alpha is not None:
        _check_number("alpha", request.alpha, 0.0, 1.0)
    if request.mmr is not None:
        _check_number("mmr", request.mmr, 0.0, 1.0)
    if request.rerank == "cross_encoder" and not config.cross_encoder:
        raise InvalidSearch(
            "rerank='cross_encoder' needs a model; set cross_encoder to a folder of a sentence-transformers "
            "cross-encoder or a model id, or use rerank='maxsim'"
        )


def _check_number(name: str, value: float, low: float, high: float) -> None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not known or not low <= value <= high:
        raise InvalidSearch(f"{name} must be a number from {low:g} to {high:g}; got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_document(name: str, data: bytes, library: str, tenant: str, config: RetrievalConfig) -> None:
    """Check a file before it is stored.

    Raises:
        InvalidDocument: It is empty or too large, or a name is not a plain name.
    """
    check_path_name(name)
    check_name(library, what="library name")
    check_name(tenant, what="tenant name")
    if not data:
        raise InvalidDocument(f"'{name}' is empty (0 bytes); add a file with text")
    if len(data) > config.max_document_bytes:
        raise InvalidDocument(
            f"'{name}' has {len(data):,} bytes, above max_document_bytes={config.max_document_bytes:,}; "
            "split the file or raise the limit"
        )
