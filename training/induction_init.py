"""Starting weights that already hold an induction circuit: "what followed this token the last time?".

Reading is finding and copying. A small model spends most of a small budget on discovering the two attention
patterns that copying needs (Olsson et al. 2022, https://arxiv.org/abs/2209.11895), so the first weights
contain them, in the spirit of mimetic initialisation (Trockman & Kolter 2023,
https://arxiv.org/abs/2305.09828). Every weight is trained afterwards as usual, and nothing about any text is
put in: the embeddings are random.

Dimensions of the residual stream at the start: 0 is the same for every token; 1..2E hold what the
previous-token heads write; the rest hold the token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.model import MiniModel

PREVIOUS_LAYER = 0
"""Layer whose first two key-value heads look at the previous token."""
CONSTANT = 0.5
"""Value of dimension 0 of every embedding."""
WRITTEN = 0.5
"""Size of what the previous-token heads write, beside embeddings of about 0.2."""
SHARPNESS = 1.5
"""Gain of query and key norms in the layers of the circuit."""
NUM_FAST_PAIRS = 3
"""Rotary pairs fast enough to tell one position from the next."""


def _orthonormal_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    matrix = torch.randn(columns, rows, generator=generator)
    return torch.linalg.qr(matrix).Q.T.contiguous()


@torch.no_grad()
def install_induction(model: MiniModel, generator: torch.Generator) -> None:
    """Overwrite some starting weights of `model` with previous-token heads and induction heads.

    Args:
        model: Freshly initialised; at least three layers, and two key-value heads.
        generator: Source of the random subspaces.
    """
    config = model.config
    width, hidden = config.head_dim, config.hidden_dim
    groups = config.num_heads // config.num_kv_heads
    content = slice(2 * width + 1, hidden)
    embed = model.model.embed_tokens.weight
    embed[:, 0] = CONSTANT
    embed[:, 1 : 2 * width + 1] = 0.0

    previous = model.model.layers[PREVIOUS_LAYER].self_attn
    half = width // 2
    frequencies = config.rope_theta ** (-2 * torch.arange(half, dtype=torch.float32) / width)
    fast = torch.arange(NUM_FAST_PAIRS)
    for dims in (fast, fast + half):
        previous.q_norm.weight[dims] = 2.0
        previous.k_norm.weight[dims] = 2.0
    read: list[Tensor] = []
    for head in range(2):
        q_rows = slice(head * groups * width, (head * groups + 1) * width)
        kv_rows = slice(head * width, (head + 1) * width)
        query, key = torch.zeros(width, hidden), torch.zeros(width, hidden)
        # Rotations cancel where the key is exactly one position back.
        query[fast, 0], query[fast + half, 0] = torch.cos(-frequencies[fast]), torch.sin(-frequencies[fast])
        key[fast, 0] = 1.0
        previous.q_proj.weight[q_rows] = query
        previous.k_proj.weight[kv_rows] = key
        value = torch.zeros(width, hidden)
        value[:, content] = _orthonormal_rows(width, hidden - 2 * width - 1, generator)
        previous.v_proj.weight[kv_rows] = value
        output = torch.zeros(hidden, width)
        output[1 + head * width : 1 + (head + 1) * width] = WRITTEN * torch.eye(width)
        previous.o_proj.weight[:, q_rows] = output
        read.append(value)

    # Content is matched over hundreds of positions, so it must lie where the rotation is slow.
    slow = torch.tensor([pair for pair in range(half) if frequencies[pair] < 0.02])
    slow = torch.cat((slow, slow + half))
    keep = torch.zeros(width, 1)
    keep[slow] = 1.0
    for layer_index in (2, 3)[: max(1, config.num_layers - 2)]:
        attention = model.model.layers[layer_index].self_attn
        attention.q_norm.weight.fill_(SHARPNESS)
        attention.k_norm.weight.fill_(SHARPNESS)
        for head in range(2):
            q_rows = slice(head * groups * width, (head * groups + 1) * width)
            kv_rows = slice(head * width, (head + 1) * width)
            key = torch.zeros(width, hidden)
            key[:, 1 + head * width : 1 + (head + 1) * width] = torch.eye(width)
            attention.q_proj.weight[q_rows] = keep * read[head]
            attention.k_proj.weight[kv_rows] = keep * key
            copy = torch.zeros(width, hidden)
            copy[:, content] = _orthonormal_rows(width, hidden - 2 * width - 1, generator)
            attention.v_proj.weight[kv_rows] = copy
            attention.o_proj.weight[:, q_rows] = WRITTEN * copy.T
