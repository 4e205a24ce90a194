"""Nodes to compose graphs from: async functions of (state, runtime) over `agents.state.RagState`."""

from __future__ import annotations

from agents.nodes.abstain import abstain
from agents.nodes.begin import begin
from agents.nodes.cite import cite
from agents.nodes.finalize import finalize
from agents.nodes.generate import generate
from agents.nodes.retrieve import retrieve

__all__ = ["abstain", "begin", "cite", "finalize", "generate", "retrieve"]
