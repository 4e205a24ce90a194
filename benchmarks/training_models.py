"""Small real towers for benchmarks of training: the packaged embedder with fewer layers, and `graft-mini`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval.model_files import model_folder

READER = Path(__file__).resolve().parent.parent / "models" / "graft-mini"
"""The bundled generator."""


def cut_encoder(folder: Path, num_layers: int) -> Path:
    """Save the packaged embedder with its first layers alone and return its folder.

    Without its upper layers it embeds poorly until it is trained, which a few hundred steps on two cores can
    do: what joint training is worth can be seen on it, what the whole embedder would gain cannot.

    Args:
        folder: Where it goes; left as it is when it is there.
        num_layers: 1 to 6.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    if not (folder / "modules.json").exists():
        disable_progress_bar()
        model = SentenceTransformer(str(model_folder("packaged")), device="cpu")
        bert: Any = model.transformers_model
        bert.encoder.layer = bert.encoder.layer[:num_layers]
        bert.config.num_hidden_layers = num_layers
        model.save_pretrained(str(folder), create_model_card=False)
    return folder
