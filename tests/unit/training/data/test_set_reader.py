"""Readers make sets of the files people have, and say file and place when a file is wrong."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path

import pytest

from training.data import SetSource, questions_without_answer, read_counted, read_set
from training.errors import ConfigError, DataError, DataMissingError
from training.types import TrainingPassage, TrainingQuestion, TrainingSet

HOP = "multihop-mini/"


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


def write_json(path: Path, value) -> Path:
    return write_lines(path, [json.dumps(value)])


def squad_file(path: Path, *, answer: str = "France", second_id: str = "q2", impossible: bool = True) -> Path:
    questions = [
        {"id": "q1", "question": "Where is Normandy?", "answers": [{"text": answer, "answer_start": 0}] * 2},
        {"id": second_id, "question": "Who gave it away?", "answers": [], "is_impossible": impossible},
    ]
    paragraph = {"context": "Normandy is in France.", "qas": questions}
    return write_json(path, {"data": [{"title": "The_Normans", "paragraphs": [paragraph]}]})


@pytest.mark.parametrize("suffix", [".json", ".json.xz"])
def test_squad_reads_answers_and_unanswerable_questions(tmp_path, suffix):
    read = read_set("squad", squad_file(tmp_path / f"squad{suffix}"))
    (passage,) = read.passages
    assert passage.full_text == "The Normans\nNormandy is in France."
    answered, unanswerable = read.questions
    assert answered.answers == ("France",)
    assert answered.positive_ids == (passage.passage_id,)
    assert answered.group == unanswerable.group == "The Normans"
    assert unanswerable.is_unanswerable
    assert unanswerable.negative_ids == (passage.passage_id,)
    assert unanswerable.positive_ids == ()


def test_squad_takes_more_passages_from_a_pool(tmp_path):
    squad = squad_file(tmp_path / "squad.json")
    pool = write_lines(
        tmp_path / "pool.jsonl.xz",
        [
            {"title": "Prime_number", "text": "Seven is prime."},
            {"title": "The Normans", "text": "Normandy is in France."},
        ],
    )
    read = read_set("squad", squad, corpus=pool)
    assert [passage.title for passage in read.passages] == ["The Normans", "Prime number"]


def nq_row(question="who wrote it", answers=("Ada",), text="Ada wrote it.", **context) -> dict:
    return {
        "question": question,
        "answers": list(answers),
        "ctxs": [{"title": "Page", "text": text, "isgold": True, **context}],
    }


def test_nq_reads_gold_passages_once(tmp_path):
    rows = [nq_row(), nq_row("who was first", ("ada",)), ""]
    read = read_set("nq", write_lines(tmp_path / "nq.jsonl", rows))
    assert len(read.passages) == 1
    assert [question.positive_ids for question in read.questions] == [(read.passages[0].passage_id,)] * 2
    assert {question.group for question in read.questions} == {"Page"}


def hotpot_row(**changes) -> dict:
    return {
        "_id": "h1",
        "question": "Are both tall?",
        "answer": "yes",
        "context": [["A", ["A is tall.", " Very."]], ["B", ["B is tall."]], ["C", ["C is wide."]]],
        "supporting_facts": [["A", 0], ["B", 0], ["A", 1]],
        **changes,
    }


@pytest.mark.parametrize("kind", ["hotpotqa", "2wiki"])
def test_hotpotqa_positives_are_the_supporting_passages(tmp_path, kind):
    read = read_set(kind, write_json(tmp_path / "hotpot.json", [hotpot_row()]))
    (question,) = read.questions
    titles = {passage.passage_id: passage.title for passage in read.passages}
    assert [titles[one] for one in question.positive_ids] == ["A", "B"]
    assert [passage.text for passage in read.passages] == ["A is tall. Very.", "B is tall.", "C is wide."]
    assert question.answers == ("yes",)


def test_hotpotqa_pool_by_title_adds_only_what_is_new(tmp_path):
    path = write_json(tmp_path / "hotpot.json", [hotpot_row()])
    pool = write_json(tmp_path / "pool.json", {"A": ["A is tall.", "Very."], "D": ["D is new."]})
    assert [one.title for one in read_set("hotpotqa", path, corpus=pool).passages] == ["A", "B", "C", "D"]


def test_musique_reads_aliases_and_supporting_paragraphs(tmp_path):
    row = {
        "id": "2hop__1_2",
        "question": "Who led it?",
        "answer": "G. Hall",
        "answer_aliases": ["Stanley Hall"],
        "paragraphs": [
            {"title": "One", "paragraph_text": "Stanley Hall led.", "is_supporting": True},
            {"title": "Two", "paragraph_text": "Other.", "is_supporting": False},
        ],
    }
    unanswerable = {**row, "id": "2hop__3", "answerable": False}
    read = read_set("musique", write_lines(tmp_path / "musique.jsonl", [row, unanswerable]))
    assert read.questions[0].answers == ("G. Hall", "Stanley Hall")
    assert read.questions[0].positive_ids == (read.passages[0].passage_id,)
    assert read.questions[1].is_unanswerable
    assert not read.questions[1].positive_ids


def beir_folder(folder: Path, qrels: list[str]) -> Path:
    write_lines(
        folder / "corpus.jsonl",
        [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "title": "only a title", "text": ""}],
    )
    write_lines(
        folder / "queries.jsonl.xz", [{"_id": "1", "text": "what is one"}, {"_id": "2", "text": "other"}]
    )
    write_lines(folder / "qrels" / "train.tsv", ["query-id\tcorpus-id\tscore", *qrels])
    return folder


def test_beir_reads_the_queries_its_split_judges(tmp_path):
    read = read_set("beir", beir_folder(tmp_path, ["1\td1\t2", "1\td2\t0"]))
    (question,) = read.questions
    assert (question.positive_ids, question.negative_ids) == (("d1",), ("d2",))
    assert read.passages[1] == TrainingPassage("d2", "only a title")


def test_scifact_reads_the_corpus_beside_the_claims(tmp_path):
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "7", "title": "T", "text": "abstract"}])
    claims = write_lines(
        tmp_path / "claims.jsonl", [{"_id": 1, "claim": "It works.", "cited_doc_ids": [7, 7]}]
    )
    (question,) = read_set("scifact", claims).questions
    assert (question.question_id, question.positive_ids, question.group) == ("1", ("7",), "7")


def test_medquad_joins_the_answers_of_one_question(tmp_path):
    rows = [
        {"qid": "1", "focus": "Flu", "question": "What is flu?", "answer": "An illness."},
        {"qid": "1", "focus": "Flu", "question": "What is flu?", "answer": "A virus."},
    ]
    (question,) = read_set("medquad", write_lines(tmp_path / "medquad.jsonl", rows)).questions
    assert (question.group, len(question.positive_ids)) == ("Flu", 2)


def test_clapnq_without_answer_is_unanswerable(tmp_path):
    passages = [{"title": "P", "text": "Some text."}]
    rows = [
        {"id": "1", "input": "a?", "passages": passages, "output": [{"answer": "Freely put."}]},
        {"id": "2", "input": "b?", "passages": passages, "output": [{"answer": ""}]},
    ]
    first, second = read_set("clapnq", write_lines(tmp_path / "clapnq.jsonl", rows)).questions
    assert first.positive_ids == second.negative_ids
    assert second.is_unanswerable


def edited(place: str):
    """Return the error that names a place."""
    return pytest.raises(DataError, match=re.escape(place))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not JSON"),
        ("[1]", "expected a JSON object, got [1]"),
        ({"answers": ["x"], "ctxs": [{"text": "x", "isgold": True}]}, "field 'question' is missing or empty"),
        ({"question": 7, "answers": [], "ctxs": [{"text": "x", "isgold": True}]}, "must be a text, got 7"),
        (nq_row(answers=[1]), "must be a list of texts, got [1]"),
        (nq_row(text="  "), "ctxs[0]: field 'text' is missing or empty"),
        (nq_row(isgold="yes"), "must be true or false"),
        (nq_row(isgold=False), "no context has 'isgold': true"),
        ({"question": "q", "answers": ["a"], "ctxs": {}}, "field 'ctxs' must be a list, got {}"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "nq.jsonl", [nq_row(), "", line])
    with edited(f"{path}:3: ") as caught:
        read_set("nq", path)
    assert message in str(caught.value)


def test_malformed_place_in_one_json_value_is_named(tmp_path):
    path = write_json(
        tmp_path / "s.json", {"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "1"}]}]}]}
    )
    with edited(f"{path}: data[0].paragraphs[0].qas[0]: a question has answers exactly where"):
        read_set("squad", path)
    path.write_text('{"data":\n oops}')
    with edited(f"{path}:2: not JSON"):
        read_set("squad", path)
    with edited("must be [title, [sentence, ...]]"):
        read_set("hotpotqa", write_json(tmp_path / "h.json", [hotpot_row(context=[["A", []]])]))


@pytest.mark.parametrize("name", ["nq.jsonl.xz", "nq.jsonl"])
def test_damaged_bytes_are_an_error_of_the_data(tmp_path, name):
    path = write_lines(tmp_path / name, [nq_row(f"question {n}") for n in range(50)])
    path.write_bytes(path.read_bytes()[:-40] + b"\xff" * 20)
    with edited(f"{path}:"):
        read_set("nq", path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataMissingError, match=re.escape(str(tmp_path / "none.jsonl"))):
        read_set("nq", tmp_path / "none.jsonl")
    with pytest.raises(DataMissingError, match=re.escape("corpus.jsonl")):
        read_set("beir", tmp_path)


def test_empty_file_is_refused(tmp_path):
    with edited("holds no passages to train on"):
        read_set("nq", write_lines(tmp_path / "nq.jsonl", []))


def test_duplicate_ids_name_both_places(tmp_path):
    path = squad_file(tmp_path / "s.json", second_id="q1")
    with edited("qas[1]: question id 'q1' stands twice") as caught:
        read_set("squad", path)
    assert "qas[0]" in str(caught.value)
    folder = beir_folder(tmp_path / "beir", ["1\td1\t1"])
    corpus = write_lines(
        folder / "corpus.jsonl", [{"_id": "d1", "text": "one"}, {"_id": "d1", "text": "two"}]
    )
    with edited(f"{corpus}:2: passage id 'd1' stands twice; the first is at {corpus}:1"):
        read_set("beir", folder)


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (["1\td9\t1"], "train.tsv:2: question '1' is labelled with passage 'd9', which is not among the 2"),
        (["9\td1\t1"], "train.tsv:2: query '9' is not in queries.jsonl"),
        (["1\td1\t1", "1\td1\t0"], "train.tsv:3: query '1' judges passage 'd1' twice"),
        (["1\td1\thigh"], "train.tsv:2: expected query-id"),
        (["1 d1 1"], "train.tsv:2: expected query-id"),
    ],
)
def test_judgement_that_cannot_be_is_named(tmp_path, qrels, message):
    with edited(message):
        read_set("beir", beir_folder(tmp_path, qrels))


def test_label_outside_the_library_is_dropped_and_counted_on_request(tmp_path):
    folder = beir_folder(tmp_path, ["1\td1\t1", "1\td9\t1", "2\td8\t1"])
    counted = read_counted(SetSource("beir", folder), faulty="drop")
    assert [one.positive_ids for one in counted.training_set.questions] == [("d1",)]
    assert counted.left_out == {
        "labels outside the library": 2,
        "questions whose every right passage is outside the library": 1,
    }


def test_question_without_an_answer_in_the_corpus_is_refused_with_its_count(tmp_path):
    path = write_lines(tmp_path / "nq.jsonl", [nq_row(), nq_row("who else", ("Grace",))])
    with edited(f"{path}:2: 1 of 2 questions have no answer in the corpus") as caught:
        read_set("nq", path)
    assert "'who else'" in str(caught.value)
    assert "faulty='drop'" in str(caught.value)


def test_question_without_an_answer_in_the_corpus_is_dropped_and_counted_on_request(tmp_path, caplog):
    path = write_lines(tmp_path / "nq.jsonl", [nq_row(), nq_row("who else", ("Grace",))])
    counted = read_counted(SetSource("nq", path), faulty="drop", name="mine")
    assert [one.text for one in counted.training_set.questions] == ["who wrote it"]
    assert counted.left_out == {"questions without an answer in the corpus": 1}
    assert "mine: left out 1 questions without an answer in the corpus" in caplog.text
    with edited("none of the 1 questions has an answer"):
        lost = write_lines(tmp_path / "lost.jsonl", [nq_row(answers=("Grace",))])
        read_set("nq", lost, faulty="drop")


def test_a_question_is_answered_by_its_positives_or_by_any_passage_without_them():
    passages = (TrainingPassage("a", "Ada wrote it."), TrainingPassage("b", "Nobody did."))

    def lost(**fields) -> bool:
        question = TrainingQuestion("q", "who?", **fields)
        return bool(questions_without_answer(TrainingSet("s", passages, (question,))))

    assert not lost(answers=("Ada",))
    assert not lost(answers=("Ada",), positive_ids=("b", "a"))
    assert lost(answers=("Ada",), positive_ids=("b",))
    assert lost(answers=("Grace",))
    assert not lost(answers=("yes",), positive_ids=("b",))
    assert not lost(positive_ids=("b",))
    assert not lost(is_unanswerable=True)
    assert lost()


def test_source_with_a_field_its_kind_does_not_take_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="kind must be one of squad, nq"):
        read_set("csv", tmp_path)
    with pytest.raises(ConfigError, match="leave corpus out"):
        read_set("beir", tmp_path, corpus=tmp_path)
    with pytest.raises(ConfigError, match="leave library out"):
        read_set("nq", tmp_path, library=TrainingSet("s"))


@pytest.mark.parametrize(
    ("kind", "path", "corpus", "num_passages", "num_questions"),
    [
        ("squad", "squad2/train.json.xz", "squad2/distractor_passages.jsonl.xz", 890, 2923),
        ("nq", "nq-gold/train.jsonl.xz", None, 1484, 1500),
        ("hotpotqa", HOP + "hotpotqa_train.json.xz", HOP + "hotpotqa_train_corpus.json.xz", 994, 100),
        ("musique", HOP + "musique_train.json.xz", HOP + "2wikimultihopqa_corpus.json.xz", 8009, 100),
        ("scifact", "scifact/claims_train.jsonl.xz", None, 5183, 809),
        ("clapnq", "clapnq-dev/clapnq_dev_answerable.jsonl.xz", None, 297, 300),
        ("clapnq", "clapnq-dev/clapnq_dev_unanswerable.jsonl.xz", None, 300, 300),
    ],
)  # fmt: skip
def test_published_files_are_read_whole(data_folder, kind, path, corpus, num_passages, num_questions):
    source = SetSource(kind, data_folder / path, data_folder / corpus if corpus else None)
    counted = read_counted(source)
    assert not counted.left_out
    assert len(counted.training_set.passages) == num_passages
    assert len(counted.training_set.questions) == num_questions


def test_claims_without_labels_are_refused(data_folder):
    with edited("300 of 300 questions have no answer in the corpus"):
        read_set("scifact", data_folder / "scifact" / "claims_test.jsonl.xz")
