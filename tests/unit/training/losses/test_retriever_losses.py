from __future__ import annotations

import math
from collections.abc import Callable

import loss_oracles
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_oracles import TAU_R, TAU_T, Drawn, draw
from torch import Tensor

from training.errors import ConfigError
from training.losses.loop import loop_loss
from training.losses.lsr import lsr_loss
from training.losses.marginal import sequence_marginals, token_marginals
from training.losses.named_loss import RETRIEVER_LOSSES, RetrieverLossName, retriever_loss
from training.losses.output import LossOutput
from training.losses.passage_distribution import passage_log_probs
from training.losses.pdist import pdist_loss

FULL_B = torch.tensor([-0.2, -0.9, -0.4], dtype=torch.float64)
STOPPED = ("pdist", "lsr", "emdr2_token", "emdr2_sequence", "loop")
ORACLES: dict[str, Callable[[Drawn], float]] = {
    "pdist": loss_oracles.pdist,
    "lsr": loss_oracles.lsr,
    "emdr2_token": loss_oracles.rag_token,
    "emdr2_sequence": loss_oracles.rag_sequence,
    "rag_token": loss_oracles.rag_token,
    "rag_sequence": loss_oracles.rag_sequence,
    "loop": lambda drawn: loss_oracles.loop(drawn, FULL_B.numpy()),
}
every_loss = pytest.mark.parametrize("name", RETRIEVER_LOSSES)


def compute(
    name: RetrieverLossName,
    drawn: Drawn,
    scores: Tensor | None = None,
    log_probs: Tensor | None = None,
    **changes: object,
):
    arguments = {
        "student_temperature": TAU_R,
        "teacher_temperature": TAU_T,
        "passage_mask_BK": drawn.passage_mask_BK,
        "full_log_prob_B": FULL_B if name == "loop" else None,
    }
    return retriever_loss(
        name,
        drawn.scores_BK if scores is None else scores,
        drawn.token_log_probs_BKL if log_probs is None else log_probs,
        drawn.answer_mask_BL,
        **(arguments | changes),
    )


def test_every_loss_has_an_oracle():
    assert set(ORACLES) == set(RETRIEVER_LOSSES)


@every_loss
def test_equals_its_equation(name: RetrieverLossName):
    drawn = draw()
    assert compute(name, drawn).loss.item() == pytest.approx(ORACLES[name](drawn), rel=1e-12)


@every_loss
def test_gradients_of_scores_agree_with_finite_differences(name: RetrieverLossName):
    drawn = draw()
    assert torch.autograd.gradcheck(lambda scores: compute(name, drawn, scores).loss, (drawn.scores_BK,))


@pytest.mark.parametrize("name", ["rag_token", "rag_sequence"])
def test_gradients_of_likelihoods_agree_with_finite_differences(name: RetrieverLossName):
    drawn = draw()
    assert torch.autograd.gradcheck(
        lambda log_probs: compute(name, drawn, log_probs=log_probs).loss, (drawn.token_log_probs_BKL,)
    )


@pytest.mark.parametrize("name", STOPPED)
def test_the_reader_gets_no_gradient(name: RetrieverLossName):
    drawn = draw()
    full = FULL_B.clone().requires_grad_()
    compute(name, drawn, full_log_prob_B=full if name == "loop" else None).loss.backward()
    assert drawn.token_log_probs_BKL.grad is None
    assert full.grad is None
    assert drawn.scores_BK.grad is not None
    assert drawn.scores_BK.grad.abs().sum() > 0


@pytest.mark.parametrize("distil", [pdist_loss, lsr_loss])
def test_a_distilled_teacher_gets_no_gradient_when_called_directly(distil: Callable[..., LossOutput]):
    drawn = draw()
    log_p = passage_log_probs(drawn.scores_BK, temperature=TAU_R)
    teacher = drawn.token_log_probs_BKL.detach().mean(dim=2).requires_grad_()
    distil(log_p, teacher, teacher_temperature=TAU_T).loss.backward()
    assert teacher.grad is None
    assert drawn.scores_BK.grad is not None


def test_a_left_out_passage_gives_the_reader_no_gradient_when_called_directly():
    drawn = draw()
    log_p = passage_log_probs(drawn.scores_BK, temperature=TAU_R)
    full = FULL_B.clone().requires_grad_()
    without = drawn.token_log_probs_BKL.detach().mean(dim=2).requires_grad_()
    loop_loss(log_p, full, without, teacher_temperature=TAU_T).loss.backward()
    assert full.grad is None
    assert without.grad is None


