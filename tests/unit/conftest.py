"""Spans of a test, kept in memory."""

from __future__ import annotations

import pytest
from recorded_spans import RecordedSpans


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> RecordedSpans:
    """What the packages span from here on; the process's own provider is left alone."""
    recorded = RecordedSpans()
    for name in ("agents.spans", "graft.request_spans", "retrieval.spans", "serving.spans"):
        monkeypatch.setattr(f"{name}.tracer", recorded.provider.get_tracer(name))
    return recorded
