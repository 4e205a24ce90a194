"""BEIR folders (https://arxiv.org/abs/2104.08663) and SciFact's claims: corpus, queries, judgements."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from training.data.draft import SetDraft
from training.data.multihop import add_pool_row
from training.data.rows import Row, numbered_lines, read_rows
from training.errors import DataError, DataMissingError
from training.types import TrainingQuestion


def plain_or_xz(path: Path) -> Path:
    """Return the path, or the same with `.xz` where only that is there.

    Raises:
        DataMissingError: Neither is there.
    """
    for candidate in (path, path.with_name(f"{path.name}.xz")):
        if candidate.is_file():
            return candidate
    raise DataMissingError(path)


@dataclass(slots=True)
class _Judgements:
    place: str
    """Where the first one stands."""
    positive_ids: list[str] = field(default_factory=list)
    negative_ids: list[str] = field(default_factory=list)


def read_beir(folder: Path, draft: SetDraft, *, split: str) -> None:
    """Add `corpus.jsonl` and the queries of `queries.jsonl` that `qrels/SPLIT.tsv` judges; each may be `.xz`.

    Scores above 0 are positives, 0 is a negative. Queries are shared by BEIR's splits, so those without a
    judgement here belong to another and are not counted.
    """
    for row in read_rows(plain_or_xz(folder / "corpus.jsonl")):
        add_pool_row(row, draft)
    judged = _read_qrels(plain_or_xz(folder / "qrels" / f"{split}.tsv"))
    for row in read_rows(plain_or_xz(folder / "queries.jsonl")):
        query_id = row.identifier("_id")
        judgements = judged.pop(query_id, None)
        if judgements is not None:
            draft.add_question(
                TrainingQuestion(
                    question_id=query_id,
                    text=row.text("text"),
                    positive_ids=tuple(judgements.positive_ids),
                    negative_ids=tuple(judgements.negative_ids),
                ),
                judgements.place,
            )
    for query_id, judgements in judged.items():
        raise DataError(f"{judgements.place}: query '{query_id}' is not in queries.jsonl")


def _read_qrels(path: Path) -> dict[str, _Judgements]:
    judged: dict[str, _Judgements] = {}
    seen: set[tuple[str, str]] = set()
    for number, (place, line) in enumerate(numbered_lines(path)):
        columns = [column.strip() for column in line.split("\t")]
        if number == 0 and columns[-1] == "score":
            continue
        if len(columns) != 3 or not columns[2].lstrip("-").isdecimal():
            raise DataError(f"{place}: expected query-id, corpus-id and a whole-number score between tabs")
        query_id, passage_id, score = columns
        if (query_id, passage_id) in seen:
            raise DataError(f"{place}: query '{query_id}' judges passage '{passage_id}' twice")
        seen.add((query_id, passage_id))
        judgements = judged.setdefault(query_id, _Judgements(place))
        (judgements.positive_ids if int(score) > 0 else judgements.negative_ids).append(passage_id)
    return judged


def read_scifact(path: Path, draft: SetDraft, *, corpus: Path | None) -> None:
    """Add SciFact claims `{_id, claim, cited_doc_ids}`; cited abstracts are the positives, as in BEIR's task.

    The group is the first cited abstract: a claim and its negation cite the same. The corpus is
    `corpus.jsonl` beside the claims unless given.
    """
    for row in read_rows(corpus or plain_or_xz(path.with_name("corpus.jsonl"))):
        add_pool_row(row, draft)
    for row in read_rows(path):
        cited = _cited(row)
        draft.add_question(
            TrainingQuestion(
                question_id=row.identifier("_id"),
                text=row.text("claim"),
                positive_ids=cited,
                group=cited[0] if cited else "",
            ),
            row.place,
        )


def _cited(row: Row) -> tuple[str, ...]:
    # The original release writes document ids as numbers, converted copies as texts.
    ids = row.items("cited_doc_ids")
    if not all(isinstance(one, (str, int)) for one in ids):
        raise row.error("field 'cited_doc_ids' must be a list of ids")
    return tuple(dict.fromkeys(str(one) for one in ids))
