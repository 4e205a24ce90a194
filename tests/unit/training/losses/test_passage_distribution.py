from __future__ import annotations

import math

import pytest
import torch
from loss_oracles import TAU_R, draw
from scipy.special import log_softmax

from training.losses.answer_likelihood import mean_answer_log_probs, shared_answer_mask
from training.losses.passage_distribution import passage_log_probs

NO_PASSAGES = torch.tensor([[False, False, False], [True, True, True]])


def test_equals_the_softmax_over_the_passages_that_are_there():
    drawn = draw()
    log_p = passage_log_probs(drawn.scores_BK, temperature=TAU_R, passage_mask_BK=drawn.passage_mask_BK)
    for i in range(drawn.num_questions):
        torch.testing.assert_close(log_p[i, drawn.passages(i)].detach(), torch.tensor(drawn.student(i)))
    assert log_p.exp()[~drawn.passage_mask_BK].eq(0).all()
    assert log_p.isfinite().all()


def test_padding_stays_impossible_however_low_the_scores():
    scores = torch.tensor([[-300.0, -300.0, 5.0]])
    mask = torch.tensor([[True, True, False]])
    log_p = passage_log_probs(scores, temperature=1e-3, passage_mask_BK=mask)
    assert log_p.exp().tolist() == [[0.5, 0.5, 0.0]]


def test_padding_takes_no_gradient():
    drawn = draw()
    log_p = passage_log_probs(drawn.scores_BK, temperature=TAU_R, passage_mask_BK=drawn.passage_mask_BK)
    (log_p.exp() * log_p).sum().backward()
    assert drawn.scores_BK.grad is not None
    assert drawn.scores_BK.grad[~drawn.passage_mask_BK].eq(0).all()
    assert drawn.scores_BK.grad[drawn.passage_mask_BK].ne(0).all()


def test_a_question_without_passages_is_finite_and_without_gradient():
    scores = torch.randn(2, 3, requires_grad=True)
    log_p = passage_log_probs(scores, temperature=1.0, passage_mask_BK=NO_PASSAGES)
    assert log_p[0].tolist() == pytest.approx([-math.log(3)] * 3)
    log_p.square().sum().backward()
    assert scores.grad is not None
    assert scores.grad[0].eq(0).all()


def test_the_null_passage_is_a_last_slot_that_is_always_there():
    drawn = draw()
    null = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    log_p = passage_log_probs(
        drawn.scores_BK, temperature=TAU_R, passage_mask_BK=drawn.passage_mask_BK, null_scores_B=null
    )
    for i in range(drawn.num_questions):
        kept = [*drawn.scores_BK[i, drawn.passages(i)].tolist(), float(null[i])]
        wanted = log_softmax([score / TAU_R for score in kept])
        assert log_p[i, [*drawn.passages(i), -1]].tolist() == pytest.approx(wanted.tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_normalised_in_float32(dtype: torch.dtype):
    scores = torch.randn(2, 64).to(dtype)
    log_p = passage_log_probs(scores, temperature=0.05, passage_mask_BK=torch.ones(2, 64, dtype=torch.bool))
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(2))


def test_an_answer_mask_counts_the_tokens_that_every_passage_has():
    mask_BKL = torch.tensor([[[True, True, True], [True, False, True], [False, False, False]]])
    here = torch.tensor([[True, True, False]])
    assert shared_answer_mask(mask_BKL, here).tolist() == [[True, False, True]]
    assert shared_answer_mask(mask_BKL).tolist() == [[False, False, False]]
    assert shared_answer_mask(mask_BKL[:, 0], here).tolist() == [[True, True, True]]
    assert not shared_answer_mask(mask_BKL[:, 0], torch.zeros_like(here)).any()
    with pytest.raises(ValueError, match="K=3, but there are 2 passages"):
        shared_answer_mask(mask_BKL, num_passages=2)


def test_the_mean_likelihood_ignores_whatever_stands_under_the_masks():
    drawn = draw()
    spoilt = drawn.token_log_probs_BKL.detach().clone()
    spoilt[~(drawn.answer_mask_BL[:, None, :] & drawn.passage_mask_BK[:, :, None])] = math.nan
    spoilt.requires_grad_()
    means = mean_answer_log_probs(spoilt, drawn.answer_mask_BL, drawn.passage_mask_BK)
    for i in range(drawn.num_questions):
        wanted = drawn.log_probs(i).mean(axis=1)
        assert means[i, drawn.passages(i)].tolist() == pytest.approx(wanted.tolist())
    means.sum().backward()
    assert spoilt.grad is not None
    assert spoilt.grad.isfinite().all()
