"""Late interaction: how well a query's tokens are met by a passage's, anywhere and close together.

anywhere = sum over query tokens of weight * the largest cosine with any token of the passage
close = the largest, over windows of 32 tokens, of the same within the window alone
score = (anywhere + close) / 2
weight of a token = 1 / its mean cosine with all tokens of the query, scaled to a sum of 1

The first is ColBERT's MaxSim as a weighted mean, so that a score means the same for short and long queries.
The second rewards a passage that answers in one place. The weights do what inverse document frequency does,
without statistics: in an embedder trained on means, function words and punctuation take on what the whole
query is about, and so tell two passages on that subject apart least. Query tokens stay float and passages
are codes: what compression costs is paid on one side only.

Source: Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late
Interaction over BERT", SIGIR 2020, equation 3; here over the token vectors of an ordinary embedder.

Shapes: T query tokens, M tokens of all passages, B blocks of all passages, P passages, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.ranking.token_codes import decode_all
from retrieval.versions import TokenCodec

_BLOCK = 16
"""Tokens of half a window: windows overlap by half, so what lies within 16 tokens is always in one."""


def token_weights(query_TD: np.ndarray) -> np.ndarray:
    """Return float32[num_query_tokens], positive, of sum 1: the further a token from the rest, the more.

    Args:
        query_TD: float32[num_query_tokens, dim], unit length, at least one token.
    """
    # A token that has nothing in common with the others has its own share of the mean left; opposed ones too.
    weights_T = 1 / np.maximum(query_TD @ query_TD.mean(axis=0), 1 / len(query_TD))
    return weights_T / weights_T.sum()


def maxsim(query_TD: np.ndarray, codes: Sequence[bytes], codec: TokenCodec) -> np.ndarray:
    """Return float32[num_passages], in about [-1, 1]; 0 for a passage without tokens.

    Args:
        query_TD: float32[num_query_tokens, dim], unit length.
        codes: Token codes of each passage.
        codec: How they were made.

    Raises:
        IndexUnavailable: Codes of another codec or dimension.
    """
    scores_P = np.zeros(len(codes), np.float32)
    num_query_tokens, dim = query_TD.shape
    if not codes or not num_query_tokens:
        return scores_P
    tokens_MD, all_counts = decode_all(codes, codec, dim)
    filled = np.flatnonzero(all_counts)
    if not len(filled):
        return scores_P
    counts_P = all_counts[filled]
    num_blocks_P = -(-counts_P // _BLOCK)
    first_block_P = np.cumsum(num_blocks_P) - num_blocks_P
    passage_of_B = np.repeat(np.arange(len(filled)), num_blocks_P)
    place_in_passage_B = np.arange(len(passage_of_B)) - first_block_P[passage_of_B]
    starts_B = (np.cumsum(counts_P) - counts_P)[passage_of_B] + place_in_passage_B * _BLOCK
    best_TB = np.maximum.reduceat(query_TD @ tokens_MD.T, starts_B, axis=1)
    weights_T = token_weights(query_TD)
    anywhere_P = weights_T @ np.maximum.reduceat(best_TB, first_block_P, axis=1)
    # A window is a block and the next of the same passage; a passage's last block is in the one before it.
    window_TB = best_TB.copy()
    same_passage = passage_of_B[1:] == passage_of_B[:-1]
    window_TB[:, :-1][:, same_passage] = np.maximum(best_TB[:, :-1], best_TB[:, 1:])[:, same_passage]
    close_P = np.maximum.reduceat(weights_T @ window_TB, first_block_P)
    scores_P[filled] = (anywhere_P + close_P) / 2
    return scores_P
