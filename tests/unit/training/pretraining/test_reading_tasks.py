from __future__ import annotations

import random

import pytest

from training.pretraining.mixture import KINDS, Library, Mixture, StageConfig
from training.pretraining.reading_tasks import cut_passages
from training.pretraining.relations import RELATIONS
from training.pretraining.structured_tasks import country_questions

STAGE = StageConfig(
    name="test", steps=1, share=1.0, rows=2, row_tokens=256, passages=(1, 3), max_chars=(90, 260),
    questions=(3, 6), unanswerable=0.3, mixture={kind: 1.0 for kind in KINDS},
)  # fmt: skip
TASKS = [kind for kind in KINDS if kind != "text"]


@pytest.mark.parametrize("kind", TASKS)
def test_answers_stand_in_the_passage_they_cite(library: Library, encoder, kind: str):
    mixture = Mixture(library, encoder, (STAGE,), seed=1)
    answered = 0
    for draw in range(60):
        example = mixture.example(random.Random(draw), kind, STAGE)
        for item in example.questions if example else ():
            if item.answer is None:
                assert item.passage_number is None
                continue
            answered += 1
            assert item.answer in example.passages[item.passage_number - 1].text
    assert answered >= 20


@pytest.mark.parametrize("kind", ["lookup", "statements", "glossary", "countries", "wh", "squad"])
def test_about_the_wanted_share_of_questions_has_no_answer(library: Library, encoder, kind: str):
    mixture = Mixture(library, encoder, (STAGE,), seed=1)
    examples = [mixture.example(random.Random(draw), kind, STAGE) for draw in range(120)]
    items = [item for example in examples if example for item in example.questions]
    share = sum(item.answer is None for item in items) / len(items)
    assert 0.1 < share < 0.5


def test_an_unstated_fact_is_never_asked_as_if_it_were_stated(library: Library, encoder):
    mixture = Mixture(library, encoder, (STAGE,), seed=1)
    for draw in range(80):
        example = mixture.example(random.Random(draw), "lookup", STAGE)
        lines = "\n".join(passage.text for passage in example.passages)
        for item in example.questions:
            words = item.question.rstrip("?.")
            if item.answer is None:
                assert f"\n{words}: " not in f"\n{lines}"


def test_relations_name_subject_and_object_where_they_are_needed():
    for relation in RELATIONS:
        assert all("{s}" in text and "{o}" in text for text in relation.statements)
        assert all("{s}" in text and "{o}" not in text for text in relation.ask_object)
        assert all("{o}" in text and "{s}" not in text for text in relation.ask_subject)


def test_country_questions_of_absent_countries_have_no_answer(library: Library):
    for draw in range(40):
        example = country_questions(
            random.Random(draw),
            library.countries,
            num_passages=2,
            fields=4,
            num_questions=6,
            unanswerable=0.5,
        )
        shown = {passage.title for passage in example.passages}
        for item in example.questions:
            named = [name for name in library.countries if name in item.question]
            if named and not shown.intersection(named):
                assert item.answer is None


def test_cut_passages_keeps_whole_sentences_within_the_limit():
    text = "One is here. Two is here too. " + "A very long sentence " * 20 + ". Three ends it."
    pieces = cut_passages(text, 60)
    assert pieces == ["One is here. Two is here too. Three ends it."]


def test_batches_depend_on_seed_stage_and_step_alone(library: Library, encoder):
    first, second = (Mixture(library, encoder, (STAGE,), seed=5) for _ in range(2))
    second.batch(0, 3)
    assert (first.batch(0, 7).token_ids == second.batch(0, 7).token_ids).all()
    assert (first.batch(0, 7).token_ids != first.batch(0, 8).token_ids).any()
