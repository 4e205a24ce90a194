"""What is shown of an ingestion: on a terminal one line that is replaced, elsewhere few that stay."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from graft.progress_line import ProgressLine, described
from retrieval.ingestion.bulk import BulkProgress, Refused


def reports() -> list[BulkProgress]:
    return [
        BulkProgress(
            num_files=4_000,
            files_read=done,
            files_done=done,
            num_ready=done,
            num_chunks=done * 2,
            seconds=done / 10,
            failures=(Refused(f"{done}.pdf", "scanned"),),
        )
        for done in range(1_000, 4_001, 1_000)
    ]


def shown(is_terminal: bool) -> tuple[str, ProgressLine]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120, color_system=None)
    with ProgressLine(console) as line:
        for report in reports():
            line.show(report)
    return out.getvalue(), line


def test_a_line_says_pace_and_what_is_left() -> None:
    assert described(reports()[0]) == (
        "1,000 of 4,000 files ready, 2,000 chunks, 20.0 chunks/s, about 5 min left"
    )
    first = BulkProgress(num_files=3, files_read=2, num_failed=1, num_refused=1)
    assert described(first) == "0 of 3 files ready, 2 read, 1 failed, 1 refused, 0 chunks"


def test_where_nobody_watches_the_first_and_the_last_line_are_plain() -> None:
    out, line = shown(is_terminal=False)
    assert [text.split()[0] for text in out.splitlines()] == ["1,000", "4,000"]
    assert "\x1b" not in out
    assert [failure.name for failure in line.failures] == ["1000.pdf", "2000.pdf", "3000.pdf", "4000.pdf"]


def test_on_a_terminal_the_line_is_replaced_and_goes_when_all_is_done() -> None:
    out, _ = shown(is_terminal=True)
    assert "of 4,000 files ready" in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1  # The cursor comes back.


@pytest.mark.parametrize("is_terminal", [True, False])
def test_why_files_are_sent_is_said_once(is_terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=120, color_system=None)
    with ProgressLine(console) as line:
        for done in range(3):
            line.show(BulkProgress(num_files=3, files_done=done, sent_because="[it] runs elsewhere"))
    assert out.getvalue().count("one by one: [it] runs elsewhere") == 1
