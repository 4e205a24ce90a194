"""Rows are served prompts with answers; packing them changes nothing that the model computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serving.prompt import NOT_IN_DOCUMENTS, PromptPassage, rag_prompt
from serving.tokenizer import ModelTokenizer
from training.errors import ConfigError, DataError
from training.joint.config import ReaderConfig
from training.joint.reader_rows import RowMaker, batch_rows
from training.joint.reader_tower import ReaderTower
from training.types import TrainingPassage, TrainingQuestion, TrainingSet


@pytest.fixture(scope="module")
def rows(tiny_reader: Path) -> RowMaker:
    return RowMaker(ModelTokenizer(tiny_reader / "tokenizer.json"), 40, 8)


@pytest.fixture
def tower(tiny_reader: Path) -> ReaderTower:
    return ReaderTower(ReaderConfig(model=str(tiny_reader), row_tokens=0), torch.device("cpu"))


def _two(rows: RowMaker, data: TrainingSet) -> list:
    return [rows.row(data.questions[i], data.passages[i : i + 1 + i % 3], 1) for i in range(5)]


def test_prompt_is_the_one_that_is_served(rows: RowMaker, lookup_set: TrainingSet, tiny_reader: Path):
    question, passage = lookup_set.questions[0], lookup_set.passages[0]
    tokenizer = ModelTokenizer(tiny_reader / "tokenizer.json")
    served = tokenizer.encode_prompt(
        rag_prompt(question.text, [PromptPassage(passage.passage_id, passage.title, passage.text)])
    )
    row = rows.row(question, [passage], 1)
    assert row.prompt_ids == served
    assert tokenizer.decode(row.answer_ids) == " Ada [1]"
    assert tokenizer.decode(row.answer_ids[: row.num_judged]) == " Ada"
    assert row.answer_ids[-1] == tokenizer.turn_end_id


def test_question_without_an_answer_is_refused_and_a_known_one_is_answered_so(rows: RowMaker):
    with pytest.raises(DataError, match="'q' has no answer"):
        rows.row(TrainingQuestion("q", "Who?"), [], None)
    row = rows.row(TrainingQuestion("q", "Who?", is_unanswerable=True), [], None)
    assert rows._tokenizer.decode(row.answer_ids) == NOT_IN_DOCUMENTS


def test_long_passages_and_answers_are_cut(rows: RowMaker):
    long = TrainingPassage("p", "\N{SLIGHTLY SMILING FACE} word " * 200)
    question = TrainingQuestion("q", "Who?", answers=("word " * 50,))
    row = rows.row(question, [long], 1)
    assert len(row.prompt_ids) < 300
    assert row.num_judged == 8


def test_likelihoods_are_those_of_a_plain_forward_pass(tower: ReaderTower, lookup_set: TrainingSet):
    made = _two(tower.rows, lookup_set)
    found = tower.likelihoods(made)
    for index, row in enumerate(made):
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]])
        log_probs = torch.log_softmax(tower.model(ids).logits[0], dim=-1)
        first = len(row.prompt_ids) - 1
        wanted = log_probs[torch.arange(first, first + len(row.answer_ids)), torch.tensor(row.answer_ids)]
        got = found.token_log_probs_NL[index, : len(row.answer_ids)]
        assert torch.allclose(got, wanted, atol=1e-5)
        assert found.taught_NL[index].sum() == len(row.answer_ids)
        assert found.judged_NL[index].sum() == row.num_judged
    assert (found.token_log_probs_NL[~found.taught_NL] == 0).all()


def test_packed_rows_give_the_same_likelihoods_and_gradients(
    tower: ReaderTower, lookup_set: TrainingSet, tiny_reader: Path
):
    made = _two(tower.rows, lookup_set)
    packed = ReaderTower(ReaderConfig(model=str(tiny_reader), row_tokens=512), torch.device("cpu"))
    batch = batch_rows(made, 0, 512)
    assert batch.token_ids_RT.shape[0] < len(made)
    one, two = tower.likelihoods(made), packed.likelihoods(made)
    assert torch.allclose(one.token_log_probs_NL, two.token_log_probs_NL, atol=1e-5)
    assert two.fill != one.fill
    one.token_log_probs_NL.sum().backward()
    two.token_log_probs_NL.sum().backward()
    for left, right in zip(tower.parameters(), packed.parameters(), strict=True):
        assert torch.allclose(left.grad, right.grad, rtol=1e-3, atol=1e-4 * float(left.grad.abs().max()))


def test_prompt_that_does_not_fit_is_refused(tower: ReaderTower, lookup_set: TrainingSet):
    made = _two(tower.rows, lookup_set)
    with pytest.raises(DataError, match="row_tokens=32"):
        batch_rows(made, 0, 32)
    tower.max_tokens = 20
    with pytest.raises(ConfigError, match="above the 20"):
        tower.likelihoods(made)


def test_frozen_reader_has_no_gradients(tiny_reader: Path, lookup_set: TrainingSet):
    tower = ReaderTower(ReaderConfig(model=str(tiny_reader), frozen=True), torch.device("cpu"))
    assert not tower.likelihoods(_two(tower.rows, lookup_set)).token_log_probs_NL.requires_grad


def test_answers_are_what_greedy_generation_gives_one_by_one(tower: ReaderTower, lookup_set: TrainingSet):
    prompts = [row.prompt_ids for row in _two(tower.rows, lookup_set)]
    together = tower.answer(prompts, 6)
    assert together == [tower.answer([prompt], 6)[0] for prompt in prompts]


def test_model_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"reader\.model.*nowhere"):
        ReaderTower(ReaderConfig(model="/nowhere/at/all"), torch.device("cpu"))
