"""The key that says for what a chunk's KV may be used."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence


def chunk_key(scope: str, context_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """Return 32 hex digits that are equal only where the KV may be used in place of another.

    Args:
        scope: What the KV depends on beside its tokens and must not be shared across: model, adapter, number
            format, tokenizer, tenant.
        context_ids: Tokens that stood before the chunk when its KV was computed.
        token_ids: The chunk's tokens.
    """
    digest = hashlib.sha256(scope.encode("utf-8", "surrogatepass"))
    for ids in (context_ids, token_ids):
        digest.update(struct.pack("<q", len(ids)))
        digest.update(struct.pack(f"<{len(ids)}I", *ids))
    return digest.hexdigest()[:32]
