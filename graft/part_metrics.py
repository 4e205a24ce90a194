"""The metrics of a platform's parts joined into one page for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Protocol


class CountingPart(Protocol):
    """A part that counts."""

    async def metrics_text(self) -> str:
        """Return its metrics in Prometheus' text format."""
        ...


async def metrics_of(parts: Mapping[str, CountingPart | None], timeout_s: float) -> str:
    """Return what every part counts, and `graft_part_up`: 0 for one that does not answer.

    Args:
        parts: By name; None for one that was not started, which is left out.
        timeout_s: How long a part may take.
    """
    started = {name: part for name, part in parts.items() if part is not None}
    texts = await asyncio.gather(*(_text_of(part, timeout_s) for part in started.values()))
    up = [
        f'graft_part_up{{part="{name}"}} {int(text is not None)}'
        for name, text in zip(started, texts, strict=True)
    ]
    head = ["# HELP graft_part_up Whether a part answers.", "# TYPE graft_part_up gauge", *up, ""]
    return "\n".join(head) + "".join(text or "" for text in texts)


async def _text_of(part: CountingPart, timeout_s: float) -> str | None:
    with contextlib.suppress(TimeoutError, *unavailable()):
        async with asyncio.timeout(timeout_s):
            return await part.metrics_text()
    return None


def unavailable() -> tuple[type[Exception], ...]:
    """Return what a part that cannot answer raises."""
    from retrieval.errors import RetrievalError
    from serving.errors import ServingError

    return RetrievalError, ServingError
