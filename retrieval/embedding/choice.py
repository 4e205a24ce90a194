"""Which backend computes an embedder's vectors, and getting it ready.

`auto` takes torch in fp16 where there is a GPU, and ONNX Runtime in 8-bit integers on a CPU where the model
allows it. The conversion happens once a machine, before the first vector, so that all vectors of a process
are of one model; a model that cannot be converted, or whose vectors move too far from fp32, is served by
torch in fp32, which the log and `EmbedderInfo.backend` say.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

from retrieval.config import RetrievalConfig
from retrieval.embedding.backend import Backend
from retrieval.embedding.onnx_files import (
    MANIFEST,
    Manifest,
    conversion_lock,
    converted_hash,
    read_manifest,
)
from retrieval.model_files import model_folder

_LAST_CHARS = 500
_DEVICE_NODES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What a machine with a GPU that torch could use has; without one torch is not loaded to ask."""

log = logging.getLogger(__name__)


class ConversionRefused(Exception):
    """The model cannot be served by ONNX Runtime; the message says why."""


def open_backend(config: RetrievalConfig) -> Backend:
    """Return the backend that the settings ask for, its model loaded.

    Raises:
        ValueError: `embed_backend` is `onnx-int8` and the model cannot be served by it.
        FileNotFoundError: The model's files are not here.
    """
    folder = model_folder(config.embedder)
    num_threads = config.embed_threads or len(os.sched_getaffinity(0))
    device = _device(config)
    wants_onnx = config.embed_backend == "onnx-int8" or (config.embed_backend == "auto" and device == "cpu")
    if wants_onnx:
        try:
            return _open_onnx(config, folder, num_threads)
        except (ConversionRefused, TimeoutError, OSError) as error:
            if config.embed_backend == "onnx-int8":
                raise ValueError(
                    f"embedder {config.embedder!r} cannot be served by onnx-int8: {error}; "
                    "set retrieval.embed_backend to 'torch' or 'auto'"
                ) from error
            log.warning("embedder %r is served by torch in fp32: %s", config.embedder, error)
    from retrieval.embedding.torch_backend import TorchBackend

    return TorchBackend(config.embedder, folder, device=device, num_threads=num_threads)


def converted_folder(config: RetrievalConfig) -> Path:
    """Return where converted models and cached vectors of this user are."""
    if config.embed_folder:
        return Path(config.embed_folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "graft" / "embedders"


def _device(config: RetrievalConfig) -> str:
    if config.embed_device != "auto":
        return config.embed_device
    if not any(Path(node).exists() for node in _DEVICE_NODES):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _open_onnx(config: RetrievalConfig, folder: Path, num_threads: int) -> Backend:
    from retrieval.embedding.onnx_backend import OnnxBackend

    embed_folder = converted_folder(config)
    target = embed_folder / converted_hash(folder)
    manifest = read_manifest(target)
    if manifest is None:
        with conversion_lock(embed_folder, config.embed_convert_timeout_s):
            manifest = read_manifest(target)  # Another process may have made it meanwhile.
            if manifest is None:
                manifest = _convert(folder, target, config.embed_convert_timeout_s)
    if manifest.refused:
        raise ConversionRefused(manifest.refused)
    backend = OnnxBackend(config.embedder, target, manifest, num_threads=num_threads)
    if (distance := backend.distance_from_fp32()) is not None:
        raise ConversionRefused(distance)
    return backend


def _convert(folder: Path, target: Path, timeout_s: float) -> Manifest:
    if importlib.util.find_spec("onnx") is None:
        raise ConversionRefused("the package `onnx`, which writes its graph, is not installed")
    log.info("converting the embedder in '%s' for ONNX Runtime, once for this machine", folder)
    command = [sys.executable, "-m", "retrieval.embedding.onnx_convert", str(folder), str(target)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"converting it took longer than {timeout_s:g} s (embed_convert_timeout_s)"
        ) from error
    manifest = read_manifest(target)
    if done.returncode or manifest is None:
        raise ConversionRefused(
            f"converting it failed with exit code {done.returncode} and left no {MANIFEST}: "
            f"{done.stderr.strip()[-_LAST_CHARS:]}"
        )
    return manifest
