from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_oracles import draw
from scipy.special import log_softmax
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from torch import nn

from training.errors import ConfigError
from training.losses.distill import distill_loss


def teacher() -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 3


def test_equals_its_equation_over_the_passages_that_are_there():
    drawn, scores = draw(), teacher()
    found = distill_loss(
        drawn.scores_BK,
        scores,
        student_temperature=0.5,
        teacher_temperature=2.0,
        passage_mask_BK=drawn.passage_mask_BK,
    )
    total = 0.0
    for i in range(3):
        kept = drawn.passages(i)
        target = log_softmax(scores[i, kept].numpy() / 2.0)
        student = log_softmax(drawn.scores_BK[i, kept].detach().numpy() / 0.5)
        total += (np.exp(target) * (target - student)).sum()
    assert found.loss.item() == pytest.approx(0.25 * total / 3, rel=1e-12)


def test_equals_sentence_transformers_on_embeddings():
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    passages = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    theirs = DistillKLDivLoss(nn.Identity(), student_temperature=0.7, teacher_temperature=1.5)
    wanted = theirs.compute_loss_from_embeddings([queries, *passages.unbind(1)], teacher())
    scores = torch.einsum("BD,BKD->BK", queries, passages)
    found = distill_loss(scores, teacher(), student_temperature=0.7, teacher_temperature=1.5).loss
    torch.testing.assert_close(found, wanted)
    for mine, other in zip(
        torch.autograd.grad(found, (queries, passages)),
        torch.autograd.grad(wanted, (queries, passages)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_gradients_agree_with_finite_differences():
    drawn = draw()
    assert torch.autograd.gradcheck(
        lambda s: distill_loss(s, teacher(), passage_mask_BK=drawn.passage_mask_BK).loss, (drawn.scores_BK,)
    )


def test_the_cross_encoder_gets_no_gradient_and_padding_changes_nothing():
    drawn, scores = draw(), teacher().requires_grad_()
    wanted = distill_loss(drawn.scores_BK, scores, passage_mask_BK=drawn.passage_mask_BK).loss
    spoilt = scores.detach().masked_fill(~drawn.passage_mask_BK, 1e9)
    found = distill_loss(drawn.scores_BK, spoilt, passage_mask_BK=drawn.passage_mask_BK).loss
    assert torch.equal(found, wanted)
    wanted.backward()
    assert scores.grad is None
    assert drawn.scores_BK.grad is not None
    assert drawn.scores_BK.grad[~drawn.passage_mask_BK].eq(0).all()


def test_a_question_without_passages_adds_nothing():
    drawn = draw()
    mask = drawn.passage_mask_BK.clone()
    mask[1] = False
    found = distill_loss(drawn.scores_BK, teacher(), student_temperature=0.01, passage_mask_BK=mask).loss
    found.backward()
    assert found.isfinite()
    assert drawn.scores_BK.grad is not None
    assert drawn.scores_BK.grad[1].eq(0).all()


def test_bad_inputs_are_refused():
    drawn = draw()
    with pytest.raises(ValueError, match="cross_encoder_scores_BK has shape"):
        distill_loss(drawn.scores_BK, teacher()[:2])
    with pytest.raises(ValueError, match="at least 3 columns"):
        distill_loss(drawn.scores_BK[:, :1], teacher()[:, :1])
    with pytest.raises(ConfigError, match="teacher_temperature=0"):
        distill_loss(drawn.scores_BK, teacher(), teacher_temperature=0.0)


def test_half_precision_scores_are_computed_in_float32():
    drawn = draw()
    assert distill_loss(drawn.scores_BK.bfloat16(), teacher().bfloat16()).loss.dtype == torch.float32