@pytest.mark.parametrize("name", sorted(set(RETRIEVER_LOSSES) - set(STOPPED)))
def test_rag_trains_reader_and_retriever(name: RetrieverLossName):
    drawn = draw()
    compute(name, drawn).loss.backward()
    for leaf in (drawn.token_log_probs_BKL, drawn.scores_BK):
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("form", ["token", "sequence"])
def test_emdr2_moves_the_retriever_as_rag_does(form: str):
    drawn = draw()
    (rag,) = torch.autograd.grad(compute(f"rag_{form}", drawn).loss, drawn.scores_BK)
    (emdr2,) = torch.autograd.grad(compute(f"emdr2_{form}", drawn).loss, drawn.scores_BK)
    assert torch.equal(rag, emdr2)


@every_loss
def test_padded_passages_change_nothing(name: RetrieverLossName):
    drawn = draw()
    wanted = compute(name, drawn)
    scores, log_probs = drawn.scores_BK.detach().clone(), drawn.token_log_probs_BKL.detach().clone()
    scores[~drawn.passage_mask_BK], log_probs[~drawn.passage_mask_BK] = 1e9, math.nan
    scores.requires_grad_(), log_probs.requires_grad_()
    found = compute(name, drawn, scores, log_probs)
    assert torch.equal(found.loss, wanted.loss)
    for metric, value in wanted.metrics.items():
        assert torch.equal(found.metrics[metric], value), metric
    (wanted_grad,) = torch.autograd.grad(wanted.loss, drawn.scores_BK)
    found.loss.backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, wanted_grad)
    assert log_probs.grad is None or log_probs.grad.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(RETRIEVER_LOSSES), st.permutations(range(4)), st.integers(0, 10**6))
def test_the_order_of_passages_changes_nothing(name: RetrieverLossName, order: list[int], seed: int):
    drawn = draw(seed)
    shuffled = Drawn(
        drawn.scores_BK[:, order],
        drawn.token_log_probs_BKL[:, order],
        drawn.answer_mask_BL,
        drawn.passage_mask_BK[:, order],
    )
    wanted, found = compute(name, drawn), compute(name, shuffled)
    torch.testing.assert_close(found.loss, wanted.loss)
    torch.testing.assert_close(dict(found.metrics), dict(wanted.metrics))


@every_loss
def test_a_question_without_passages_or_answer_adds_nothing(name: RetrieverLossName):
    drawn = draw()
    answers, passages = drawn.answer_mask_BL.clone(), drawn.passage_mask_BK.clone()
    answers[1], passages[2] = False, False
    holed = Drawn(drawn.scores_BK, drawn.token_log_probs_BKL, answers, passages)
    kept = Drawn(drawn.scores_BK[:1], drawn.token_log_probs_BKL[:1], answers[:1], drawn.passage_mask_BK[:1])
    one = compute(name, kept, full_log_prob_B=FULL_B[:1] if name == "loop" else None, denominator=1.0)
    found = compute(name, holed, denominator=1.0)
    if name == "loop":
        # Without a question's answer every passage is worth the same, so it has no signal.
        assert int(found.metrics["rows_without_signal"]) == 2
    torch.testing.assert_close(found.loss, one.loss)
    found.loss.backward()
    assert drawn.scores_BK.grad is not None
    assert drawn.scores_BK.grad[1:].eq(0).all()


def test_the_marginal_of_no_answer_is_exactly_zero():
    """In float32 a sum of probabilities is 1 but for rounding; nothing of it may reach the loss."""
    log_p = passage_log_probs(torch.randn(64, 7), temperature=1.0)
    none = torch.zeros(64, 3, dtype=torch.bool)
    log_probs = torch.randn(64, 7, 3)
    assert sequence_marginals(log_p, log_probs, none).eq(0).all()
    assert token_marginals(log_p, log_probs, none).eq(0).all()


@pytest.mark.parametrize("name", ["pdist", "lsr", "loop"])
def test_questions_without_signal_are_skipped_and_counted(name: RetrieverLossName):
    drawn = draw()
    flat = drawn.token_log_probs_BKL.detach().clone()
    flat[1] = flat[1, :1]
    found = compute(name, drawn, log_probs=flat)
    assert int(found.metrics["rows_without_signal"]) == 1
    found.loss.backward()
    assert drawn.scores_BK.grad is not None
    assert drawn.scores_BK.grad[1].eq(0).all()
    assert drawn.scores_BK.grad[[0, 2]].abs().sum() > 0
    none = compute(name, drawn, min_spread_nats=1e9)
    assert none.loss == 0
    assert none.metrics["kl_nats"] == 0


