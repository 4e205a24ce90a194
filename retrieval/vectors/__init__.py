"""Vector search over arrays: base segments of many kinds, an exact delta, tombstones, a planner, a tuner.

Names load on first use; importing this package loads neither faiss nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.vectors.exact import ExactBase
    from retrieval.vectors.kinds import build_base, chosen_kind, open_base
    from retrieval.vectors.recall import RecallEstimate, RecallEstimator, estimate_recall
    from retrieval.vectors.segments import VectorSegments
    from retrieval.vectors.settings import VectorSettings
    from retrieval.vectors.types import (
        CorruptBase,
        IndexTooLarge,
        NoSuchDevice,
        SearchEffort,
        Selected,
        VectorBase,
    )

_HOME = {
    "exact": ("ExactBase",),
    "kinds": ("build_base", "chosen_kind", "open_base"),
    "recall": ("RecallEstimate", "RecallEstimator", "estimate_recall"),
    "segments": ("VectorSegments",),
    "settings": ("VectorSettings",),
    "types": ("CorruptBase", "IndexTooLarge", "NoSuchDevice", "SearchEffort", "Selected", "VectorBase"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "CorruptBase",
    "ExactBase",
    "IndexTooLarge",
    "NoSuchDevice",
    "RecallEstimate",
    "RecallEstimator",
    "SearchEffort",
    "Selected",
    "VectorBase",
    "VectorSegments",
    "VectorSettings",
    "build_base",
    "chosen_kind",
    "estimate_recall",
    "open_base",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'retrieval.vectors' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.vectors.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
