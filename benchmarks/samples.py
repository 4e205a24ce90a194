"""The 60 questions of the sample library through the whole platform: found, answered, abstained, wrong.

Arms: `answerable` (50 questions, each with a gold span) and `unanswerable` (10). An answer is correct when it
holds the gold answer or has a token F1 of at least 0.5 with it. `quoted` counts abstentions whose quotes hold
the gold answer: the user still sees it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agents.state import RunResult
from benchmarks.report import Report
from graft import Graft, load_config

QUESTIONS = Path(__file__).resolve().parent.parent / "sample_library" / "questions.jsonl"
K = 5
MIN_F1 = 0.5


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the sample library."""

    id: str
    """Its id."""
    question: str
    """As a user asks it."""
    answer: str | None
    """Gold answer, a span of the document; None where no document says."""
    document: str | None
    """Name of the document that says."""
    quote: str | None
    """The sentence that says."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the platform made of a question."""

    question: Question
    """The question."""
    result: RunResult
    """What it answered."""
    rank: int | None
    """Rank of the first passage from the gold document among the best K; None when it is not there."""

    @property
    def verdict(self) -> str:
        """Return correct, wrong, quoted or abstained."""
        gold, result = self.question.answer, self.result
        if result.stop_reason == "answered":
            return "correct" if gold and matches(plain(result.answer), plain(gold)) else "wrong"
        if gold is None:
            return "correct"
        return "quoted" if any(plain(gold) in plain(item.quote) for item in result.citations) else "abstained"


def load_questions() -> list[Question]:
    """Return the questions of the sample library."""
    return [Question(**json.loads(line)) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def plain(text: str) -> str:
    """Return lower-case words and whole numbers without citation marks and punctuation."""
    return " ".join(re.findall(r"\d+(?:[.,]\d+)+|\w+", re.sub(r"\[\d+\]", " ", text).lower()))


def matches(answer: str, gold: str) -> bool:
    """Return whether an answer holds the gold answer, or shares enough of its words."""
    if f" {gold} " in f" {answer} ":
        return True
    common = sum((Counter(answer.split()) & Counter(gold.split())).values())
    if not common:
        return False
    precision, recall = common / len(answer.split()), common / len(gold.split())
    return 2 * precision * recall / (precision + recall) >= MIN_F1


def outcomes(graft: Graft, questions: list[Question]) -> Iterator[Outcome]:
    """Yield what the platform makes of each question."""
    pipeline = graft.pipeline("rag")
    for question in questions:
        found = graft.search(question.question, k=K, library="samples").passages
        ranks = [rank for rank, passage in enumerate(found) if passage.document == question.document]
        result = pipeline.invoke(question.question, library="samples")
        yield Outcome(question, result, ranks[0] if ranks else None)


def record(report: Report, seen: list[Outcome]) -> None:
    """Add the figures of a run."""
    answerable = [item for item in seen if item.question.answer is not None]
    unanswerable = [item for item in seen if item.question.answer is None]
    found = [item for item in answerable if item.rank is not None]
    first = [item for item in found if item.rank == 0]
    report.add("answerable", "recall_at_5", len(found) / len(answerable), "share")
    report.add("answerable", "hit_at_1", len(first) / len(answerable), "share")
    for arm, items in (("answerable", answerable), ("unanswerable", unanswerable)):
        counts = Counter(item.verdict for item in items)
        for verdict in ("correct", "quoted", "abstained", "wrong"):
            report.add(arm, verdict, counts[verdict], "questions", of=len(items))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="not used: the questions are part of the repository")
    parser.add_argument("--quick", action="store_true", help="every third question; the result is not kept")
    parser.add_argument("--set", action="append", default=[], help="configuration key=value")
    arguments = parser.parse_args()
    questions = load_questions()[:: 3 if arguments.quick else 1]
    report = Report("samples", quick=arguments.quick)
    with Graft.up(load_config(overrides=arguments.set)) as graft:
        record(report, list(outcomes(graft, questions)))
    report.save()


if __name__ == "__main__":
    main()
