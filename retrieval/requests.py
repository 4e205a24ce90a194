"""The bounds of a search request and of names, checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from retrieval.config import RetrievalConfig
from retrieval.errors import InvalidDocument, InvalidSearch
from retrieval.files import check_name, check_path_name
from retrieval.types import SearchMode, SearchRequest

MAX_K = 1000
MAX_DOCUMENT_IDS = 10_000


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
        _check_search(request, config)


def _check_search(request: SearchRequest, config: RetrievalConfig) -> None:
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
    if not 1 <= request.k <= MAX_K:
        raise InvalidSearch(f"k must be from 1 to {MAX_K:,}; got {request.k}")
    if len(request.document_ids) > MAX_DOCUMENT_IDS:
        raise InvalidSearch(
            f"{len(request.document_ids):,} document_ids, above the limit of {MAX_DOCUMENT_IDS:,}; "
            "search their library instead"
        )
    if request.mode not in get_args(SearchMode):
        raise InvalidSearch(f"mode must be one of {', '.join(get_args(SearchMode))}; got {request.mode!r}")


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
