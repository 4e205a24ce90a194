from __future__ import annotations

import pytest
import torch
from loss_oracles import TAU_R, draw, parallel_lm

from training.losses.lm import concat_lm_loss, parallel_lm_loss
from training.losses.passage_distribution import passage_log_probs


def student(drawn) -> torch.Tensor:
    return passage_log_probs(drawn.scores_BK, temperature=TAU_R, passage_mask_BK=drawn.passage_mask_BK)


@pytest.mark.parametrize("by_relevance", [False, True])
def test_parallel_equals_its_equation(by_relevance: bool):
    drawn = draw()
    output = parallel_lm_loss(
        drawn.token_log_probs_BKL,
        drawn.answer_mask_BL,
        passage_mask_BK=drawn.passage_mask_BK,
        log_p_BK=student(drawn) if by_relevance else None,
    )
    assert output.loss.item() == pytest.approx(parallel_lm(drawn, by_relevance=by_relevance), rel=1e-12)
    assert output.metrics["lm_nats_per_token"].item() == output.loss.item()


def test_uniform_weights_are_the_cross_entropy_over_all_rows():
    drawn = draw()
    logits = torch.randn(3, 4, 5, 11, dtype=torch.float64)
    labels = torch.randint(11, (3, 4, 5)).masked_fill(~drawn.answer_mask_BL[:, None], -100)
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 2), labels.flatten())
    found = parallel_lm_loss(log_probs, (labels != -100))
    torch.testing.assert_close(found.loss, wanted)


def test_weights_by_relevance_give_the_retriever_no_gradient():
    drawn = draw()
    parallel_lm_loss(drawn.token_log_probs_BKL, drawn.answer_mask_BL, log_p_BK=student(drawn)).loss.backward()
    assert drawn.scores_BK.grad is None
    assert drawn.token_log_probs_BKL.grad is not None


def test_gradients_agree_with_finite_differences():
    drawn = draw()
    log_p = student(drawn).detach()
    assert torch.autograd.gradcheck(
        lambda x: (
            parallel_lm_loss(
                x, drawn.answer_mask_BL, passage_mask_BK=drawn.passage_mask_BK, log_p_BK=log_p
            ).loss
        ),
        (drawn.token_log_probs_BKL,),
    )


def test_concat_is_the_mean_over_answer_tokens():
    drawn = draw()
    one_BL = drawn.token_log_probs_BKL[:, 0]
    output = concat_lm_loss(one_BL, drawn.answer_mask_BL)
    wanted = -one_BL[drawn.answer_mask_BL].mean()
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: concat_lm_loss(x, drawn.answer_mask_BL).loss, (one_BL,))


def test_micro_batches_with_the_steps_denominator_add_up_to_one_batch():
    drawn = draw()
    whole = parallel_lm_loss(drawn.token_log_probs_BKL, drawn.answer_mask_BL)
    parts = [
        parallel_lm_loss(
            drawn.token_log_probs_BKL[rows], drawn.answer_mask_BL[rows], denominator=drawn.num_tokens
        ).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole.loss)


def test_no_answer_token_gives_zero_and_not_nan():
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert parallel_lm_loss(torch.randn(2, 4, 3), none).loss == 0
    assert concat_lm_loss(torch.randn(2, 3), none).loss == 0


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="log_p_BK has shape"):
        parallel_lm_loss(torch.zeros(2, 4, 3), torch.ones(2, 3, dtype=torch.bool), log_p_BK=torch.zeros(2, 5))
