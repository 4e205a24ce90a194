"""Errors of the platform, above those of its parts.

GraftError
|-- ConfigError          a configuration key or value is wrong; names the key, the value and the remedy
|-- StartError           the platform cannot start here: port in use, not enough memory, missing model
|-- NotRunning           no platform answers at that address
|-- AccessDenied         the caller may not do this
|-- ShuttingDown         the platform takes no new work; carries `retry_after_s`
|-- NotInPlace           the platform does not read these files where they are; they have to be sent
`-- RemoteError          the platform answered with an error; carries its message and status

Errors of the parts (`RetrievalError`, `ServingError`, `AgentError`) pass through unchanged, also over HTTP.
"""

from __future__ import annotations


class GraftError(Exception):
    """Root of everything the platform itself raises on purpose."""


class ConfigError(GraftError):
    """A configuration key or value is wrong."""


class StartError(GraftError):
    """The platform cannot start here."""


class NotRunning(GraftError):
    """No platform answers at that address."""


class AccessDenied(GraftError):
    """The caller may not do this."""


class ShuttingDown(GraftError):
    """The platform takes no new work, and ends once what is under way has ended."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s
        """Seconds after which another platform may answer in its place."""

    def __str__(self) -> str:
        return str(self.args[0])


class NotInPlace(GraftError):
    """The platform does not read these files where they are; they have to be sent."""


class RemoteError(GraftError):
    """The platform answered with an error that has no class of its own."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, status)
        self.status = status
        """HTTP status of the answer."""

    def __str__(self) -> str:
        return str(self.args[0])
