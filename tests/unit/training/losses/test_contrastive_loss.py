from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from loss_ranks import (
    QUESTIONS,
    WIDTH,
    batch,
    cached_loss,
    encoder,
    gradients,
    likelihoods,
    on_two_ranks,
    plain_loss,
)
from scipy.special import logsumexp
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models
from torch import nn

from training.errors import ConfigError
from training.losses.contrastive import NO_PASSAGE, GradCache, contrastive_loss
from training.losses.gather import gather_rows
from training.losses.temperature import EntropyControlledTemperature


def embedded(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn(4, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    passages = torch.randn(4, 3, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return queries, passages


def oracle(queries, passages, ids, tau: float, *, cosine: bool) -> float:
    queries, passages = queries.detach().numpy(), passages.detach().numpy()
    if cosine:
        queries = queries / np.linalg.norm(queries, axis=-1, keepdims=True)
        passages = passages / np.linalg.norm(passages, axis=-1, keepdims=True)
    total = 0.0
    for i, query in enumerate(queries):
        kept = [
            query @ passages[n, p] / tau
            for n in range(len(passages))
            for p in range(passages.shape[1])
            if (n, p) == (i, 0) or ids[n][p] not in (NO_PASSAGE, ids[i][0])
        ]
        total -= query @ passages[i, 0] / tau - logsumexp(kept)
    return total / len(queries)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_equals_its_equation_without_copies_of_the_positive_and_padding(similarity):
    queries, passages = embedded()
    ids = torch.arange(12).view(4, 3)
    ids[3, 0], ids[2, 1], ids[0, 2], ids[1, 2] = ids[0, 0], ids[1, 0], NO_PASSAGE, NO_PASSAGE
    output = contrastive_loss(queries, passages, temperature=0.3, similarity=similarity, passage_ids_BP=ids)
    wanted = oracle(queries, passages, ids.tolist(), 0.3, cosine=similarity == "cosine")
    assert output.loss.item() == pytest.approx(wanted, rel=1e-12)
    # Eleven others, two of them padding; questions 0, 1 and 3 also meet one copy of their positive.
    assert output.metrics["negatives_per_question"].item() == pytest.approx(9 - 3 / 4)


def test_gradients_agree_with_finite_differences():
    queries, passages = embedded()
    ids = torch.arange(12).view(4, 3)
    ids[3, 0], ids[0, 2] = ids[0, 0], NO_PASSAGE
    assert torch.autograd.gradcheck(
        lambda q, p: contrastive_loss(q, p, temperature=0.5, passage_ids_BP=ids).loss, (queries, passages)
    )


def test_equals_sentence_transformers_when_all_passages_count():
    queries, passages = embedded()
    theirs = MultipleNegativesRankingLoss(nn.Identity(), scale=1 / 0.05).compute_loss_from_embeddings(
        [queries, *passages.unbind(1)], torch.empty(0)
    )
    torch.testing.assert_close(contrastive_loss(queries, passages).loss, theirs)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_embeddings_are_compared_in_float32(autocast: bool):
    queries, passages = embedded(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = contrastive_loss(queries, passages).loss
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, contrastive_loss(queries.float(), passages.float()).loss, rtol=1e-6, atol=0
    )


def test_a_question_without_its_positive_is_refused():
    queries, passages = embedded()
    ids = torch.arange(12).view(4, 3)
    ids[2, 0] = NO_PASSAGE
    with pytest.raises(ValueError, match=r"passage_ids_BP\[2, 0\] is padding"):
        contrastive_loss(queries, passages, passage_ids_BP=ids)
    with pytest.raises(ValueError, match="passages_BPD has shape"):
        contrastive_loss(queries, passages[:3])
    with pytest.raises(ConfigError, match="temperature=0"):
        contrastive_loss(queries, passages, temperature=0.0)


def test_grad_cache_equals_the_plain_gradient():
    plain, cached = encoder(), encoder()
    wanted, found = plain_loss(plain, *batch()), cached_loss(cached, *batch())
    (3 * wanted).backward()
    (3 * found).backward()
    torch.testing.assert_close(found.detach(), wanted.detach())
    torch.testing.assert_close(gradients(cached), gradients(plain))


def test_grad_cache_equals_sentence_transformers_with_dropout():
    """The same mini-batches and random states, so the same dropout masks, in both."""
    queries, passages, _ = batch()
    columns = [{"input_ids": values} for values in (queries, *passages.unbind(1))]
    ours, theirs = encoder(dropout=0.3), nn.Sequential(encoder(dropout=0.3))
    cache = GradCache(
        ours, lambda found: contrastive_loss(found[0], torch.stack(found[1:], dim=1)).loss, mini_batch_rows=3
    )
    torch.manual_seed(5)
    found = cache(columns)
    found.backward()
    torch.manual_seed(5)
    wanted = CachedMultipleNegativesRankingLoss(theirs, mini_batch_size=3)(columns, torch.empty(0))
    wanted.backward()
    torch.testing.assert_close(found.detach(), wanted.detach())
    torch.testing.assert_close(gradients(ours), gradients(theirs))


def test_grad_cache_carries_any_loss_of_embeddings():
    """Two columns of different length and a loss that is not contrastive."""
    queries, passages, _ = batch()
    features = [{"input_ids": queries}, {"input_ids": passages.flatten(0, 1)}]

    def loss(columns: list[torch.Tensor]) -> torch.Tensor:
        vectors = columns[1].view(QUESTIONS, -1, WIDTH)
        return torch.einsum("BD,BPD->BP", columns[0], vectors).logsumexp(dim=1).mean()

    plain, cached = encoder(), encoder()
    loss([plain(column)["sentence_embedding"] for column in features]).backward()
    GradCache(cached, loss, mini_batch_rows=5)(features).backward()
    torch.testing.assert_close(gradients(cached), gradients(plain))


def test_grad_cache_without_gradients_only_evaluates():
    with torch.no_grad():
        found = cached_loss(encoder(), *batch())
    assert not found.requires_grad
    assert math.isclose(found.item(), plain_loss(encoder(), *batch()).item(), rel_tol=1e-12)


def test_grad_cache_refuses_what_cannot_be_cut():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    with pytest.raises(ConfigError, match="StaticEmbedding"):
        GradCache(static, lambda columns: columns[0].sum())
    with pytest.raises(ConfigError, match="mini_batch_rows"):
        GradCache(encoder(), lambda columns: columns[0].sum(), mini_batch_rows=0)


def test_one_rank_gathers_nothing():
    rows = torch.zeros(2, 3)
    assert gather_rows(rows) is rows


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_two_ranks(tmp_path_factory.mktemp("ranks"))


def test_two_ranks_gather_rows_in_order_and_sum_their_gradients(two_ranks: list[dict[str, Any]]):
    for rank, found in enumerate(two_ranks):
        gathered, grad = found["gather"]
        assert gathered[:, 0].tolist() == [1, 1, 2, 2]
        assert grad[:, 0].tolist() == [3 * (2 * rank + 1), 3 * (2 * rank + 2)]


@pytest.mark.parametrize("way", ["plain", "cached"])
def test_two_ranks_give_the_gradients_of_one(two_ranks: list[dict[str, Any]], way: str):
    whole = encoder()
    loss = plain_loss(whole, *batch())
    loss.backward()
    torch.testing.assert_close(sum(found[way][1] for found in two_ranks) / 2, loss.detach())
    for found in two_ranks:
        torch.testing.assert_close(found[way][0], gradients(whole))


def test_two_ranks_hold_the_temperature_of_one(two_ranks: list[dict[str, Any]]):
    wanted = EntropyControlledTemperature().update(likelihoods())
    assert [found["temperature"] for found in two_ranks] == [wanted] * 2
