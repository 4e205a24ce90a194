"""Embeds by sentence-transformers and torch: fp32 on a CPU, fp16 on a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval.embedding.backend import Encoded, Tokenised
from retrieval.embedding.pooling import unit
from retrieval.model_files import weights_hash
from retrieval.types import EmbedderInfo

_CHARS_PER_TOKEN = 4
_CPU_BATCH_TOKENS = 4096
_GPU_BATCH_TOKENS = 32_768


class TorchBackend:
    """Any sentence-transformers model."""

    def __init__(self, embedder: str, folder: Path, *, device: str, num_threads: int) -> None:
        """Load the model.

        Args:
            embedder: The name it goes by.
            folder: Where its files are.
            device: `cpu`, `cuda` or `cuda:N`.
            num_threads: Threads of linear algebra on a CPU.
        """
        import torch

        from retrieval.embedding.sentence_model import load_model, longest_text, prompts_of

        torch.set_num_threads(num_threads)
        on_gpu = device != "cpu"
        self._model = load_model(folder, device, torch.float16 if on_gpu else torch.float32)
        self._query_prompt, self._document_prompt = prompts_of(self._model)
        tokenizer = self._model.tokenizer
        self._special_ids = torch.tensor(sorted(set(tokenizer("")["input_ids"])), device=device)
        self.num_threads = 1  # torch splits each batch over its own threads.
        self.batch_tokens = _GPU_BATCH_TOKENS if on_gpu else _CPU_BATCH_TOKENS
        name = "torch-fp16" if on_gpu else "torch-fp32"
        self.info = EmbedderInfo(
            model_id=embedder,
            model_hash=model_hash(folder, name),
            dim=int(self._model.get_embedding_dimension() or 0),
            max_tokens=longest_text(self._model),
            backend=name,
        )

    def tokenise(self, texts: Sequence[str], *, is_query: bool) -> list[Tokenised]:
        """Return the texts and their prompt; lengths are estimated, since the model tokenises by itself."""
        prompt = self._query_prompt if is_query else self._document_prompt
        return [
            Tokenised(
                min(self.info.max_tokens, (len(prompt) + len(text)) // _CHARS_PER_TOKEN + 2), (prompt, text)
            )
            for text in texts
        ]

    def encode(self, texts: Sequence[Tokenised], *, with_tokens: bool) -> Encoded:
        """Return the vectors of one batch."""
        import torch
        from sentence_transformers.util import batch_to_device

        with torch.inference_mode():
            prompt = texts[0].tokens[0] or None
            features = self._model.preprocess([text.tokens[1] for text in texts], prompt=prompt)
            features = self._model(batch_to_device(features, self._model.device))
            vectors_ND = unit(features["sentence_embedding"].float().cpu().numpy())
            if not with_tokens:
                return Encoded(vectors_ND, None)
            if "token_embeddings" not in features:
                raise ValueError(
                    f"the embedder {self.info.model_id!r} has no token vectors; set the index's token codec "
                    "to 'none' or use a transformer"
                )
            kept_NT = features["attention_mask"].bool() & ~torch.isin(
                features["input_ids"], self._special_ids
            )
            hidden_NTD = torch.nn.functional.normalize(features["token_embeddings"].float(), dim=-1)
            tokens = [
                np.ascontiguousarray(hidden_TD[kept_T].cpu().numpy())
                for hidden_TD, kept_T in zip(hidden_NTD, kept_NT, strict=True)
            ]
        return Encoded(vectors_ND, tokens)


def model_hash(folder: Path, backend: str) -> str:
    """Return the identity of a model's vectors: of its weights in fp32, of weights and backend else."""
    weights = weights_hash(folder)
    if backend == "torch-fp32":
        return weights
    return hashlib.sha256(f"{weights}\0{backend}".encode()).hexdigest()[:16]
