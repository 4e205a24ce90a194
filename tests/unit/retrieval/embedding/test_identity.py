"""An embedder that did not make an index version is refused, and the message names both."""

from __future__ import annotations

import dataclasses

import pytest

from retrieval.embedding import require_same_model
from retrieval.errors import WrongEmbedder
from retrieval.types import EmbedderInfo
from retrieval.versions import VersionSpec

INFO = EmbedderInfo("packaged", "0123456789abcdef", 384, 256, "onnx-int8")
SPEC = VersionSpec(
    embedder="packaged",
    model_hash=INFO.model_hash,
    model_dim=384,
    chunk_tokens=180,
    chunk_overlap_tokens=20,
    max_chunk_chars=2000,
)


def test_the_maker_is_accepted() -> None:
    require_same_model(INFO, SPEC)


@pytest.mark.parametrize("change", [{"model_hash": "f" * 16}, {"dim": 768}])
def test_another_is_refused_by_name(change: dict[str, object]) -> None:
    other = dataclasses.replace(INFO, **change)
    with pytest.raises(WrongEmbedder) as caught:
        require_same_model(other, SPEC)
    for part in (SPEC.version_id, SPEC.model_hash, other.model_hash, "onnx-int8", str(other.dim)):
        assert part in str(caught.value)
