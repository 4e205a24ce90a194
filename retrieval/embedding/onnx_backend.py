"""Embeds by ONNX Runtime in 8-bit integers, without torch: a third of the memory, and a start in a second.

One session, computed by as many threads as there are cores, each its own batch: nothing waits for another
thread inside a batch. Small batches are the fast ones, because their activations stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from retrieval.embedding.backend import Encoded, Tokenised
from retrieval.embedding.onnx_files import BACKEND, GRAPH, REFERENCE, TOKENIZER, Manifest
from retrieval.embedding.pooling import pool, token_vectors
from retrieval.embedding.samples import SAMPLE_PASSAGES
from retrieval.types import EmbedderInfo

_MIN_MEAN_COSINE = 0.99
_MIN_COSINE = 0.97
_BATCH_TOKENS = 512
_NUMPY_OF = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}


class OnnxBackend:
    """A converted model."""

    def __init__(self, embedder: str, folder: Path, manifest: Manifest, *, num_threads: int) -> None:
        """Load a converted model; `distance_from_fp32` says whether it computes rightly here.

        Args:
            embedder: The name it goes by.
            folder: Its folder; its name is the model's hash.
            manifest: What the folder says of it.
            num_threads: Batches computed at once.
        """
        self._folder = folder
        self._manifest = manifest
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(manifest.max_tokens)
        self._special_ids = np.unique(np.array(self._tokenizer.encode("").ids, np.int64))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Beyond `basic` it would join Add + LayerNormalization into its slower SkipLayerNormalization.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / GRAPH), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [(item.name, _NUMPY_OF[item.type]) for item in self._session.get_inputs()]
        self.num_threads = num_threads
        self.batch_tokens = _BATCH_TOKENS
        self.info = EmbedderInfo(
            model_id=embedder,
            model_hash=folder.name,
            dim=manifest.dim,
            max_tokens=manifest.max_tokens,
            backend=BACKEND,
        )

    def tokenise(self, texts: Sequence[str], *, is_query: bool) -> list[Tokenised]:
        """Return the token ids of each text, its prompt before it."""
        prompt = self._manifest.query_prompt if is_query else self._manifest.document_prompt
        encodings = self._tokenizer.encode_batch_fast([prompt + text for text in texts])
        return [Tokenised(len(encoding.ids), encoding.ids) for encoding in encodings]

    def encode(self, texts: Sequence[Tokenised], *, with_tokens: bool) -> Encoded:
        """Return the vectors of one batch."""
        width = max(text.num_tokens for text in texts)
        ids_NT = np.zeros((len(texts), width), np.int64)
        mask_NT = np.zeros((len(texts), width), np.int64)
        for row, text in enumerate(texts):
            ids_NT[row, : text.num_tokens] = text.tokens
            mask_NT[row, : text.num_tokens] = 1
        (ids_name, ids_type), (mask_name, mask_type) = self._inputs
        feed = {ids_name: ids_NT.astype(ids_type), mask_name: mask_NT.astype(mask_type)}
        hidden_NTD = np.asarray(self._session.run(None, feed)[0])
        vectors_ND = pool(hidden_NTD, mask_NT, self._manifest.pooling)
        if not with_tokens:
            return Encoded(vectors_ND, None)
        kept_NT = mask_NT.astype(bool) & ~np.isin(ids_NT, self._special_ids)
        return Encoded(vectors_ND, token_vectors(hidden_NTD, kept_NT))

    def distance_from_fp32(self) -> str | None:
        """Return how the sample texts' vectors differ from the fp32 model's, None when little enough.

        It is asked at every load, not only at conversion: a processor without 8-bit dot products overflows.
        """
        vectors_ND = self.encode(self.tokenise(SAMPLE_PASSAGES, is_query=False), with_tokens=False).vectors_ND
        return difference(vectors_ND, np.load(self._folder / REFERENCE))


def difference(vectors_ND: np.ndarray, reference_ND: np.ndarray) -> str | None:
    """Return in words how far unit vectors are from the fp32 ones, None when little enough."""
    cosines_N = (vectors_ND * reference_ND).sum(axis=1)
    mean, least = float(cosines_N.mean()), float(cosines_N.min())
    if mean >= _MIN_MEAN_COSINE and least >= _MIN_COSINE:
        return None
    return (
        f"its vectors are at cosine {mean:.4f} (least {least:.4f}) to fp32 on {len(cosines_N)} sample texts, "
        f"below {_MIN_MEAN_COSINE} ({_MIN_COSINE})"
    )
