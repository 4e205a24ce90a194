from __future__ import annotations

import pytest

from agents.events import EVENT_TYPES, Cited, Retrieval, RunFinished
from agents.state import Citation, RunResult
from graft.errors import RemoteError, ShuttingDown
from graft.index_cli import _show_segments
from graft.wire import (
    STATUS,
    error_from_json,
    error_to_json,
    event_from_json,
    event_to_json,
    failure_of,
    from_json,
    status_of,
    to_json,
)
from retrieval.admin import RecallEstimate, SegmentReport
from retrieval.errors import UnknownDocument
from retrieval.types import Hit, Passage, SearchResult
from serving.errors import GeneratorUnavailable, Overloaded
from serving.types import TokenUsage

CITATION = Citation(1, "d", "a.md", "d:1:0", 2, 3, 7, "four", 0.5)
RESULT = RunResult("r", None, "four [1]", (CITATION,), "answered", "r-1", TokenUsage(1, 0, 2), {"total": 1.5})
HIT = Hit("d:1:0", 0.5, 0, 0.4, None)
PASSAGE = Passage("d:1:0", "d", "a.md", "lib", "four é", 3, 9, 2)
STAMP = {"run_id": "r", "seq": 4, "t_ms": 1.0}


@pytest.mark.parametrize(
    "value", [RESULT, CITATION, SearchResult((HIT,), (PASSAGE,), "v", 7, True, ("shard-1",), 1.0, 2.0)]
)
def test_value_survives_the_wire(value):
    assert from_json(type(value), to_json(value)) == value


@pytest.mark.parametrize(
    "event",
    [
        Retrieval(**STAMP, query="q", hits=(HIT,), passages=(PASSAGE,), index_version="v", duration_ms=1.0),
        Cited(**STAMP, citations=(CITATION,)),
        RunFinished(**STAMP, result=RESULT),
    ],
)
def test_event_survives_the_wire(event):
    assert event_from_json(event_to_json(event)) == event


def test_every_event_type_has_a_name_of_its_own():
    assert len(EVENT_TYPES) == len(set(EVENT_TYPES.values()))


@pytest.mark.parametrize("cls", [cls for cls in STATUS if cls not in (Overloaded, ShuttingDown)])
def test_error_keeps_its_class_and_message(cls):
    error = cls("what, limit, remedy")
    back = error_from_json(error_to_json(error), status_of(error))
    assert type(back) is cls
    assert str(back) == str(error)


@pytest.mark.parametrize("cls", [Overloaded, ShuttingDown])
def test_error_that_says_when_to_come_back_keeps_its_delay(cls):
    error = cls("full", 3.5)
    back = error_from_json(error_to_json(error), status_of(error))
    assert type(back) is cls
    assert str(back) == "full"
    assert back.retry_after_s == 3.5


@pytest.mark.parametrize("body", [None, [], {"error": "text"}, {"error": {"type": "New", "message": "m"}}])
def test_unknown_answer_is_a_remote_error_with_its_status(body):
    back = error_from_json(body, 502)
    assert isinstance(back, RemoteError)
    assert back.status == 502


def test_failed_run_is_the_error_that_ended_it():
    assert failure_of(RESULT) is None
    failed = RunResult("r", None, "", (), "error", "r-1", error="gone", error_kind="GeneratorUnavailable")
    failure = failure_of(failed)
    assert isinstance(failure, GeneratorUnavailable)
    assert status_of(failure) == 503


def test_status_of_a_subclass_is_its_parents():
    class Gone(UnknownDocument):
        pass

    assert status_of(Gone("x")) == 404
    assert status_of(ValueError("x")) == 500


@pytest.mark.parametrize("served", [None, RecallEstimate(0.91, 0.9, 0.92, 40, 0.95, True)])
def test_a_segments_served_recall_comes_back_as_it_was_and_shows_in_the_table(served, capsys):
    report = SegmentReport("s", "v", "ivf_pq", 9, 5, 4, 1, 0, 2**20, 0.96, 3, served)
    assert from_json(SegmentReport, to_json(report)) == report
    _show_segments([report], as_json=False)
    assert ("ALARM" in capsys.readouterr().out) == (served is not None)
