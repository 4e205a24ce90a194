"""Finds a model's folder and hashes its files."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

from serving.config import BUNDLED_MODEL
from serving.errors import ModelUnusable

BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "models" / BUNDLED_MODEL
"""Where the bundled model lies in a checkout of this repository."""

HASH_DIGITS = 16
READ_BYTES = 4 << 20
WANTED_FILES = ("*.safetensors", "*.json", "*.jinja")
"""Files of a Hugging Face repository that serving needs."""


def model_folder(model: str) -> Path:
    """Return the folder that holds a model's files, downloading a Hugging Face id if need be.

    Args:
        model: `graft-mini`, a folder, or a Hugging Face id such as `Qwen/Qwen3-0.6B`.

    Raises:
        ModelUnusable: There is no such model, or a file it needs is missing.
    """
    if model == BUNDLED_MODEL:
        folder = BUNDLED_FOLDER
        if not folder.is_dir():
            raise ModelUnusable(
                f"The bundled model {BUNDLED_MODEL!r} is not in this checkout (models/{BUNDLED_MODEL}); "
                "restore it with `git checkout -- models` or set serving.model to another model."
            )
    elif Path(model).expanduser().is_dir():
        folder = Path(model).expanduser().resolve()
    else:
        folder = _downloaded(model)
    check_files(model, folder)
    return folder


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(WANTED_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelUnusable(
            f"Model {model!r} is neither a folder here nor a Hugging Face model that can be downloaded now "
            f"({error}). Give the path of a folder, check the name and the network, or use {BUNDLED_MODEL!r}."
        ) from error


def check_files(model: str, folder: Path) -> None:
    """Refuse a folder that lacks files of a model.

    Raises:
        ModelUnusable: A file is missing; the message says how to make it.
    """
    for name, remedy in (
        ("config.json", "save the model with `save_pretrained`"),
        (
            "tokenizer.json",
            "save its fast tokenizer with `AutoTokenizer.from_pretrained(...).save_pretrained`",
        ),
    ):
        if not (folder / name).is_file():
            raise ModelUnusable(f"Model {model!r} has no {name} in {folder}; {remedy}.")
    if not weight_files(folder):
        raise ModelUnusable(
            f"Model {model!r} has no *.safetensors in {folder}; save it with `save_pretrained`."
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a model folder, by name."""
    return sorted(folder.glob("*.safetensors"))


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


class HashCache:
    """Remembers the sha256 of files by path, size and modification time, across processes.

    Hashing tens of gigabytes of weights takes longer than mapping them, and a release names its
    weights by hash at every start.
    """

    def __init__(self, path: Path | None = None) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = path or cache / "graft" / "file-hashes.json"

    def hash_of(self, path: Path) -> str:
        """Return the sha256 of a file, hex; read from the cache when the file has not changed."""
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        known = self._load()
        if key not in known:
            known[key] = file_hash(path)
            self._save(known)
        return known[key]

    def _load(self) -> dict[str, str]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _save(self, known: dict[str, str]) -> None:
        # A cache that cannot be written costs time, not correctness.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(json.dumps(known), encoding="utf-8")
            draft.replace(self.path)
        except OSError:
            return


def model_hash(folder: Path, cache: HashCache | None = None) -> str:
    """Return sha256 over the hashes of a folder's weight files in order of name, 16 hex digits."""
    cache = cache or HashCache()
    digest = hashlib.sha256()
    for path in weight_files(folder):
        digest.update(f"{path.name} {cache.hash_of(path)}\n".encode())
    return digest.hexdigest()[:HASH_DIGITS]


def tokenizer_hash(folder: Path) -> str:
    """Return sha256 over tokenizer.json, 16 hex digits."""
    return file_hash(folder / "tokenizer.json")[:HASH_DIGITS]


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor of a folder by name, from the heads of the weight files alone.

    Raises:
        ModelUnusable: A file is torn, or is no safetensors file.
    """
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
