"""One page of metrics: a part that is gone hides no other."""

from __future__ import annotations

import asyncio

from graft.part_metrics import metrics_of
from serving.errors import GeneratorUnavailable


class Counting:
    async def metrics_text(self) -> str:
        return "counted 1\n"


class Gone:
    async def metrics_text(self) -> str:
        raise GeneratorUnavailable("it died")


class Hanging:
    async def metrics_text(self) -> str:
        await asyncio.sleep(3600)
        return ""


async def test_parts_that_do_not_answer_are_down_and_the_others_are_shown() -> None:
    parts = {"retrieval": Counting(), "generator": Gone(), "other": Hanging(), "off": None}
    lines = (await metrics_of(parts, timeout_s=0.01)).splitlines()
    assert lines[1:] == [
        "# TYPE graft_part_up gauge",
        'graft_part_up{part="retrieval"} 1',
        'graft_part_up{part="generator"} 0',
        'graft_part_up{part="other"} 0',
        "counted 1",
    ]
