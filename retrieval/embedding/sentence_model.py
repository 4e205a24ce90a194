"""Loading a sentence-transformers model. One of the files of retrieval that load torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Names of a passage's prompt, in the order in which `SentenceTransformer.encode_document` tries them."""


def load_model(folder: Path, device: str, dtype: torch.dtype) -> SentenceTransformer:
    """Return the model, ready to compute.

    Raises:
        ValueError: It does not say how many numbers its vectors have.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": dtype}).eval()
    if model.get_embedding_dimension() is None:
        raise ValueError(
            f"the embedder in '{folder}' does not say how many numbers its vectors have; "
            "use a model with a pooling layer"
        )
    return model


def longest_text(model: SentenceTransformer) -> int:
    """Return how many tokens of a text the model reads."""
    return int(model.max_seq_length or model.tokenizer.model_max_length)


def prompts_of(model: SentenceTransformer) -> tuple[str, str]:
    """Return what some models (E5, BGE) were trained to read before a query, and before a passage."""
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt is not None}
    fallback = prompts.get(model.default_prompt_name or "", "")
    document = next((prompts[name] for name in _DOCUMENT_PROMPTS if name in prompts), fallback)
    return prompts.get("query", fallback), document
