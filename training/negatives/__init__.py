"""Hard negatives mined on an index under training or on a live retriever.

Names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.negatives.mined import MinedNegatives, MiningReport
    from training.negatives.mining import MiningConfig, NegativeMiner

_HOMES = {
    "MinedNegatives": "training.negatives.mined",
    "MiningConfig": "training.negatives.mining",
    "MiningReport": "training.negatives.mined",
    "NegativeMiner": "training.negatives.mining",
}
"""Where each public name lives."""

__all__ = [
    "MinedNegatives",
    "MiningConfig",
    "MiningReport",
    "NegativeMiner",
]


def __getattr__(name: str) -> Any:
    """Return a public name, loading the file that owns it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'training.negatives' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
