"""The retriever under training: a sentence-transformers model for queries and one for passages.

Shapes: N texts, D dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from retrieval.embedding.sentence_model import load_model, longest_text, prompts_of
from retrieval.model_files import model_folder
from training.errors import ConfigError
from training.index.schedule import RefreshMode
from training.joint.config import EncoderConfig
from training.joint.dropout import forbid_dropout
from training.joint.lora import add_lora, merged

Side = Literal["query", "passage"]
SIDES: tuple[Side, Side] = ("query", "passage")
_BATCH = 64


class EncoderTower(nn.Module):
    """Embeds queries and passages, with gradients where the side is trained."""

    def __init__(self, config: EncoderConfig, mode: RefreshMode, device: torch.device) -> None:
        """Load the model.

        Args:
            config: Which model, and how much it reads.
            mode: Decides which sides are trained: none (`frozen`), queries (`query_side`), or both.
            device: Where it computes.

        Raises:
            ConfigError: The model cannot be found, or reads fewer tokens than the configuration asks for.
        """
        super().__init__()
        self.config = config
        try:
            model = load_model(model_folder(config.model), str(device), torch.float32)
        except FileNotFoundError as error:
            raise ConfigError(f"encoder.model: {error}") from error
        for name in ("max_query_tokens", "max_passage_tokens"):
            if getattr(config, name) > longest_text(model):
                raise ConfigError(
                    f"encoder.{name}={getattr(config, name)} is above the {longest_text(model)} tokens that "
                    f"{config.model!r} reads; lower it"
                )
        self._prompts = dict(zip(("query", "passage"), prompts_of(model), strict=True))
        _drop_pooler(model)
        self.queries = model
        """Embeds queries, and passages too when the towers are tied."""
        self.passages: SentenceTransformer | None = None
        """Embeds passages where they have a tower of their own."""
        if config.towers == "untied" or mode == "query_side":
            self.passages = copy.deepcopy(model)
        sides: tuple[Side, ...] = () if mode == "frozen" else ("query",) if mode == "query_side" else SIDES
        self.trains_passages = "passage" in sides
        """Whether passage vectors change while training."""
        trained = {id(self._side(side)): self._side(side) for side in sides}
        for one in [self.queries, *([self.passages] if self.passages is not None else [])]:
            if id(one) not in trained:
                one.requires_grad_(False)
            elif config.lora is not None:
                add_lora(one, config.lora)
                _drop_pooler(one)
            if config.checkpointing:
                one.gradient_checkpointing_enable({"use_reentrant": False})
        forbid_dropout(self)

    @property
    def dim(self) -> int:
        """Return the numbers of a vector."""
        return int(self.queries.get_embedding_dimension() or 0)

    def features(self, texts: Sequence[str], side: Side) -> dict[str, Tensor]:
        """Return texts as the tokens that `forward` reads, padded to the longest."""
        limit = self.config.max_query_tokens if side == "query" else self.config.max_passage_tokens
        model = self._side(side)
        found = model.tokenizer(
            [self._prompts[side] + text for text in texts],
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        )
        return {name: tensor.to(model.device) for name, tensor in found.items()}

    def forward(self, features: dict[str, Tensor], side: Side) -> Tensor:
        """Return float32[N, D], of unit length where the model normalises, with gradients if they are on."""
        return self._side(side)(features)["sentence_embedding"].float()

    def embed(self, texts: Sequence[str], side: Side) -> Tensor:
        """Return the vectors of texts; see `forward`."""
        return self(self.features(texts, side), side)

    def save(self, folder: Path, side: Side) -> None:
        """Write one side as a sentence-transformers model, adapters merged into its weights."""
        model = self._side(side)
        # A tokenizer is saved with the length and padding of its last call.
        model.tokenizer.backend_tokenizer.no_truncation()
        model.tokenizer.backend_tokenizer.no_padding()
        with torch.no_grad():
            merged(model).save_pretrained(str(folder), create_model_card=False)

    def _side(self, side: Side) -> SentenceTransformer:
        return self.passages if side == "passage" and self.passages is not None else self.queries


class TowerProbe:
    """The weights of the moment, from both sides; a `training.index.ProbeEncoder`."""

    def __init__(self, tower: EncoderTower) -> None:
        """Look through a tower that goes on training."""
        self._tower = tower

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[N, D] of passages."""
        return self._embedded(texts, "passage")

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        """Return float32[N, D] of queries."""
        return self._embedded(queries, "query")

    @torch.no_grad()
    def _embedded(self, texts: Sequence[str], side: Side) -> np.ndarray:
        was_training = self._tower.training
        self._tower.eval()
        parts = [
            self._tower.embed(texts[first : first + _BATCH], side).cpu().numpy()
            for first in range(0, len(texts), _BATCH)
        ]
        self._tower.train(was_training)
        return np.concatenate(parts)


class SnapshotEncoder:
    """The passage tower as of a snapshot; a `training.index.PassageEncoder`."""

    def __init__(
        self,
        folder: Path,
        *,
        max_passage_tokens: int,
        batch_passages: int = 0,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        """Load a model that `EncoderTower.save` wrote.

        Args:
            folder: The model.
            max_passage_tokens: Tokens read of a passage.
            batch_passages: Passages encoded together; 0 for 32 on a CPU, 256 on a GPU.
            device: Where it computes.
            dtype: Precision of the forward pass, as in training.
        """
        config = EncoderConfig(model=str(folder), max_passage_tokens=max_passage_tokens)
        place = torch.device(device)
        self.tower = EncoderTower(config, "frozen", place).eval()
        """The model, which is not trained."""
        self.batch_passages = batch_passages or (256 if place.type == "cuda" else 32)
        """Passages encoded together."""
        self._place, self._is_half = place, dtype == "bfloat16"

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32[N, D]; the same bytes for the same texts in the same order."""
        with torch.autocast(self._place.type, torch.bfloat16, enabled=self._is_half):
            batches = [
                self.tower.embed(texts[first : first + self.batch_passages], "passage").cpu().numpy()
                for first in range(0, len(texts), self.batch_passages)
            ]
        return np.concatenate(batches) if batches else np.empty((0, self.tower.dim), np.float32)


def _drop_pooler(model: SentenceTransformer) -> None:
    """Stop gradients of BERT's pooler, which no embedding uses: DDP would wait for them."""
    pooler = getattr(model.transformers_model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
