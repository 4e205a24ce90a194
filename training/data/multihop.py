"""Multi-hop files: HotpotQA, 2WikiMultihopQA, MuSiQue, and the passage pools that come with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.data.draft import SetDraft
from training.data.rows import Row, read_json, read_rows
from training.errors import DataError
from training.types import TrainingPassage, TrainingQuestion


def _rows_of(path: Path) -> list[Row]:
    """Return the rows of a file that is JSON lines or one JSON list."""
    return list(read_rows(path)) if ".jsonl" in path.suffixes else _listed(read_json(path), path)


def _listed(value: object, path: Path) -> list[Row]:
    if not isinstance(value, list):
        raise DataError(f"{path}: expected a list, got {type(value).__name__}")
    return [Row.of(item, f"{path}: [{index}]") for index, item in enumerate(value)]


def read_hotpotqa(path: Path, draft: SetDraft) -> None:
    """Add HotpotQA or 2WikiMultihopQA questions; positives are the passages of `supporting_facts`."""
    for row in _rows_of(path):
        ids = {}
        for pair in row.items("context"):
            title, sentences = _titled_sentences(pair, row)
            ids[title] = draft.add_text(title, _joined(sentences))
        titles = dict.fromkeys(_supporting_title(fact, row) for fact in row.items("supporting_facts"))
        outside = [title for title in titles if title not in ids]
        if outside:
            raise row.error(f"supporting fact names '{outside[0]}', which is not in 'context'")
        draft.add_question(
            TrainingQuestion(
                question_id=row.identifier("_id"),
                text=row.text("question"),
                answers=(row.text("answer"),),
                positive_ids=tuple(ids[title] for title in titles),
            ),
            row.place,
        )


def _titled_sentences(pair: Any, row: Row) -> tuple[str, list[str]]:
    match pair:
        case [str(title), [*sentences]] if sentences and all(isinstance(one, str) for one in sentences):
            return title, sentences
    raise row.error("a passage must be [title, [sentence, ...]]")


def _supporting_title(fact: Any, row: Row) -> str:
    match fact:
        case [str(title), int()]:
            return title
    raise row.error("an entry of 'supporting_facts' must be [title, sentence number]")


def _joined(sentences: list[str]) -> str:
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())


def read_musique(path: Path, draft: SetDraft) -> None:
    """Add MuSiQue questions; positives are the paragraphs with `is_supporting`, aliases are answers too."""
    for row in _rows_of(path):
        positives = []
        for paragraph in row.rows("paragraphs"):
            passage_id = draft.add_text(paragraph.optional_text("title"), paragraph.text("paragraph_text"))
            if paragraph.flag("is_supporting", default=False):
                positives.append(passage_id)
        answerable = row.flag("answerable", default=True)
        answers = (row.text("answer"), *row.texts("answer_aliases")) if answerable else ()
        draft.add_question(
            TrainingQuestion(
                question_id=row.identifier("id"),
                text=row.text("question"),
                answers=tuple(dict.fromkeys(answers)),
                positive_ids=tuple(dict.fromkeys(positives)) if answerable else (),
                is_unanswerable=not answerable,
            ),
            row.place,
        )


def read_pool(path: Path, draft: SetDraft) -> None:
    """Add passages without questions, such as distractors.

    Takes JSON lines or a JSON list of `{title, text}`, with an `_id` or without, and HotpotQA's
    `{title: [sentence, ...]}`. A passage without an id that is there already is not added twice.
    """
    if ".jsonl" in path.suffixes:
        rows = list(read_rows(path))
    else:
        value = read_json(path)
        if isinstance(value, dict):
            for title, sentences in value.items():
                title, sentences = _titled_sentences([title, sentences], Row(f"{path}: '{title}'", {}))
                draft.add_text(title, _joined(sentences))
            return
        rows = _listed(value, path)
    for row in rows:
        add_pool_row(row, draft)


def add_pool_row(row: Row, draft: SetDraft) -> None:
    """Add one `{_id, title, text}`; where only the title is filled, it is the text."""
    title, text = row.optional_text("title").replace("_", " "), row.optional_text("text")
    if not text:
        title, text = "", title
    if not text:
        raise row.error("fields 'title' and 'text' are both empty")
    if "_id" in row.fields:
        draft.add_passage(TrainingPassage(row.identifier("_id"), text, title), row.place)
    else:
        draft.add_text(title, text)
