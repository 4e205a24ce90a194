"""Contrastive training of the retriever: mined and in-batch negatives, over ranks, with GradCache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim, dot_score
from torch import Tensor, nn

from training.errors import ConfigError
from training.losses.gather import gather_rows, rank_and_world
from training.losses.output import LossOutput
from training.losses.shapes import check_positive, check_shapes, widen

NO_PASSAGE = -1
"""Passage id of a slot that is padding."""


def contrastive_loss(
    queries_BD: Tensor,
    passages_BPD: Tensor,
    *,
    temperature: float = 0.05,
    similarity: Literal["cosine", "dot"] = "cosine",
    passage_ids_BP: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> LossOutput:
    """InfoNCE of each question's positive against all other passages of the batch and of all ranks.

        loss = - 1/B sum_i log( exp(s(q_i, d_i0) / tau) / sum_c exp(s(q_i, d_c) / tau) )

    where c runs over the R B P passages that are neither padding nor another copy of the positive. Computed
    by sentence-transformers' `MultipleNegativesRankingLoss` (scale = 1 / tau). With several ranks passages
    are gathered with gradient, so averaging gradients over ranks equals one rank with the whole batch; every
    rank must bring the same B and P.

    Args:
        queries_BD: Embeddings of the questions, any floating dtype.
        passages_BPD: The positive in slot 0, mined negatives after it.
        temperature: tau; cosines want 0.01 to 0.1, inner products of unnormalised vectors about 1.
        similarity: `cosine` normalises, `dot` takes vectors as they are.
        passage_ids_BP: int64 ids. A passage with the id of a question's positive is no negative for it, and
            slots with `NO_PASSAGE` are no negatives for anyone. Without ids every passage counts, duplicates
            too.
        group: Ranks to gather over, the default group when None.

    Returns:
        The loss of this rank's questions; metric `negatives_per_question`.

    Raises:
        ValueError: Shapes disagree, or a positive is missing.
        ConfigError: The temperature is not above 0.

    Recommendations: before the joint loop, and beside it as a stabiliser. Batches of hundreds, by `GradCache`
    where memory ends; always with ids, since popular passages answer several questions of a batch.

    Source: Henderson et al., https://arxiv.org/abs/1705.00652, section 4.4; DPR,
    https://arxiv.org/abs/2004.04906.
    """
    check_shapes(queries_BD=queries_BD, passages_BPD=passages_BPD, passage_ids_BP=passage_ids_BP)
    check_positive("temperature", temperature)
    rank, _ = rank_and_world(group)
    # This rank's passages first: the positive of question i is then candidate i on every rank.
    candidates_NPD = _own_first(gather_rows(widen(passages_BPD), group), rank, len(queries_BD))
    num_candidates = candidates_NPD.shape[0] * candidates_NPD.shape[1]
    blocked_BC = queries_BD.new_zeros(len(queries_BD), num_candidates, dtype=torch.bool)
    if passage_ids_BP is not None:
        blocked_BC = _blocked(
            passage_ids_BP, _own_first(gather_rows(passage_ids_BP, group), rank, len(queries_BD))
        )
    score = cos_sim if similarity == "cosine" else dot_score

    def masked_score(left_BD: Tensor, right_CD: Tensor) -> Tensor:
        return score(left_BD, right_CD).masked_fill(blocked_BC, -torch.inf)

    ranking = MultipleNegativesRankingLoss(
        nn.Identity(),  # pyright: ignore[reportArgumentType]  # only its `forward` would use a model
        scale=1.0 / temperature,
        similarity_fct=masked_score,
    )
    with torch.autocast(queries_BD.device.type, enabled=False):
        embeddings = [widen(queries_BD), *candidates_NPD.unbind(dim=1)]
        loss = ranking.compute_loss_from_embeddings(embeddings, queries_BD.new_empty(0))
    num_negatives = num_candidates - 1 - blocked_BC.sum(dim=1).float().mean()
    return LossOutput(loss, {"negatives_per_question": num_negatives})


class GradCache(CachedLossMixin, nn.Module):
    """A loss over the embeddings of a large batch, in the memory of a small one.

    The batch is embedded in mini-batches without a graph, the loss is differentiated down to the embeddings,
    and in the backward pass every mini-batch is embedded again, with the random state of its first pass, to
    carry its part of the gradient into the encoder: equal to the plain gradient, for one more forward pass.
    This is the machinery of sentence-transformers' cached losses around any function of embeddings:

        cache = GradCache(encoder, lambda columns: contrastive_loss(columns[0], columns[1][:, None]).loss)
        cache([query_features, passage_features]).backward()

    The gradient flows in `backward()` alone, not through `torch.autograd.grad`.

    Recommendations: where the batch does not fit; else the plain loss is faster. The matrix of all
    similarities is still held whole.

    Source: GradCache, https://arxiv.org/abs/2101.06983.
    """

    def __init__(
        self,
        encoder: nn.Module,
        embedding_loss: Callable[[list[Tensor]], Tensor],
        *,
        mini_batch_rows: int = 32,
        mini_batch_tokens: int | None = None,
    ) -> None:
        """Wrap an encoder and a loss.

        Args:
            encoder: Takes a mapping of features and returns one with `sentence_embedding`, [rows, D], as
                sentence-transformers models do; DDP around it is understood. Two towers: let it choose by a
                feature that is not a tensor.
            embedding_loss: Scalar loss of one tensor of embeddings a column; must use every column.
            mini_batch_rows: Rows embedded at a time.
            mini_batch_tokens: Tokens embedded at a time instead, for rows of uneven length.

        Raises:
            ConfigError: A size is not above 0, or the encoder's inputs cannot be cut into mini-batches.
        """
        super().__init__()
        check_positive("mini_batch_rows", mini_batch_rows)
        if mini_batch_tokens is not None:
            check_positive("mini_batch_tokens", mini_batch_tokens)
        if isinstance(encoder, SentenceTransformer) and has_static_embedding_input(encoder):
            raise ConfigError("GradCache cannot cut the input of a StaticEmbedding: use the loss without it")
        self.model = encoder
        self.embedding_loss = embedding_loss
        self.mini_batch_size = mini_batch_rows
        self.mini_batch_num_tokens = mini_batch_tokens

    def forward(self, columns: Sequence[dict[str, Any]]) -> Tensor:
        """Return the loss; its `backward` embeds again.

        Args:
            columns: Features of the questions, of the passages and so on, tokenized and padded.
        """
        return self.forward_cached(columns)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of embedded mini-batches, differentiated down to them when asked."""
        loss = self.embedding_loss([torch.cat(column) for column in reps])
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


def _own_first(gathered_N: Tensor, rank: int, num_rows: int) -> Tensor:
    """Return the rows of all ranks, this rank's before the others'."""
    return gathered_N.roll(-rank * num_rows, dims=0)


def _blocked(passage_ids_BP: Tensor, candidate_ids_NP: Tensor) -> Tensor:
    """Return which candidates are no negatives of which question, [B, N * P] in the order of columns."""
    positive_ids_B = passage_ids_BP[:, 0]
    if (positive_ids_B == NO_PASSAGE).any():
        row = int((positive_ids_B == NO_PASSAGE).nonzero()[0])
        raise ValueError(
            f"passage_ids_BP[{row}, 0] is padding: slot 0 holds the positive; leave the question out"
        )
    ids_C = candidate_ids_NP.T.reshape(-1)
    blocked_BC = (ids_C == positive_ids_B[:, None]) | (ids_C == NO_PASSAGE)
    own = torch.arange(len(positive_ids_B), device=ids_C.device)
    blocked_BC[own, own] = False
    return blocked_BC
