"""Errors of retrieval.

RetrievalError
|-- RetrievalRequestError      the caller's fault; nothing was changed
|   |-- InvalidSearch          empty or oversized query, k out of range
|   |-- InvalidDocument        empty, too large, unreadable name
|   `-- UnknownDocument        no such document for this tenant
|-- UnreadableDocument         the bytes hold no text we can extract; becomes the document's `error`
`-- RetrievalUnavailable       ours
    |-- IndexUnavailable       no shard could answer
    |-- IngestTimeout          documents still under way when the caller's patience ended
    `-- StorageFull            the disk has no room; nothing was stored
"""

from __future__ import annotations


class RetrievalError(Exception):
    """Root of everything retrieval raises on purpose."""


class RetrievalRequestError(RetrievalError):
    """The request cannot be served as asked."""


class InvalidSearch(RetrievalRequestError):
    """A search request is out of its bounds."""


class InvalidDocument(RetrievalRequestError):
    """A file cannot be accepted."""


class UnknownDocument(RetrievalRequestError):
    """No such document for this tenant."""


class UnreadableDocument(RetrievalError):
    """No text could be extracted from a document's bytes."""


class RetrievalUnavailable(RetrievalError):
    """Retrieval cannot answer now through no fault of the caller."""


class IndexUnavailable(RetrievalUnavailable):
    """No shard could answer."""


class IngestTimeout(RetrievalUnavailable):
    """Documents were still under way when the wait ended."""


class StorageFull(RetrievalUnavailable):
    """The disk has no room; nothing was stored."""
