"""Which weights may take the place of others in an engine that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving.errors import ModelUnusable
from serving.weights import check_files, tensor_shapes, tokenizer_hash

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
    shapes, new_shapes = tensor_shapes(now), tensor_shapes(then)
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
