"""Text to chunks, cut at the largest boundary that fits the embedder's own token budget.

semantic-text-splitter (Rust) chooses the cuts: paragraph, line, sentence, word, grapheme, in that order. Its
offsets are code points. The tokenizer is the embedder's, so "180 tokens" is what the embedder will count.
"""

from __future__ import annotations

from pathlib import Path

from retrieval.config import RetrievalConfig
from retrieval.types import Chunk, DocumentText


class Chunker:
    """Cuts documents into overlapping chunks."""

    def __init__(self, tokenizer_file: Path, config: RetrievalConfig) -> None:
        """Load the tokenizer.

        Args:
            tokenizer_file: The embedder's `tokenizer.json`.
            config: `chunk_tokens`, `chunk_overlap_tokens` and `max_chunk_chars` are used.
        """
        from semantic_text_splitter import TextSplitter
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        # A saved tokenizer may truncate and pad, which would make every long text count as its limit.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._max_chars = config.max_chunk_chars
        self._max_tokens = config.chunk_tokens
        self._splitter = TextSplitter.from_huggingface_tokenizer(
            tokenizer, config.chunk_tokens, overlap=config.chunk_overlap_tokens, trim=True
        )

    def num_tokens(self, text: str) -> int:
        """Return the tokens of a text, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def chunks(self, document: DocumentText) -> list[Chunk]:
        """Return the chunks in order; together they hold every character that is not space."""
        chunks: list[Chunk] = []
        for offset, piece in self._splitter.chunk_indices(document.text):
            for start, end in self._windows(offset, offset + len(piece), document.text):
                text = document.text[start:end]
                if not text.isspace():
                    chunks.append(Chunk(len(chunks), text, start, end, document.page_at(start)))
        return chunks

    def _windows(self, start: int, end: int, text: str) -> list[tuple[int, int]]:
        """Cut a stretch that is too long in characters: a word of 10,000 letters counts as one unknown token.

        Its parts are words the tokenizer may know, of more tokens than the whole, so each is measured again.
        """
        if end - start <= self._max_chars:
            return [(start, end)]
        windows = []
        pending = [(cut, min(cut + self._max_chars, end)) for cut in range(start, end, self._max_chars)]
        while pending:
            low, high = pending.pop(0)
            if high - low > 1 and self.num_tokens(text[low:high]) > self._max_tokens:
                middle = (low + high) // 2
                pending[:0] = [(low, middle), (middle, high)]
            else:
                windows.append((low, high))
        return windows
