"""The folder of a converted model: written once a machine, checked at every load. Needs no torch.

`<embed_folder>/<model hash>/` holds the graph, the tokenizer, the fp32 vectors of sample texts and, written
last, the manifest with every file's checksum. A folder without a sound manifest does not count and is made
anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from retrieval.embedding.pooling import PoolingMode
from retrieval.model_files import weights_hash

BACKEND = "onnx-int8"
GRAPH, TOKENIZER, REFERENCE, MANIFEST = "model.onnx", "tokenizer.json", "reference.npy", "manifest.json"
_RECIPE = "per-token uint8 activations with zero points, per-channel int8 weights"
"""Changes whenever the vectors of a converted model would; part of its identity."""
_LOCK_POLL_S = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a converted model is, as sentence-transformers understood the original."""

    dim: int
    """Numbers per vector."""
    max_tokens: int
    """Tokens it reads of a text."""
    pooling: PoolingMode
    """How token states become one vector."""
    query_prompt: str
    """Read before a query."""
    document_prompt: str
    """Read before a passage."""
    refused: str
    """Why the conversion is not to be used, such as its distance from fp32; empty when it is."""
    checksums: dict[str, str]
    """sha256 by file name."""


def converted_hash(folder: Path) -> str:
    """Return the identity of a model's vectors once converted: its weights, settings and our recipe."""
    digest = hashlib.sha256(f"{weights_hash(folder)}\0{BACKEND}\0{_RECIPE}".encode())
    for path in sorted(folder.rglob("*.json")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a converted model; None where there is none, or, logged, a file is damaged."""
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_bytes()))
        for name, checksum in manifest.checksums.items():
            if _sha256(folder / name) != checksum:
                raise ValueError(f"{name} is not as it was written")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("the converted embedder in '%s' is damaged (%s) and is made anew", folder, error)
        return None
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, with checksums, beside files that are durable from here on."""
    names = [name for name in (GRAPH, TOKENIZER, REFERENCE) if (folder / name).is_file()]
    values = asdict(manifest) | {"checksums": {name: _sha256(folder / name) for name in names}}
    (folder / MANIFEST).write_text(json.dumps(values, indent=1), encoding="utf-8")
    for name in [*names, MANIFEST]:
        _sync(folder / name)
    _sync(folder)


def publish(made: Path, folder: Path) -> None:
    """Put a whole folder under its final name, in place of a damaged one if there is one."""
    if folder.exists():
        shutil.rmtree(folder)
    made.rename(folder)
    _sync(folder.parent)


@contextmanager
def conversion_lock(embed_folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the one place where models are converted; the kernel frees it when its holder dies.

    Raises:
        TimeoutError: Another process converts for longer than `timeout_s`.
        OSError: The folder cannot be written.
    """
    embed_folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with (embed_folder / "lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"another process has been converting in '{embed_folder}' for {timeout_s:g} s "
                        "(embed_convert_timeout_s)"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
