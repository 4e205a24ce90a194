"""Starting weights that can already copy: "what followed this token the last time?".

Reading is finding and copying. A small model spends most of a small budget on discovering the attention
patterns that copying needs (Olsson et al. 2022, https://arxiv.org/abs/2209.11895), so the first weights
contain them, in the spirit of mimetic initialisation (Trockman & Kolter 2023,
https://arxiv.org/abs/2305.09828). Every weight is trained afterwards as usual, and nothing about any text is
put in: the embeddings are random.

The residual stream at the start (E: width of a head): dimension 0 is the same for every token; the next 2E
hold the previous token; the next 2E repeat the current one; the rest are the embedding, which the output
reads. The last layer takes the current token out of it again, since tied embeddings would repeat it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from training.pretraining.model import Attention, Layer, MiniModel, branch_mask

PREVIOUS_LAYER, REPEAT_LAYER = 0, 1
"""Layers whose first two key-value heads write the previous token, and the current one once more."""
COPY_LAYER = 2
"""Layer whose first two key-value heads are induction heads."""
CONSTANT = 0.5
"""Value of dimension 0 of every embedding."""
WRITTEN = 0.5
"""Size of what heads write, beside embeddings of about 0.2."""
COPIED = 1.0
"""Size of what induction heads write."""
SHARPNESS = 2.0
"""Gain of query and key norms of the induction layer."""
CONFIDENCE = 4.0
"""Factor of the last norm: large enough that a found continuation outweighs the vocabulary."""
NUM_FAST_PAIRS = 3
"""Rotary pairs fast enough to tell one position from the next."""


class _Circuit:
    """Writes heads into the attention of a fresh model."""

    def __init__(self, model: MiniModel) -> None:
        self.config = model.config
        self.model = model
        self.width, self.half = model.config.head_dim, model.config.head_dim // 2
        self.content = 4 * self.width + 1
        self.frequencies = model.config.rope_theta ** (-2 * torch.arange(self.half).float() / self.width)
        # Content is matched over hundreds of positions, so it must lie where the rotation is slow.
        slow = (self.frequencies < 0.02).float()
        self.slow = torch.cat((slow, slow))[:, None]

    def attention(self, layer: int) -> Attention:
        """Return the attention block of a layer."""
        return cast(Layer, self.model.model.layers[layer]).self_attn

    def dims(self, start: int) -> Tensor:
        """Return the `float32[E, D]` reader of the dimensions from `start` on, at most E of them."""
        reader = torch.zeros(self.width, self.config.hidden_dim)
        count = min(self.width, self.config.hidden_dim - start)
        reader[torch.arange(count), start + torch.arange(count)] = 1.0
        return reader

    def previous(self, head: int) -> Tensor:
        """Return the reader of what a previous-token head writes."""
        return self.dims(1 + head * self.width)

    def repeated(self, head: int) -> Tensor:
        """Return the reader of the repeated current token."""
        return self.dims(1 + (2 + head) * self.width)

    def token(self, block: int) -> Tensor:
        """Return the reader of one block of the embedding."""
        return self.dims(self.content + block * self.width)

    def at_distance(self, distance: int) -> tuple[Tensor, Tensor]:
        """Return query and key weights that look one distance back, whatever the tokens are."""
        fast = torch.arange(NUM_FAST_PAIRS)
        query = torch.zeros(self.width, self.config.hidden_dim)
        key = torch.zeros(self.width, self.config.hidden_dim)
        angles = -distance * self.frequencies[fast]
        query[fast, 0], query[fast + self.half, 0] = torch.cos(angles), torch.sin(angles)
        key[fast, 0] = 1.0
        return query, key

    def sharpen(self, layer: int) -> None:
        """Let the heads of a layer tell neighbouring positions apart."""
        fast = torch.arange(NUM_FAST_PAIRS)
        for norm in (self.attention(layer).q_norm, self.attention(layer).k_norm):
            norm.weight[torch.cat((fast, fast + self.half))] = 2.0

    def set_head(
        self, layer: int, head: int, scores: tuple[Tensor, Tensor], value: Tensor, output: Tensor
    ) -> None:
        """Write one key-value head and the first query head that uses it."""
        attention = self.attention(layer)
        first = head * (self.config.num_heads // self.config.num_kv_heads) * self.width
        q_rows, kv_rows = slice(first, first + self.width), slice(head * self.width, (head + 1) * self.width)
        attention.q_proj.weight[q_rows], attention.k_proj.weight[kv_rows] = scores
        attention.v_proj.weight[kv_rows] = value
        attention.o_proj.weight[:, q_rows] = output.T


@torch.no_grad()
def install_induction(model: MiniModel, generator: torch.Generator) -> None:
    """Overwrite some starting weights of `model` with the heads described above.

    Args:
        model: Freshly initialised; at least four layers, four key-value heads and `hidden_dim` of 8E.
        generator: Source of the random embeddings.
    """
    circuit = _Circuit(model)
    last = model.config.num_layers - 1
    embed = model.model.embed_tokens.weight
    embed.normal_(0.0, model.config.embed_std, generator=generator)
    embed[:, 0] = CONSTANT
    embed[:, 1 : circuit.content] = 0.0
    for layer in (PREVIOUS_LAYER, REPEAT_LAYER, last):
        circuit.sharpen(layer)
    for head in range(2):
        circuit.set_head(
            PREVIOUS_LAYER,
            head,
            circuit.at_distance(1),
            circuit.token(head),
            WRITTEN * circuit.previous(head),
        )
        circuit.set_head(
            REPEAT_LAYER, head, circuit.at_distance(0), circuit.token(head), WRITTEN * circuit.repeated(head)
        )
        scores = (circuit.slow * circuit.repeated(head), circuit.slow * circuit.previous(head))
        circuit.set_head(COPY_LAYER, head, scores, circuit.token(head), COPIED * circuit.token(head))
    for norm in (circuit.attention(COPY_LAYER).q_norm, circuit.attention(COPY_LAYER).k_norm):
        norm.weight.fill_(SHARPNESS)
    _remove_current_token(circuit, last)
    model.model.norm.weight.mul_(CONFIDENCE)


def _remove_current_token(circuit: _Circuit, layer: int) -> None:
    """Make the last layer subtract the current token, by its repetition where copies are written."""
    ids = torch.arange(0, circuit.config.vocab_size, max(1, circuit.config.vocab_size // 64))
    size, repeated = _sizes(circuit, ids, layer)
    for block in range(4):
        source = circuit.repeated(block) if block < 2 else circuit.token(block)
        removed = size / repeated if block < 2 else size
        circuit.set_head(layer, block, circuit.at_distance(0), source, -removed * circuit.token(block))


def _sizes(circuit: _Circuit, ids: Tensor, layer: int) -> tuple[float, float]:
    """Return the stream's root mean square before `layer`, and how large a repetition is beside its token."""
    model, zeros = circuit.model, torch.zeros_like(ids)[None]
    stream = model.model.embed_tokens(ids[None])
    tokens = stream[0]
    cos, sin = model.rotary(torch.arange(len(ids))[None])
    for index in range(layer):
        stream = model.model.layers[index](stream, cos, sin, branch_mask(zeros, zeros))
    rms = float(stream.square().mean(-1).sqrt().mean())
    repeated = stream[0] @ circuit.repeated(0).T
    return rms, float((repeated.norm(dim=-1) / (tokens @ circuit.token(0).T).norm(dim=-1)).mean())
