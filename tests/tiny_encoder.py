"""A small random sentence-transformers model with the packaged embedder's tokenizer, made in a second."""

from __future__ import annotations

from pathlib import Path

from retrieval.model_files import model_folder

DIM = 32
MAX_TOKENS = 128


def build_tiny_encoder(folder: Path, *, seed: int = 7, normalised: bool = True) -> Path:
    """Write the model into `folder` and return it."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model_folder("packaged")))
    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=DIM,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * DIM,
            max_position_embeddings=MAX_TOKENS + 2,
        )
    )
    # Fresh models have deviations of 0.02, at which texts hardly differ.
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15 if "embeddings" not in name else 1.0)
    plain = folder / "plain"
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    modules = [Transformer(str(plain), max_seq_length=MAX_TOKENS), Pooling(DIM, pooling_mode="mean")]
    if normalised:
        modules.append(Normalize())
    whole = folder / "model"
    SentenceTransformer(modules=modules, device="cpu").save(str(whole), create_model_card=False)
    return whole
