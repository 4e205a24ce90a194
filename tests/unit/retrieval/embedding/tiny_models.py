"""Small random sentence-transformers models of several architectures, with the packaged model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval.model_files import model_folder

VOCABULARY = 30_522
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 140,
}


def save_model(
    folder: Path,
    kind: str,
    *,
    pooling: str = "mean",
    prompts: dict[str, str] | None = None,
    dense: bool = False,
) -> Path:
    """Save a model of `kind` (bert, roberta, distilbert) and return its folder."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    torch.manual_seed(7)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(model_folder("packaged")))
    if kind == "bert":
        model: Any = transformers.BertModel(transformers.BertConfig(**SIZE))
    elif kind == "roberta":
        model = transformers.RobertaModel(transformers.RobertaConfig(**SIZE, pad_token_id=1))
    else:
        size = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
        model = transformers.DistilBertModel(
            transformers.DistilBertConfig(vocab_size=VOCABULARY, max_position_embeddings=140, **size)
        )
    # Fresh models have deviations of 0.02, at which attention hardly matters.
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.15 if "embeddings" not in name else 1.0)
    plain = folder / "plain"
    model.eval().save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    transformer = Transformer(str(plain), max_seq_length=128)
    modules: list[Any] = [transformer, Pooling(64, pooling_mode=pooling)]
    if dense:
        modules.append(Dense(64, 32))
    whole = folder / "model"
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(whole))
    return whole
