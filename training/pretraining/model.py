"""The Qwen3 architecture in plain PyTorch, with parameter names that are the Hugging Face ones.

Shapes: B rows, T tokens, D hidden, H query heads, K key-value heads, E head dimension, V vocabulary.
RoPE, grouped-query attention, per-head RMS norm on queries and keys, SwiGLU, tied embeddings.
Source: Qwen3 technical report, https://arxiv.org/abs/2505.09388; names as in transformers' `modeling_qwen3`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import ConfigError

VLLM_CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head dimensions that vLLM's CPU attention supports (vLLM 0.32)."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the model."""

    vocab_size: int = 8192
    """Entries of the embedding table, control tokens included."""
    hidden_dim: int = 256
    """Width of the residual stream."""
    num_layers: int = 6
    """Decoder layers."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads; divides the query heads."""
    head_dim: int = 32
    """Width of a head; one that vLLM supports."""
    mlp_dim: int = 768
    """Inner width of the SwiGLU block."""
    max_tokens: int = 2048
    """Longest context, in tokens."""
    rope_theta: float = 1_000_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMS norms."""
    embed_std: float = 0.2
    """Standard deviation of the embeddings at the start."""
    induction_init: bool = True
    """Start with the attention patterns of copying in place; see `training.pretraining.induction_init`."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built or served.

        Raises:
            ConfigError: Heads do not divide, or the head dimension is one vLLM cannot serve.
        """
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        fits = self.hidden_dim == 8 * self.head_dim
        if self.induction_init and not (fits and self.num_layers >= 4 and self.num_kv_heads >= 4):
            raise ConfigError(
                "induction_init needs 4 layers, 4 key-value heads, hidden_dim = 8 head_dim: or set it false"
            )
        if self.head_dim not in VLLM_CPU_HEAD_DIMS:
            raise ConfigError(
                f"head_dim={self.head_dim} cannot be served by vLLM: choose from {VLLM_CPU_HEAD_DIMS}"
            )


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        """Start with weights of one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input in the input's dtype."""
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


def rotate(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return queries or keys turned by their positions (half-split layout)."""
    first, second = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the four projections."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        inner, kv_inner = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_dim, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_dim, kv_inner, bias=False)
        self.v_proj = nn.Linear(config.hidden_dim, kv_inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Return the attention output, `[B, T, D]`."""
        rows, tokens, _ = x_BTD.shape
        q = self.q_norm(self.q_proj(x_BTD).view(rows, tokens, self.num_heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x_BTD).view(rows, tokens, self.num_kv_heads, self.head_dim)).transpose(
            1, 2
        )
        v = self.v_proj(x_BTD).view(rows, tokens, self.num_kv_heads, self.head_dim).transpose(1, 2)
        groups = self.num_heads // self.num_kv_heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v.repeat_interleave(groups, dim=1), attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(rows, tokens, -1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the three projections."""
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_dim, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `down(silu(gate(x)) * up(x))`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        """Build both blocks."""
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_dim, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the stack."""
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_dim, config.norm_eps)


class MiniModel(nn.Module):
    """A causal language model; `state_dict()` is a Qwen3ForCausalLM checkpoint with tied embeddings."""

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        """Build and initialise from `seed`; the same seed gives the same weights on every machine."""
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        config = self.config
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                std = config.embed_std if "embed_tokens" in name else config.hidden_dim**-0.5
                parameter.normal_(0.0, std, generator=generator)
        # Large embeddings keep a token's identity in the residual stream; the last norm undoes their size.
        self.model.norm.weight.fill_(0.5 / (config.embed_std * config.hidden_dim**0.5))

    def rotary(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, `[B, 1, T, E]`."""
        half = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=positions_BT.device)
        frequencies = self.config.rope_theta ** (-half / self.config.head_dim)
        angles = positions_BT[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, token_ids_BT: Tensor, positions_BT: Tensor, mask_B1TT: Tensor) -> Tensor:
        """Return the normalised hidden states, `[B, T, D]`.

        Args:
            token_ids_BT: int64[B, T].
            positions_BT: int64[B, T], rotary positions.
            mask_B1TT: Added to the attention scores: 0 where a token may look, minus infinity elsewhere.
        """
        x = self.model.embed_tokens(token_ids_BT)
        cos, sin = self.rotary(positions_BT)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask_B1TT)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits over the vocabulary for hidden states of any leading shape."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    @property
    def num_parameters(self) -> int:
        """Count of trained numbers, the tied embedding once."""
        return sum(parameter.numel() for parameter in self.parameters())


def branch_mask(documents_BT: Tensor, branches_BT: Tensor) -> Tensor:
    """Return the additive mask `float32[B, 1, T, T]`: earlier tokens of the passages or of the own branch."""
    tokens = documents_BT.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=documents_BT.device).tril()
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    visible = (branches_BT[:, None, :] == 0) | (branches_BT[:, :, None] == branches_BT[:, None, :])
    allowed = causal & same & visible
    mask = torch.zeros(allowed.shape, dtype=torch.float32, device=allowed.device)
    return mask.masked_fill(~allowed, float("-inf"))[:, None]
