"""Ours against what others published: Atlas, transformers' RAG, REALM."""

from __future__ import annotations

import pytest
import torch
from loss_oracles import draw
from torch import Tensor, nn
from transformers import BartConfig, DPRConfig, RagConfig, RagSequenceForGeneration, RagTokenForGeneration

from training.losses.answer_likelihood import mean_answer_log_probs
from training.losses.named_loss import RetrieverLossName, retriever_loss
from training.losses.passage_distribution import passage_log_probs
from training.losses.tiled_log_probs import NO_LABEL, answer_log_probs
from training.losses.utility import retrieval_utility

PAD, BOS, VOCAB, DOCS = 1, 0, 13, 3


def rag_config() -> RagConfig:
    encoder = DPRConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )
    generator = BartConfig(
        vocab_size=VOCAB,
        d_model=4,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=4,
        decoder_ffn_dim=4,
        max_position_embeddings=8,
    )
    return RagConfig.from_question_encoder_generator_configs(encoder, generator, n_docs=DOCS)


@pytest.mark.parametrize(
    ("kind", "name", "ragged"),
    [
        (RagTokenForGeneration, "rag_token", True),
        (RagSequenceForGeneration, "rag_sequence", True),
        (RagTokenForGeneration, "emdr2_token", False),
    ],
)
def test_equals_transformers_rag(kind: type, name: RetrieverLossName, ragged: bool):
    """`get_nll` sums over the batch; ours divides by tokens or questions."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2 * DOCS, 5, VOCAB, generator=generator, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(2, DOCS, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[BOS, 4, 5, 6, 2], [BOS, 7, 8, PAD, PAD] if ragged else [BOS, 7, 8, 9, 2]])
    theirs = kind(rag_config()).get_nll(logits.clone(), scores, targets, reduce_loss=True)

    labels = torch.cat((targets[:, 1:], torch.full((2, 1), PAD)), dim=1)
    labels = labels.masked_fill(labels == PAD, NO_LABEL)[:, None].expand(2, DOCS, 5)
    # The head is the identity, so that the hidden states are the logits.
    answers = answer_log_probs(logits.view(2, DOCS, 5, VOCAB), torch.eye(VOCAB, dtype=torch.float64), labels)
    ours = retriever_loss(
        name,
        scores,
        answers.token_log_probs_BKL,
        answers.answer_mask_BKL,
        student_temperature=1.0,
        teacher_temperature=1.0,
        denominator=1.0,
    ).loss
    torch.testing.assert_close(ours, theirs)
    (wanted,) = torch.autograd.grad(theirs, scores, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ours, scores, retain_graph=True)[0], wanted)
    if name.startswith("rag"):
        (wanted,) = torch.autograd.grad(theirs, logits)
        torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], wanted)


def atlas_kldiv(scores: Tensor, gold_scores: Tensor) -> Tensor:
    """Atlas's distillation loss from its definition: temperatures of 0.01 and `nn.KLDivLoss()`.

    The default reduction 'mean' divides by B times K, where the KL divergence has B.
    """
    gold = torch.softmax(gold_scores / 0.01, dim=-1)
    return nn.KLDivLoss()(torch.log_softmax(scores / 0.01, dim=-1), gold)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss by both the batch size")
@pytest.mark.parametrize("name", ["pdist", "loop"])
def test_equals_atlas_times_the_number_of_passages(name: RetrieverLossName):
    """The teacher ranks by likelihood given a passage, or by the loss without it."""
    drawn = draw(questions=4, passages=5)
    scores = (torch.randn(4, 5, dtype=torch.float64) * 0.02).requires_grad_()
    log_probs = drawn.token_log_probs_BKL.detach() * 0.02
    ell = mean_answer_log_probs(log_probs, drawn.answer_mask_BL)
    full = torch.full((4,), -0.01, dtype=torch.float64) if name == "loop" else None
    theirs = atlas_kldiv(scores, ell if name == "pdist" else -ell)
    ours = retriever_loss(
        name,
        scores,
        log_probs,
        drawn.answer_mask_BL,
        student_temperature=0.01,
        teacher_temperature=0.01,
        full_log_prob_B=full,
        min_spread_nats=1e-9,
    ).loss
    torch.testing.assert_close(ours / 5, theirs)
    (wanted,) = torch.autograd.grad(theirs, scores)
    torch.testing.assert_close(torch.autograd.grad(ours, scores)[0] / 5, wanted)


def test_equals_atlas_emdr_per_token():
    """Minus logsumexp(log p_R + log p_LM), summed over tokens and divided by their number."""
    drawn = draw()
    mask = drawn.answer_mask_BL
    log_p = torch.log_softmax(drawn.scores_BK / 0.01, dim=-1)
    both = log_p[:, :, None] + drawn.token_log_probs_BKL.detach()
    theirs = -(torch.logsumexp(both, dim=1) * mask).sum() / mask.sum()
    ours = retriever_loss(
        "emdr2_token",
        drawn.scores_BK,
        drawn.token_log_probs_BKL,
        mask,
        student_temperature=0.01,
        teacher_temperature=0.01,
    ).loss
    torch.testing.assert_close(ours, theirs)


def test_equals_realms_loss_and_retrieval_utility():
    """REALM's model_fn with candidate 0 as the null document and masked tokens as the answer."""
    drawn = draw()
    mask, gold = drawn.answer_mask_BL.double(), drawn.token_log_probs_BKL.detach()
    joint = torch.log_softmax(drawn.scores_BK.detach(), dim=-1)[:, :, None] + gold
    marginal = torch.logsumexp(joint, dim=1)
    loss = -(marginal * mask).sum() / mask.sum()
    utility = ((marginal - gold[:, 0]) * mask).sum() / mask.sum()

    ours = retriever_loss(
        "rag_token",
        drawn.scores_BK[:, 1:],
        gold[:, [1, 2, 3, 0]],
        drawn.answer_mask_BL,
        student_temperature=1.0,
        teacher_temperature=1.0,
        null_scores_B=drawn.scores_BK[:, 0],
    )
    torch.testing.assert_close(ours.loss.detach(), loss)
    torch.testing.assert_close(ours.metrics["retrieval_utility_nats"], utility)


def test_retrieval_utility_is_zero_without_answer_tokens():
    log_p = passage_log_probs(torch.zeros(2, 3), temperature=1.0)
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert retrieval_utility(log_p, torch.randn(2, 3, 4), torch.randn(2, 4), none) == 0
