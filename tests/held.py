"""Counts what a generator holds for requests, where it is held."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from serving.client import ActorGenerator
from serving.generator import LocalGenerator
from serving.sessions import Sessions


@dataclass(frozen=True)
class Held:
    """Everything that a request takes and is to give back."""

    request_ids: int = 0
    places: int = 0
    """In the fair queue, waiting or with a slot."""
    slots: int = 0
    tenants_waiting: int = 0
    adapter_uses: int = 0
    kv_usage: float | None = 0.0
    in_sessions: int = 0
    """Requests of sessions that run, or whose output waits to be told."""


DEAD = Held(kv_usage=None)
"""What a generator holds whose engine is gone."""


def held(generator: LocalGenerator, sessions: Sessions | None = None) -> Held:
    """Return what is held now."""
    queue, model = generator._queue, generator._model
    open_sessions = sessions._sessions.values() if sessions is not None else ()
    return Held(
        len(generator._active),
        len(queue._tickets),
        queue._num_running + sum(tenant.num_running for tenant in queue._tenants.values()),
        sum(tenant.num_waiting for tenant in queue._tenants.values()),
        sum(info.num_requests for info in model.adapters.infos()) if model is not None else 0,
        generator._load().kv_usage,
        sum(len(one.tasks) + len(one.chunks) + len(one.errors) + len(one.begun) for one in open_sessions),
    )


async def held_in_actor(client: ActorGenerator) -> Held:
    """Return what a generator actor holds now."""
    return Held(*await in_actor(client, _counts))


async def in_actor(client: ActorGenerator, work: Callable[[Any], Any]) -> Any:
    """Return what a function of the tests returns, called in the actor with the actor."""
    from ray import cloudpickle

    # The actor cannot import modules of the tests.
    for module in {work.__module__, __name__}:
        cloudpickle.register_pickle_by_value(sys.modules[module])
    return await client.actor.__ray_call__.remote(work)


def _counts(actor: Any) -> tuple[Any, ...]:
    return astuple(held(actor._generator, actor._sessions))
