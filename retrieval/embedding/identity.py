"""Vectors of one model mean nothing to another: what refuses to mix them."""

from __future__ import annotations

from retrieval.errors import WrongEmbedder
from retrieval.types import EmbedderInfo
from retrieval.versions import VersionSpec


def require_same_model(info: EmbedderInfo, spec: VersionSpec) -> None:
    """Raise unless an embedder is the one that made an index version.

    Raises:
        WrongEmbedder: It is another; the message names both.
    """
    if info.model_hash == spec.model_hash and info.dim == spec.model_dim:
        return
    raise WrongEmbedder(
        f"index version {spec.version_id!r} was made by embedder {spec.embedder!r} (model {spec.model_hash}, "
        f"{spec.model_dim} dimensions), but the embedder here is {info.model_id!r} by {info.backend} (model "
        f"{info.model_hash}, {info.dim} dimensions): build a version for it and switch, or start with the "
        "embedder of the version (retrieval.embedder, retrieval.embed_backend)"
    )
