"""Builds a random-weight Qwen3 with a byte-level BPE tokenizer in under a second, for engine tests.

The weights say nothing; what they give is a real engine run on a real checkpoint layout. Control tokens
have zero embeddings, so that with tied weights their logit is 0 and greedy decoding never ends early.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from serving.prompt import CONTROL_TOKENS

VOCAB_SIZE = 640
HIDDEN_DIM = 64
HEAD_DIM = 64
NUM_HEADS = 2
NUM_KV_HEADS = 1
NUM_LAYERS = 2
MLP_DIM = 128
MAX_MODEL_LEN = 2048

CORPUS = (
    "A generator streams text from a prompt made of segments, and a passage is a chunk's text.",
    "The quick brown fox jumps over the lazy dog; naïve café, 中文字符, emoji 🙂🚀, accents éèü.",
    "Answer from the passages and cite them as [1] or [2]. If they do not hold the answer, say so.",
    "system user assistant tool <| im_start |> <| im_end |> <| endoftext |>",
)


def build_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer with the control tokens at ids 0, 1, 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def build_weights(vocab_size: int) -> dict[str, np.ndarray]:
    """Return float32 tensors under Qwen3's checkpoint names."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0.0, shape[-1] ** -0.5, shape).astype(np.float32)

    embedding = rng.normal(0.0, 1.0, (vocab_size, HIDDEN_DIM)).astype(np.float32)
    embedding[: len(CONTROL_TOKENS)] = 0.0
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(HIDDEN_DIM, np.float32),
    }
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.self_attn.q_proj.weight": normal(NUM_HEADS * HEAD_DIM, HIDDEN_DIM),
            f"{prefix}.self_attn.k_proj.weight": normal(NUM_KV_HEADS * HEAD_DIM, HIDDEN_DIM),
            f"{prefix}.self_attn.v_proj.weight": normal(NUM_KV_HEADS * HEAD_DIM, HIDDEN_DIM) * 4,
            f"{prefix}.self_attn.o_proj.weight": normal(HIDDEN_DIM, NUM_HEADS * HEAD_DIM) * 4,
            f"{prefix}.self_attn.q_norm.weight": np.ones(HEAD_DIM, np.float32) * 2,
            f"{prefix}.self_attn.k_norm.weight": np.ones(HEAD_DIM, np.float32) * 2,
            f"{prefix}.mlp.gate_proj.weight": normal(MLP_DIM, HIDDEN_DIM) * 2,
            f"{prefix}.mlp.up_proj.weight": normal(MLP_DIM, HIDDEN_DIM) * 2,
            f"{prefix}.mlp.down_proj.weight": normal(HIDDEN_DIM, MLP_DIM) * 2,
            f"{prefix}.input_layernorm.weight": np.ones(HIDDEN_DIM, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(HIDDEN_DIM, np.float32),
        }
    return weights


def build_tiny_model(folder: Path) -> Path:
    """Write the model and its tokenizer into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocab_size = tokenizer.get_vocab_size()
    end_of_text, _, turn_end = (tokenizer.token_to_id(token) for token in CONTROL_TOKENS)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN_DIM,
        "intermediate_size": MLP_DIM,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": end_of_text,
        "eos_token_id": turn_end,
        "pad_token_id": end_of_text,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CONTROL_TOKENS[2],
        "pad_token": CONTROL_TOKENS[0],
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_MODEL_LEN,
    }
    for name, value in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    save_file(build_weights(vocab_size), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
