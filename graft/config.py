"""The platform's configuration: one frozen dataclass per owner, one TOML file, `--set key=value`.

Environment variables hold only secrets and paths: `GRAFT_HOME`, `GRAFT_TOKEN`; and OpenTelemetry's own, which
say where spans go.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import tomllib
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from agents.config import AgentsConfig
from graft.errors import ConfigError
from retrieval.config import RetrievalConfig
from serving.config import ServingConfig

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent
"""Where the bundled model and the sample library are."""


def default_home() -> Path:
    """Return the folder that holds everything the platform stores: `GRAFT_HOME` or `~/.graft`."""
    return Path(os.environ.get("GRAFT_HOME") or Path.home() / ".graft")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """Where the actors run."""

    address: str | None = None
    """Address of a running Ray cluster; None starts a local one and stops it at the end."""
    num_cpus: int | None = None
    """Logical CPUs of the local Ray; None for the machine's cores."""
    object_store_bytes: int = 128 * 2**20
    """Shared memory of the local Ray's object store, at least 80 MiB."""

    def __post_init__(self) -> None:
        if self.object_store_bytes < 80 * 2**20:
            raise ValueError(f"object_store_bytes must be >= {80 * 2**20}, got {self.object_store_bytes}")
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ValueError(f"num_cpus must be >= 1, got {self.num_cpus}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP server: API and chat on one port."""

    host: str = "127.0.0.1"
    """Address to listen on; anything but a loopback address needs GRAFT_TOKEN."""
    port: int = 7860
    """Port, 1 to 65,535; 0 takes any free one."""
    max_body_bytes: int = 1 * 2**20
    """Largest JSON body accepted."""
    max_upload_bytes: int = 100 * 2**20
    """Largest file accepted."""
    max_concurrent_runs: int = 64
    """Runs under way at once; more are answered 429."""
    drain_s: float = 30.0
    """Longest that a SIGTERM waits for requests under way to end, while new ones are answered 503; 0 ends
    them at once, as Ctrl-C does."""
    ingest_folders: tuple[Path, ...] | None = None
    """Folders whose files are read in place for clients of this machine, hidden ones left out; None for the
    user's home folder and the folder the platform was started in."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must be in 0..65535, got {self.port}")
        for name in ("max_body_bytes", "max_upload_bytes", "max_concurrent_runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.drain_s < math.inf:
            raise ValueError(f"drain_s must be a number of seconds >= 0, got {self.drain_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraftConfig:
    """Everything that can be configured."""

    home: Path = field(default_factory=default_home)
    """Folder of all stored state: index, threads, releases, logs."""
    sample_library: bool = True
    """Ingest the bundled sample library at the first start."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """Readers, chunks, embedder, index."""
    serving: ServingConfig = field(default_factory=ServingConfig)
    """The generator."""
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    """Graphs and budgets."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """HTTP."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Where actors run."""

    @property
    def hash(self) -> str:
        """Return a hash of what answers depend on: retrieval, serving and agents."""
        content = {name: asdict(getattr(self, name)) for name in ("retrieval", "serving", "agents")}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_config(path: Path | None = None, overrides: Iterable[str] = ()) -> GraftConfig:
    """Return the configuration from a TOML file and `key=value` overrides.

    Args:
        path: TOML file; None reads `graft.toml` in the current folder where there is one.
        overrides: Dotted keys, such as `serving.max_model_len=4096`; later ones win. Values are TOML,
            and plain words are strings.

    Raises:
        ConfigError: The file is missing or no TOML, a key is unknown, or a value is out of its bounds.
    """
    data: dict[str, Any] = {}
    if path is None and (implicit := Path("graft.toml")).exists():
        path = implicit
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"configuration file {path} does not exist") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"configuration file {path} cannot be read as TOML: {error}") from error
    for override in overrides:
        _apply(data, override)
    return from_mapping(GraftConfig, data)


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Return a config dataclass built from parsed TOML.

    Raises:
        ConfigError: A key is unknown (the nearest valid one is named), of the wrong type, or out of bounds.
    """
    hints = get_type_hints(cls)
    names = [item.name for item in fields(cls)]  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; valid keys: {', '.join(names)}"
            raise ConfigError(f"unknown configuration key {where}{key}{hint}")
        values[key] = _coerce(hints[key], value, f"{where}{key}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"configuration {where.rstrip('.') or 'file'}: {error}") from error


def _coerce(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value in (None, "none") and type(None) in options:
            return None
        return _coerce(next(option for option in options if option is not type(None)), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table, got {value!r}; write [{where}] or {where}.<key>=...")
        return from_mapping(hint, value, f"{where}.")
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_coerce(get_args(hint)[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is a table, got {value!r}; write [{where}] or {where}.<key>=...")
        return {str(key): _coerce(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)
    ):
        raise ConfigError(f"{where} must be {hint.__name__}, got {value!r}")
    return value


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, got {override!r}; for example --set server.port=7861")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = data
    *parents, name = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {parent} is no table")
    table[name] = value
