"""A file of feedback as the rows that were written, for jobs that learn from judgements of answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from training.data.feedback import FeedbackPassage, FeedbackRow, Provenance, Rating, Verdict
from training.data.rows import Row, read_rows


def feedback_rows(path: Path) -> Iterator[FeedbackRow]:
    """Yield the rows of a file that `FeedbackRow.to_json` wrote.

    Raises:
        DataMissingError: The file is not there.
        DataError: A line is no row; the message names it.
    """
    for row in read_rows(path):
        yield FeedbackRow(
            feedback_id=row.identifier("feedback_id"),
            question=row.text("question"),
            answer=row.optional_text("answer"),
            provenance=_provenance(row),
            consent=row.flag("consent", default=False),
            rating=cast("Rating | None", _choice(row, "rating", ("up", "down"))),
            corrected_answer=row.optional_text("corrected_answer"),
            is_unanswerable=row.flag("is_unanswerable", default=False),
            passages=tuple(
                FeedbackPassage(
                    passage.text("passage_id"),
                    passage.optional_text("text"),
                    passage.optional_text("title"),
                    cast("Verdict | None", _choice(passage, "verdict", ("right", "wrong"))),
                )
                for passage in row.rows("passages", required=False)
            ),
        )


def _provenance(row: Row) -> Provenance:
    given = Row.of(row.fields.get("provenance"), f"{row.place}: provenance")
    names = ("release", "index_version", "library", "tenant", "user")
    return Provenance(given.text("run_id"), **{name: given.optional_text(name) for name in names})


def _choice(row: Row, key: str, choices: tuple[str, ...]) -> str | None:
    value = row.optional_text(key)
    if value and value not in choices:
        raise row.error(f"field '{key}' must be one of {', '.join(choices)} or null, got '{value}'")
    return value or None
