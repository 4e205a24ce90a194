"""Reading-comprehension files: SQuAD, Natural Questions with gold passage, CLAPnq, MedQuAD."""

from __future__ import annotations

from pathlib import Path

from training.data.draft import SetDraft, content_id
from training.data.rows import Row, read_json, read_rows
from training.types import TrainingQuestion


def read_squad(path: Path, draft: SetDraft) -> None:
    """Add the paragraphs and questions of a SQuAD 1.1 or 2.0 file; the group of a question is its article."""
    document = Row.of(read_json(path), str(path))
    for article in document.rows("data"):
        title = article.optional_text("title").replace("_", " ")
        for paragraph in article.rows("paragraphs"):
            passage_id = draft.add_text(title, paragraph.text("context"))
            for row in paragraph.rows("qas"):
                _add_squad_question(row, title, passage_id, draft)


def _add_squad_question(row: Row, title: str, passage_id: str, draft: SetDraft) -> None:
    is_unanswerable = row.flag("is_impossible", default=False)
    answers = tuple(dict.fromkeys(answer.text("text") for answer in row.rows("answers", required=False)))
    if bool(answers) == is_unanswerable:
        raise row.error("a question has answers exactly where 'is_impossible' is false")
    draft.add_question(
        TrainingQuestion(
            question_id=row.identifier("id"),
            text=row.text("question"),
            answers=answers,
            positive_ids=() if is_unanswerable else (passage_id,),
            # An adversarial question was written against this paragraph: it looks right and is wrong.
            negative_ids=(passage_id,) if is_unanswerable else (),
            is_unanswerable=is_unanswerable,
            group=title,
        ),
        row.place,
    )


def read_nq(path: Path, draft: SetDraft) -> None:
    """Add Natural Questions rows `{question, answers, ctxs: [{title, text, isgold, hasanswer}]}`.

    Gold contexts are positives; the others are passages without a label. The group is the gold page's title,
    so that a split keeps a page on one side. The id follows from the question's text: the rows have none.
    """
    for row in read_rows(path):
        positives, titles = [], []
        for context in row.rows("ctxs"):
            title = context.optional_text("title")
            passage_id = draft.add_text(title, context.text("text"))
            if context.flag("isgold", default=False):
                positives.append(passage_id)
                titles.append(title)
        if not positives:
            raise row.error("no context has 'isgold': true")
        question = row.text("question")
        draft.add_question(
            TrainingQuestion(
                question_id=content_id(question),
                text=question,
                answers=row.texts("answers"),
                positive_ids=tuple(dict.fromkeys(positives)),
                group=titles[0],
            ),
            row.place,
        )


def read_clapnq(path: Path, draft: SetDraft) -> None:
    """Add CLAPnq rows `{id, input, passages, output: [{answer}]}`; answers are the annotators' sentences.

    A row without an answer is unanswerable, and its passages are wrong for it. The group is the page's title.
    """
    for row in read_rows(path):
        answers = [output.optional_text("answer") for output in row.rows("output")]
        answers = tuple(dict.fromkeys(answer for answer in answers if answer))
        passages = list(row.rows("passages"))
        titles = [passage.optional_text("title") for passage in passages]
        ids = tuple(
            draft.add_text(title, passage.text("text"))
            for title, passage in zip(titles, passages, strict=True)
        )
        draft.add_question(
            TrainingQuestion(
                question_id=row.identifier("id"),
                text=row.text("input"),
                answers=answers,
                positive_ids=ids if answers else (),
                negative_ids=() if answers else ids,
                is_unanswerable=not answers,
                group=titles[0] if titles else "",
            ),
            row.place,
        )


def read_medquad(path: Path, draft: SetDraft) -> None:
    """Add MedQuAD rows `{question, answer, focus}`: the answer is the passage, the group its `focus`.

    The file's `qid` is not unique, and one question can have several answers: rows with the same question
    become one question with several positives, placed where it stands first.
    """
    first_rows: dict[str, Row] = {}
    answers: dict[str, list[str]] = {}
    for row in read_rows(path):
        question = row.text("question")
        first_rows.setdefault(question, row)
        answers.setdefault(question, []).append(row.text("answer"))
    for question, row in first_rows.items():
        focus = row.optional_text("focus")
        texts = tuple(dict.fromkeys(answers[question]))
        draft.add_question(
            TrainingQuestion(
                question_id=content_id(question),
                text=question,
                answers=texts,
                positive_ids=tuple(dict.fromkeys(draft.add_text(focus, text) for text in texts)),
                group=focus,
            ),
            row.place,
        )
