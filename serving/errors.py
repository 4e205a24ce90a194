"""Errors of serving.

ServingError
|-- ServingRequestError        the caller's fault
|   |-- InvalidGeneration      a parameter is out of its bounds
|   |-- InvalidAdapter         an adapter cannot be loaded; says why
|   |-- UnknownAdapter         no such adapter is loaded
|   `-- PromptTooLong          the prompt leaves no room in the context window
`-- ServingUnavailable         ours
    |-- Overloaded             the queue is full; carries `retry_after_s`
    |-- ModelUnusable          the weights or tokenizer cannot be served; says why
    `-- GeneratorUnavailable   the engine died, or is draining or stopping
"""

from __future__ import annotations


class ServingError(Exception):
    """Root of everything serving raises on purpose."""


class ServingRequestError(ServingError):
    """The request cannot be served as asked."""


class InvalidGeneration(ServingRequestError):
    """A generation parameter is out of its bounds."""


class InvalidAdapter(ServingRequestError):
    """An adapter cannot be loaded."""


class UnknownAdapter(ServingRequestError):
    """No such adapter is loaded."""


class PromptTooLong(ServingRequestError):
    """The prompt leaves no room for one generated token."""


class ServingUnavailable(ServingError):
    """The generator cannot answer now through no fault of the caller."""


class Overloaded(ServingUnavailable):
    """The waiting queue is full."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s
        """Seconds after which a retry has a fair chance."""

    def __str__(self) -> str:
        return str(self.args[0])


class ModelUnusable(ServingUnavailable):
    """The weights or the tokenizer cannot be served."""


class GeneratorUnavailable(ServingUnavailable):
    """The engine died, or is draining or stopping."""
