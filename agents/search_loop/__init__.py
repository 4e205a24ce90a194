"""The multi-hop search loop: what a model may ask for, what it is shown, and when it must stop.

Pure: no model, no retriever, no I/O. The `multi_hop` graph and the GRPO rollout drive the same code.
"""

from __future__ import annotations

from agents.search_loop.calls import Answer, Call, Open, Refused, Search, parse_call, render_call
from agents.search_loop.limits import SearchLimits
from agents.search_loop.loop import Hop, SearchLoop
from agents.search_loop.prompt import SEARCH_SYSTEM, observation_segments, search_prompt
from agents.search_loop.rollout import Rollout, TurnTokenizer

__all__ = [
    "SEARCH_SYSTEM",
    "Answer",
    "Call",
    "Hop",
    "Open",
    "Refused",
    "Rollout",
    "Search",
    "SearchLimits",
    "SearchLoop",
    "TurnTokenizer",
    "observation_segments",
    "parse_call",
    "render_call",
    "search_prompt",
]
