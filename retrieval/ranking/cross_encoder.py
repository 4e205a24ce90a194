"""Reranking by a cross-encoder: a model that reads query and passage together.

The only file of ranking that loads torch, and only when a search asks for it. Slower than MaxSim by two
orders of magnitude and in need of a model of its own; none comes with the platform.

Source: Nogueira and Cho, "Passage Re-ranking with BERT", 2019.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrieval.errors import IndexUnavailable

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


class CrossEncoderReranker:
    """Scores (query, passage) pairs; one call at a time, from any thread."""

    def __init__(
        self, model: str, *, device: str = "auto", batch_size: int = 16, num_threads: int = 0
    ) -> None:
        """Prepare; the model loads with the first call.

        Args:
            model: Folder of a sentence-transformers cross-encoder with one label, or a Hugging Face model id.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            batch_size: Pairs per forward pass; the deadline is looked at between two.
            num_threads: Threads of its linear algebra on a CPU; 0 for all cores this process may use.
        """
        self._model_name = model
        self._device = device
        self._batch_size = batch_size
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._model: CrossEncoder | None = None

    def load(self) -> None:
        """Load the model now rather than within the first search.

        Raises:
            IndexUnavailable: It cannot be loaded, or does not give one number a pair.
        """
        with self._lock:
            self._loaded()

    def scores(self, query: str, texts: Sequence[str], give_up_at: float | None = None) -> np.ndarray | None:
        """Return float32[len(texts)], higher is better; None when time ran out before the last pair.

        Args:
            query: The search string.
            texts: Passages.
            give_up_at: `time.monotonic()` after which no further batch begins.

        Raises:
            IndexUnavailable: The model cannot be loaded.
        """
        with self._lock:
            model = self._loaded()
            # By length, so that a batch pads little.
            order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
            scores_N = np.empty(len(texts), np.float32)
            for start in range(0, len(order), self._batch_size):
                if give_up_at is not None and time.monotonic() >= give_up_at:
                    return None
                batch = order[start : start + self._batch_size]
                scores_N[batch] = model.predict(
                    [(query, texts[position]) for position in batch],
                    batch_size=self._batch_size,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
            return scores_N

    def _loaded(self) -> CrossEncoder:
        if self._model is not None:
            return self._model
        import torch
        from sentence_transformers import CrossEncoder
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        device = self._device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(self._num_threads or len(os.sched_getaffinity(0)))
        try:
            model = CrossEncoder(self._model_name, device=device)
        except (OSError, ValueError) as error:
            raise IndexUnavailable(
                f"cross-encoder {self._model_name!r} cannot be loaded ({error}); set cross_encoder to a "
                "folder of a sentence-transformers cross-encoder or a model id this machine can reach"
            ) from error
        if model.num_labels != 1:
            raise IndexUnavailable(
                f"cross-encoder {self._model_name!r} gives {model.num_labels} numbers a pair; "
                "reranking needs one trained with a single label"
            )
        self._model = model.eval()
        return self._model
