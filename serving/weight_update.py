"""Which weights may take the place of others in an engine that goes on."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from serving.errors import ModelUnusable
from serving.weights import check_files, tokenizer_hash, weight_files

SAME = (
    "architectures",
    "model_type",
    "hidden_act",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)
"""Settings of config.json that an engine reads once."""
MAX_NAMED = 3


def check_replaceable(now: Path, then: Path) -> None:
    """Refuse weights that are not of the model that is served.

    Args:
        now: Folder of the model that is served.
        then: Folder whose weights are to take its place.

    Raises:
        ModelUnusable: Files are missing, or the tokenizer, the settings or the tensors are others.
    """
    if not then.is_dir():
        raise ModelUnusable(f"the folder '{then}' does not exist; give one that `save_pretrained` made")
    check_files(str(then), then)
    if tokenizer_hash(now) != tokenizer_hash(then):
        raise ModelUnusable(f"'{then}' has another tokenizer than the model that is served; {_REMEDY}")
    settings, others = _config(now), _config(then)
    changed = [name for name in SAME if settings.get(name) != others.get(name)]
    if changed:
        name = changed[0]
        raise ModelUnusable(
            f"'{then}' has {name}={others.get(name)!r}, and the model that is served {settings.get(name)!r}; "
            f"{_REMEDY}"
        )
    shapes, new_shapes = _shapes(now), _shapes(then)
    names = shapes.keys() | new_shapes.keys()
    different = sorted(name for name in names if shapes.get(name) != new_shapes.get(name))
    if different:
        named = ", ".join(f"{name} {new_shapes.get(name, 'missing')}" for name in different[:MAX_NAMED])
        raise ModelUnusable(
            f"{len(different)} tensors in '{then}' are not those of the model that is served ({named}); "
            f"{_REMEDY}"
        )


_REMEDY = "start another generator for it"


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"config.json in '{folder}' cannot be read: {error}") from error


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor, from the heads of the weight files alone."""
    shapes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        try:
            with path.open("rb") as file:
                (num_bytes,) = struct.unpack("<Q", file.read(8))
                head = json.loads(file.read(min(num_bytes, 100_000_000)))
            head.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in head.values()), default=0)
            if path.stat().st_size != 8 + num_bytes + end:
                raise ValueError(f"{path.stat().st_size:,} bytes instead of {8 + num_bytes + end:,}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise ModelUnusable(f"{path.name} in '{folder}' is no whole weight file: {error}") from error
        shapes |= {name: entry["shape"] for name, entry in head.items()}
    return shapes
