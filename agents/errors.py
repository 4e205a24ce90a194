"""Errors of agents.

AgentError
|-- UnknownGraph        no graph of that name; lists the ones there are
|-- InvalidQuestion     empty, or longer than the limit
|-- InvalidThread       a thread id that cannot be kept
`-- UnknownThread       no such thread for this tenant
"""

from __future__ import annotations


class AgentError(Exception):
    """Root of everything agents raise on purpose; always the caller's fault (failures are results)."""


class UnknownGraph(AgentError):
    """No graph of that name."""


class InvalidQuestion(AgentError):
    """The question cannot be asked."""


class InvalidThread(AgentError):
    """A thread id is empty or too long, or nothing keeps threads."""


class UnknownThread(AgentError):
    """No such thread for this tenant."""
