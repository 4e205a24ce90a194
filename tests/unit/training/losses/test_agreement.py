from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_oracles import TAU_R, TAU_T, draw
from scipy.stats import entropy, spearmanr

from training.losses.agreement import agreement_metrics, entropy_share, rank_correlation, rows_with_signal
from training.losses.answer_likelihood import mean_answer_log_probs
from training.losses.passage_distribution import passage_log_probs

values = st.lists(st.integers(-3, 3), min_size=4, max_size=8)


@settings(max_examples=50, deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_rank_correlation_equals_scipys_with_ties(left: list[int], random):
    right = [random.randint(-3, 3) for _ in left]
    ours = float(rank_correlation(torch.tensor([left]).double(), torch.tensor([right]).double())[0])
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert ours == 0
    else:
        assert ours == pytest.approx(spearmanr(left, right).statistic)


def test_rank_correlation_leaves_padding_out():
    mask = torch.tensor([[True, True, True, False]])
    left, right = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[5.0, 6.0, 7.0, -9.0]])
    assert float(rank_correlation(left, right, mask)[0]) == pytest.approx(1.0)
    assert float(rank_correlation(left, right)[0]) < 0.5


def test_entropy_share_is_entropy_over_its_maximum():
    drawn = draw()
    scores = drawn.scores_BK.detach()
    log_p = passage_log_probs(scores, temperature=TAU_R, passage_mask_BK=drawn.passage_mask_BK)
    shares = entropy_share(log_p, drawn.passage_mask_BK)
    for i in range(drawn.num_questions):
        probabilities = log_p[i, drawn.passages(i)].exp().tolist()
        assert float(shares[i]) == pytest.approx(entropy(probabilities) / math.log(len(probabilities)))
    assert entropy_share(torch.full((1, 4), -math.log(4))).tolist() == pytest.approx([1.0])


def test_rows_have_signal_when_two_passages_differ_by_the_spread():
    found = torch.tensor([[0.0, 0.2], [0.0, 0.02], [0.0, 5.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    assert rows_with_signal(found, mask, min_spread_nats=0.1).tolist() == [True, False, False]
    assert rows_with_signal(found, min_spread_nats=0.1).tolist() == [True, False, True]
    assert rows_with_signal(found, torch.zeros_like(mask)).tolist() == [False] * 3


def test_metrics_are_means_over_questions_with_signal():
    drawn = draw()
    ell = mean_answer_log_probs(
        drawn.token_log_probs_BKL, drawn.answer_mask_BL, drawn.passage_mask_BK
    ).detach()
    log_p = passage_log_probs(drawn.scores_BK, temperature=TAU_R, passage_mask_BK=drawn.passage_mask_BK)
    ell[1] = -0.5
    metrics = agreement_metrics(
        log_p, ell, teacher_temperature=TAU_T, passage_mask_BK=drawn.passage_mask_BK, min_spread_nats=1e-6
    )
    wanted = [
        spearmanr(ell[i, drawn.passages(i)], drawn.scores_BK[i, drawn.passages(i)].detach()).statistic
        for i in (0, 2)
    ]
    assert float(metrics["rank_correlation"]) == pytest.approx(sum(wanted) / 2)
    assert int(metrics["rows_without_signal"]) == 1
    assert not any(value.requires_grad for value in metrics.values())


def test_metrics_of_a_batch_without_signal_are_zero_and_not_nan():
    metrics = agreement_metrics(torch.zeros(2, 1), torch.zeros(2, 1), teacher_temperature=1.0)
    assert {name: float(value) for name, value in metrics.items()} == {
        "teacher_entropy_share": 0.0,
        "student_entropy_share": 0.0,
        "rank_correlation": 0.0,
        "rows_without_signal": 2.0,
    }
