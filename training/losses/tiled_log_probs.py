"""Log-probabilities of answer tokens, without logits of a whole batch in memory.

A vocabulary of 150,000 entries makes one float32 row of logits 600 kB: 8 questions, 8 passages and 32 answer
tokens would hold 1.2 GB of logits and as much again for their gradient. Here logits exist for one tile of
tokens at a time, forwards and backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.losses.shapes import check_positive, check_shapes

NO_LABEL = -100
"""Label of a position whose next token is not learnt, as in transformers and PyTorch."""
TILE_BYTES = 64 * 2**20
"""Size of one tile of logits; about three of that size live at the same time in the backward pass."""


@dataclass(frozen=True, slots=True)
class AnswerLogProbs:
    """Answer tokens of every (question, passage) row, moved to the front."""

    token_log_probs_BKL: Tensor
    """Log p_LM(a_t | question, passage, a_<t) in float32 (float64 for float64 weights), 0 where the mask is
    false."""
    answer_mask_BKL: Tensor
    """True for the tokens that are there; L is the longest answer of the batch, at least 1."""


def answer_log_probs(
    hidden_BKTD: Tensor, lm_head_weight_VD: Tensor, labels_BKT: Tensor, *, tile_bytes: int = TILE_BYTES
) -> AnswerLogProbs:
    """Return the log-probabilities of the labelled tokens of every row, the t-th answer token in column t.

    Rows of one question hold passages of different lengths, so the same answer stands at different positions;
    marginal losses need it in the same column.

    Args:
        hidden_BKTD: Last hidden states, after the final norm.
        lm_head_weight_VD: The output matrix, a plain tensor. Under FSDP2 call this inside the forward of the
            module that owns it, where it is whole. Heads with a bias or soft-capped logits are not covered.
        labels_BKT: The token that follows each position, `NO_LABEL` where it is not part of the answer.
        tile_bytes: Largest tile of logits.

    Raises:
        ValueError: Shapes disagree, or a label is outside the vocabulary.
        ConfigError: `tile_bytes` is not above 0.
    """
    sizes = check_shapes(hidden_BKTD=hidden_BKTD, lm_head_weight_VD=lm_head_weight_VD, labels_BKT=labels_BKT)
    num_questions, num_passages = sizes["B"], sizes["K"]
    wanted_NT = labels_BKT.flatten(0, 1) != NO_LABEL
    rows, positions = wanted_NT.nonzero(as_tuple=True)
    num_labels_N = wanted_NT.sum(dim=1)
    num_columns = max(1, int(num_labels_N.max())) if num_labels_N.numel() else 1
    columns = (wanted_NT.cumsum(dim=1) - 1)[rows, positions]
    log_probs = label_log_probs(
        hidden_BKTD.flatten(0, 1)[rows, positions],
        lm_head_weight_VD,
        labels_BKT.flatten(0, 1)[rows, positions],
        tile_bytes=tile_bytes,
    )
    token_log_probs_NL = log_probs.new_zeros(num_questions * num_passages, num_columns)
    token_log_probs_NL = token_log_probs_NL.index_put((rows, columns), log_probs)
    mask_NL = torch.arange(num_columns, device=labels_BKT.device) < num_labels_N[:, None]
    shape = (num_questions, num_passages, num_columns)
    return AnswerLogProbs(token_log_probs_NL.view(shape), mask_NL.view(shape))


def label_log_probs(
    hidden_ND: Tensor, lm_head_weight_VD: Tensor, labels_N: Tensor, *, tile_bytes: int = TILE_BYTES
) -> Tensor:
    """Return log_softmax(hidden @ weight.T) at the labels, tile by tile, recomputed in the backward pass.

    Equal to the plain expression in float32 (or float64) up to the order of sums, gradients included.
    Half-precision inputs keep exact products: on a GPU they are multiplied as they are with float32 results,
    elsewhere converted. Costs one more product with the head than keeping the logits.

    Args:
        hidden_ND: Hidden states, any floating dtype.
        lm_head_weight_VD: The output matrix, any floating dtype.
        labels_N: int64 token ids in [0, V).
        tile_bytes: Largest tile of logits; a tile holds at least one token.

    Returns:
        float32 [N], or float64 where an input is.

    Raises:
        ValueError: Shapes disagree, or a label is outside the vocabulary.
        ConfigError: `tile_bytes` is not above 0.

    Source: tiling as in Cut Your Losses in Large-Vocabulary Language Models,
    https://arxiv.org/abs/2411.09009.
    """
    sizes = check_shapes(hidden_ND=hidden_ND, lm_head_weight_VD=lm_head_weight_VD, labels_N=labels_N)
    check_positive("tile_bytes", tile_bytes)
    if sizes["N"]:
        low, high = (int(value) for value in labels_N.aminmax())
        if low < 0 or high >= sizes["V"]:
            raise ValueError(
                f"labels_N spans {low}..{high}, but the head has {sizes['V']} tokens: use this model's "
                f"tokenizer, and leave out positions without a label"
            )
    wide = torch.float64 if torch.float64 in (hidden_ND.dtype, lm_head_weight_VD.dtype) else torch.float32
    tile_tokens = max(1, tile_bytes // (wide.itemsize * sizes["V"]))
    return _LabelLogProbs.apply(hidden_ND, lm_head_weight_VD, labels_N, tile_tokens, wide)


class _LabelLogProbs(torch.autograd.Function):
    """The tiled forward and backward passes of `label_log_probs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        tile_tokens: int,
        wide: torch.dtype,
    ) -> Tensor:
        """Return the log-probabilities; keeps the inputs and one normaliser a token."""
        log_probs_N = hidden_ND.new_empty(len(labels_N), dtype=wide)
        normalisers_N = torch.empty_like(log_probs_N)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            factor_VD = _factor(weight_VD, hidden_ND, wide)
            for tile in _tiles(len(labels_N), tile_tokens):
                logits_NV = _product(hidden_ND[tile].to(factor_VD.dtype), factor_VD.T, wide)
                normalisers_N[tile] = logits_NV.logsumexp(dim=1)
                chosen_N = logits_NV.gather(1, labels_N[tile, None])[:, 0]
                log_probs_N[tile] = chosen_N - normalisers_N[tile]
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N, normalisers_N)
        ctx.tile_tokens, ctx.wide = tile_tokens, wide
        return log_probs_N

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the name of `ctx`
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states and weight: d logits = grad (onehot - softmax)."""
        hidden_ND, weight_VD, labels_N, normalisers_N = ctx.saved_tensors
        (grads_N,), wide = grads, ctx.wide
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            factor_VD = _factor(weight_VD, hidden_ND, wide)
            for tile in _tiles(len(labels_N), ctx.tile_tokens):
                rows_ND = hidden_ND[tile].to(factor_VD.dtype)
                logits_NV = _product(rows_ND, factor_VD.T, wide)
                grads_NV = logits_NV.sub_(normalisers_N[tile, None]).exp_().mul_(-grads_N[tile, None])
                grads_NV.scatter_add_(1, labels_N[tile, None], grads_N[tile, None])
                narrow_NV = grads_NV.to(factor_VD.dtype)
                if grad_hidden_ND is not None:
                    grad_hidden_ND[tile] = _product(narrow_NV, factor_VD, wide).to(hidden_ND.dtype)
                if grad_weight_VD is not None:
                    grad_weight_VD += _product(narrow_NV.T, rows_ND, wide)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None


def _tiles(num_tokens: int, tile_tokens: int) -> list[slice]:
    return [slice(start, start + tile_tokens) for start in range(0, num_tokens, tile_tokens)]


def _factor(weight_VD: Tensor, hidden_ND: Tensor, wide: torch.dtype) -> Tensor:
    """Return the weight in the dtype of the products: its own where a GPU can return float32 from it."""
    halves = (torch.bfloat16, torch.float16)
    if weight_VD.is_cuda and weight_VD.dtype == hidden_ND.dtype and weight_VD.dtype in halves:
        return weight_VD
    return weight_VD.to(wide)


def _product(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """Return the matrix product in the wide dtype."""
    return left @ right if left.dtype == wide else torch.mm(left, right, out_dtype=wide)
