"""Many real passages with vectors that are cheap to make: passages of old books, for speed at scale.

Embedding 100,000 passages takes a CPU half an hour. Each vector here is the mean of the packaged model's
word embeddings of the passage's tokens, weighted by their rarity, normalised: a hard, clustered
distribution of the model's own dimension, not the model's vectors. Figures that depend on meaning use real
embeddings instead.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.model_files import model_folder, tokenizer_file

WORDS = 95
"""Words of a passage: about 126 tokens."""
_BATCH = 2048


@dataclass(frozen=True, slots=True)
class BookPassages:
    """Passages, their books, and a vector each."""

    texts: list[str]
    """The passages."""
    years: list[int]
    """Year of each one's book."""
    authors: list[str]
    """Author of each one's book."""
    vectors_ND: np.ndarray
    """float32[len(texts), 384], L2-normalised."""


def load(data: Path, count: int) -> BookPassages | None:
    """Return the first passages of the books; None where they are not in the folder."""
    path = data / "classic-books" / "core-1885-1929.jsonl.xz"
    if not path.is_file():
        return None
    texts: list[str] = []
    years: list[int] = []
    authors: list[str] = []
    for text, year, author in _passages(path):
        texts.append(text)
        years.append(year)
        authors.append(author)
        if len(texts) == count:
            break
    return BookPassages(texts, years, authors, proxy_vectors(texts))


def proxy_vectors(texts: list[str]) -> np.ndarray:
    """Return float32[len(texts), 384]: rarity-weighted means of word embeddings, L2-normalised."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    folder = model_folder("packaged")
    weights = load_file(folder / "model.safetensors")
    table_VD = next(value for name, value in weights.items() if name.endswith("word_embeddings.weight"))
    tokenizer = Tokenizer.from_file(str(tokenizer_file(folder)))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer.encode_batch(texts[start : start + _BATCH], add_special_tokens=False)
        ids += [np.asarray(item.ids, dtype=np.int64) for item in encoded]
    counts_V = np.bincount(np.concatenate(ids), minlength=len(table_VD))
    rarity_V = np.log(counts_V.sum() / (counts_V + 1.0)).astype(np.float32)
    vectors_ND = np.stack([rarity_V[item] @ table_VD[item] for item in ids])
    vectors_ND -= vectors_ND.mean(axis=0)
    return (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)


def _passages(path: Path) -> Iterator[tuple[str, int, str]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            book = json.loads(line)
            words = book["text"].split()
            for start in range(0, len(words) - WORDS, WORDS):
                yield " ".join(words[start : start + WORDS]), int(book["year"]), str(book["author"])
