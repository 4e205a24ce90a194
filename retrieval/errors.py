"""Errors of retrieval.

RetrievalError
|-- RetrievalRequestError      the caller's fault; nothing was changed
|   |-- InvalidSearch          empty or oversized query, k out of range
|   |   `-- InvalidFilter      malformed predicate, unknown field, wrong type
|   |-- InvalidDocument        empty, too large, unreadable name
|   |-- InvalidMetadata        a field's name or type cannot be stored
|   |-- InvalidVector          wrong dimension, NaN or infinity
|   |-- InvalidVersion         a version that cannot be made, switched to or removed now
|   |-- GraphDisabled          the index keeps no graph of entities
|   |-- UnknownVersion         no such index version or alias
|   `-- UnknownDocument        no such document for this tenant
|-- UnreadableDocument         the bytes hold no text we can extract; becomes the document's `error`
|-- TextModelRefused           the language model will never answer this prompt; becomes the chunk's failure
`-- RetrievalUnavailable       ours
    |-- IndexUnavailable       no shard could answer
    |   |-- ShardRestarting    a copy of a shard is coming back
    |   `-- ShardMoved         the documents live on other shards now
    |-- IndexOverloaded        the queue of searches is full; try again later
    |-- IngestTimeout          documents still under way when the caller's patience ended
    |-- StorageFull            the disk has no room; nothing was stored
    `-- TextModelUnavailable   the language model that reads chunks for the graph cannot answer now
"""

from __future__ import annotations


class RetrievalError(Exception):
    """Root of everything retrieval raises on purpose."""


class RetrievalRequestError(RetrievalError):
    """The request cannot be served as asked."""


class InvalidSearch(RetrievalRequestError):
    """A search request is out of its bounds."""


class InvalidFilter(InvalidSearch):
    """A predicate is malformed, names an unknown field, or compares with a value of another type."""


class InvalidMetadata(RetrievalRequestError):
    """A metadata field's name or value cannot be stored."""


class InvalidVector(RetrievalRequestError):
    """A vector has the wrong dimension or holds NaN or infinity."""


class InvalidVersion(RetrievalRequestError):
    """An index version cannot be made, switched to or removed as asked."""


class GraphDisabled(RetrievalRequestError):
    """The index keeps no graph of entities."""


class UnknownVersion(RetrievalRequestError):
    """No such index version or alias."""


class InvalidDocument(RetrievalRequestError):
    """A file cannot be accepted."""


class UnknownDocument(RetrievalRequestError):
    """No such document for this tenant."""


class UnreadableDocument(RetrievalError):
    """No text could be extracted from a document's bytes."""


class TextModelRefused(RetrievalError):
    """A language model will never answer a prompt, such as one that is too long for it."""


class RetrievalUnavailable(RetrievalError):
    """Retrieval cannot answer now through no fault of the caller."""


class IndexUnavailable(RetrievalUnavailable):
    """No shard could answer."""


class ShardRestarting(IndexUnavailable):
    """A copy of a shard is coming back; asking again after a moment may succeed."""


class ShardMoved(IndexUnavailable):
    """The documents of a shard live on others now; a router looks up where and asks there."""


class IndexOverloaded(RetrievalUnavailable):
    """Too many searches wait already; try again after a moment."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s
        """Seconds after which a retry has a fair chance."""

    def __str__(self) -> str:
        return str(self.args[0])


class IngestTimeout(RetrievalUnavailable):
    """Documents were still under way when the wait ended."""


class StorageFull(RetrievalUnavailable):
    """The disk has no room; nothing was stored."""


class TextModelUnavailable(RetrievalUnavailable):
    """The language model that reads chunks for the graph cannot answer now; the chunks wait."""
