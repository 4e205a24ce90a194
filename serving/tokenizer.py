"""Encodes prompt segments so that only template text can hold control tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from serving.errors import ModelUnusable
from serving.prompt import CONTROL_TOKENS, END_OF_TEXT, TURN_END, encode_prompt
from serving.types import Prompt

CACHED_SEGMENTS = 4096
"""Segment texts whose ids are remembered: passages come back in many prompts."""
MAX_CACHED_CHARS = 8192
"""Longer texts are encoded anew each time, so that the cache stays within tens of megabytes."""


class ModelTokenizer:
    """A model's tokenizer with two ways in: trusted text and everything else.

    Untrusted text is encoded by a second tokenizer made from the same file without its added tokens.
    `Tokenizer.encode_special_tokens` would not do: it leaves added tokens alone that are not marked
    special, such as `<think>` and `<tool_call>`, which a document must not be able to forge either.

    Args:
        path: The model's tokenizer.json.

    Raises:
        ModelUnusable: The file cannot be read, lacks a control token, or cannot keep one inert.
    """

    def __init__(self, path: Path) -> None:
        try:
            specification = json.loads(path.read_text(encoding="utf-8"))
            self._trusted = Tokenizer.from_str(json.dumps(specification))
            inert = {**specification, "added_tokens": [], "post_processor": None}
            self._inert = Tokenizer.from_str(json.dumps(inert))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelUnusable(
                f"{path} cannot be read as a tokenizer ({error}); save it again with a current `tokenizers`."
            ) from error
        for tokenizer in (self._trusted, self._inert):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        added = {token.content: number for number, token in self._trusted.get_added_tokens_decoder().items()}
        missing = [token for token in CONTROL_TOKENS if token not in added]
        if missing:
            raise ModelUnusable(
                f"{path} does not define {', '.join(missing)}; Graft's prompts are ChatML. "
                "Use a ChatML model (Qwen, graft-mini) or add the tokens and train them."
            )
        self.control_ids = frozenset(added.values())
        """Ids with a meaning of their own; untrusted text never encodes to one of them."""
        self.turn_end_id = added[TURN_END]
        """Id of the token that ends a turn."""
        self.end_ids = (self.turn_end_id, added[END_OF_TEXT])
        """Ids that end an answer, whatever the checkpoint's own configuration says."""
        self._check_inert(path, list(added))
        self._encode_cached = lru_cache(maxsize=CACHED_SEGMENTS)(self._encode)

    def _check_inert(self, path: Path, added: list[str]) -> None:
        for token in added:
            if self.control_ids.intersection(self._inert.encode(token, add_special_tokens=False).ids):
                raise ModelUnusable(
                    f"{path} encodes {token!r} to its control id even as plain text, so a document "
                    "could forge a turn; use a byte-level BPE tokenizer without `ignore_merges` for it."
                )

    def encode(self, text: str, *, trusted: bool) -> list[int]:
        """Return token ids; control tokens keep their meaning only in trusted text.

        Raises:
            UnicodeEncodeError: The text holds a lone surrogate.
        """
        encode = self._encode if len(text) > MAX_CACHED_CHARS else self._encode_cached
        return list(encode(text, trusted))

    def _encode(self, text: str, trusted: bool) -> tuple[int, ...]:
        tokenizer = self._trusted if trusted else self._inert
        try:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError:
            text.encode("utf-8")  # says which character is none
            raise

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, segment by segment."""
        return encode_prompt(prompt, self)

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Return the text of token ids; incomplete UTF-8 becomes U+FFFD."""
        return self._trusted.decode(list(token_ids), skip_special_tokens=skip_control)
