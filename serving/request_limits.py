"""Bounds of a request that its dataclasses do not know: beyond them the engine would be hurt."""

from __future__ import annotations

from serving.errors import InvalidGeneration
from serving.types import GenerateRequest

MAX_SEED = 2**63 - 1
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_PRIORITY = 1_000_000


def check_request(request: GenerateRequest) -> None:
    """Refuse values that pass the dataclasses' own checks but would hurt the engine.

    Raises:
        InvalidGeneration: A value is out of its bounds.
    """
    seed, stop = request.sampling.seed, request.sampling.stop
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InvalidGeneration(f"seed must be in [0, {MAX_SEED}], got {seed}")
    if len(stop) > MAX_STOPS:
        raise InvalidGeneration(f"at most {MAX_STOPS} stop strings are allowed, got {len(stop)}")
    for text in stop:
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            raise InvalidGeneration(
                f"a stop string must have 1 to {MAX_STOP_CHARS} characters, got {len(text)}; shorten it"
            )
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidGeneration(f"priority must be within +-{MAX_PRIORITY}, got {request.priority}")