@every_loss
def test_micro_batches_with_the_steps_denominator_add_up_to_one_batch(name: RetrieverLossName):
    drawn = draw()
    count = drawn.num_tokens if name.endswith("token") else drawn.num_questions
    parts = []
    for rows in (slice(0, 1), slice(1, 3)):
        part = Drawn(
            drawn.scores_BK[rows],
            drawn.token_log_probs_BKL[rows],
            drawn.answer_mask_BL[rows],
            drawn.passage_mask_BK[rows],
        )
        full = FULL_B[rows] if name == "loop" else None
        parts.append(compute(name, part, full_log_prob_B=full, denominator=count).loss)
    torch.testing.assert_close(parts[0] + parts[1], compute(name, drawn).loss)


@every_loss
def test_half_precision_inputs_are_computed_in_float32(name: RetrieverLossName):
    drawn = draw()
    half = [t.detach().bfloat16() for t in (drawn.scores_BK, drawn.token_log_probs_BKL)]
    wanted = compute(name, drawn, *(t.double() for t in half)).loss
    found = compute(name, drawn, *half).loss if name != "loop" else None
    if found is None:
        found = compute(name, drawn, *half, full_log_prob_B=FULL_B.float()).loss
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_an_over_sharp_teacher_still_gives_a_finite_loss():
    drawn = draw()
    for name in ("pdist", "lsr"):
        output = compute(name, drawn, teacher_temperature=1e-4, student_temperature=1e-3)
        (grad,) = torch.autograd.grad(output.loss, drawn.scores_BK)
        assert output.loss.isfinite()
        assert grad.isfinite().all()


def test_the_null_passage_takes_part_and_gives_the_retrieval_utility():
    drawn = draw()
    null_scores, null_log_probs = torch.zeros(3, dtype=torch.float64), -torch.ones(3, 5, dtype=torch.float64)
    log_probs = torch.cat((drawn.token_log_probs_BKL, null_log_probs[:, None]), dim=1)
    found = compute("rag_token", drawn, log_probs=log_probs, null_scores_B=null_scores)
    ones = torch.ones(3, 1, dtype=torch.bool)
    as_passage = Drawn(
        torch.cat((drawn.scores_BK, null_scores[:, None]), dim=1),
        log_probs,
        drawn.answer_mask_BL,
        torch.cat((drawn.passage_mask_BK, ones), dim=1),
    )
    assert torch.equal(found.loss, compute("rag_token", as_passage).loss)
    wanted = -loss_oracles.rag_token(as_passage) - -1.0
    assert found.metrics["retrieval_utility_nats"].item() == pytest.approx(wanted, rel=1e-12)
    assert not found.metrics["retrieval_utility_nats"].requires_grad


def test_leave_one_out_prefers_the_passage_whose_absence_hurts():
    drawn = draw()
    without = torch.zeros(3, 4, 5, dtype=torch.float64)
    without[:, 1] = -3.0
    found = compute("loop", drawn, log_probs=without, passage_mask_BK=None)
    (grad,) = torch.autograd.grad(found.loss, drawn.scores_BK)
    assert (grad[:, 1] < 0).all()
    assert (grad[:, [0, 2, 3]] > 0).all()
    useful = np.array([[full - (-3.0 if j == 1 else 0.0) for j in range(4)] for full in FULL_B.tolist()])
    assert found.metrics["usefulness_nats"].item() == pytest.approx(useful.mean())


def test_an_unknown_name_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match="'ppmean': choose from pdist, lsr"):
        compute("ppmean", draw())


def test_inputs_of_loop_belong_to_loop():
    with pytest.raises(ValueError, match="full_log_prob_B belongs to loop"):
        compute("pdist", draw(), full_log_prob_B=FULL_B)
    with pytest.raises(ValueError, match="full_log_prob_B belongs to loop"):
        compute("loop", draw(), full_log_prob_B=None)
    with pytest.raises(ValueError, match="takes no null_scores_B"):
        compute("loop", draw(), null_scores_B=FULL_B)


def test_a_missing_row_of_the_null_passage_is_named():
    with pytest.raises(
        ValueError, match=r"token_log_probs_BKL has shape \(3, 4, 5\), so K=4, but log_p_BK has K=5"
    ):
        compute("rag_token", draw(), null_scores_B=FULL_B)
