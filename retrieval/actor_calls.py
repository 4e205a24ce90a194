"""Calling actors: our errors come out as themselves, and one that restarts is told from one that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from retrieval.errors import IndexUnavailable, ShardRestarting

_RESTART_POLL_S = 0.1


def named_actor(name: str, namespace: str) -> Any:
    """Return the handle of a running actor; raises IndexUnavailable when there is none."""
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError as error:
        raise IndexUnavailable(
            f"no actor {name!r} runs in Ray namespace {namespace!r}; start the platform first"
        ) from error


async def answer_once(what: str, timeout_s: float, call: Callable[[], Any]) -> Any:
    """Return the answer of one actor call; a call nobody waits for any more is cancelled in the actor.

    Args:
        what: Names the actor in messages.
        timeout_s: Longest wait.
        call: Makes the call and returns its reference.

    Raises:
        ShardRestarting: The actor died and is coming back; the call may have run.
        IndexUnavailable: It is gone for good, did not answer in time, or cannot be reached.
    """
    reference: Any = None
    answered = False
    try:
        async with asyncio.timeout(timeout_s):
            reference = call()
            value = await reference
        answered = True
        return value
    except RayTaskError as error:
        answered = True
        # Ray wraps what the actor raised; the caller gets the error itself.
        if not isinstance(error.cause, RayActorError):
            raise error.cause from None
        raise _gone(what, error.cause) from error.cause
    except RayActorError as error:
        answered = True
        raise _gone(what, error) from error
    except TimeoutError as error:
        raise IndexUnavailable(
            f"{what} did not answer within {timeout_s:g} s; it may be starting or busy: try again or look at "
            "its log with `ray logs`"
        ) from error
    except RayError as error:
        raise IndexUnavailable(
            f"{what} could not be reached ({error}); check the cluster with `ray status`"
        ) from error
    finally:
        if reference is not None and not answered:
            ray.cancel(reference, recursive=False)


async def answer(what: str, timeout_s: float, call: Callable[[], Any]) -> Any:
    """Return the answer of an actor call, repeated while its actor restarts.

    A call whose actor died under it may have run; repeating it must give the same result.

    Args:
        what: Names the actor in messages.
        timeout_s: Longest wait, the restart of the actor included.
        call: Makes the call and returns its reference.

    Raises:
        IndexUnavailable: The actor is gone for good or did not answer in time.
    """
    return await patiently(timeout_s, lambda left_s: answer_once(what, left_s, call))


async def patiently(timeout_s: float, attempt: Callable[[float], Awaitable[Any]]) -> Any:
    """Return what an attempt returns, repeated while an actor restarts.

    Args:
        timeout_s: Longest wait.
        attempt: Makes one, given the seconds left.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            return await attempt(max(end - time.monotonic(), 0.0))
        except ShardRestarting:
            if end - time.monotonic() <= _RESTART_POLL_S:
                raise
            await asyncio.sleep(_RESTART_POLL_S)


def _gone(what: str, error: RayActorError) -> IndexUnavailable:
    if isinstance(error, ActorUnavailableError):
        return ShardRestarting(f"{what} is starting again; try again in a moment")
    return IndexUnavailable(
        f"{what} died and did not come back ({type(error).__name__}); nothing acknowledged is lost: "
        "restart the platform"
    )
