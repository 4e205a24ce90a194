"""What the commands share: their options, the platform they speak to, and how they print JSON."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from graft.blocking import Graft
    from graft.config import GraftConfig
    from graft.stages import Stage
    from retrieval.types import Document

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; default is ./graft.toml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. server.port=7861.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
LibraryName = Annotated[str | None, typer.Option("--library", help="Only this library.")]


def load(config: Path | None, overrides: list[str] | None) -> GraftConfig:
    """Return the configuration that a command's options name."""
    from graft.config import load_config

    return load_config(config, overrides or ())


@contextmanager
def open_platform(config: GraftConfig, parts: tuple[str, ...] | None) -> Iterator[Graft]:
    """Attach to the platform of the home folder, or start what the command needs for its duration."""
    from graft.blocking import Graft
    from graft.running import find_running

    running = find_running(config.home)
    if running is not None:
        with Graft.connect(running.url) as graft:
            yield graft
    else:
        with Graft.up(config, on_stage=show_stage, parts=parts) as graft:
            yield graft


def show_stage(stage: Stage) -> None:
    """Print a stage on standard error, so that standard output stays for answers."""
    mark = "..." if stage.done_s is None else f"{stage.done_s:5.1f} s"
    typer.echo(f"{stage.name:>10}  {mark:>7}  {stage.message}", err=True)


def one_of(option: str, value: str, known: tuple[Any, ...]) -> Any:
    """Return a value that is one of those an option knows."""
    if value not in known:
        raise typer.BadParameter(f"{option} must be one of {', '.join(known)}; got {value!r}")
    return value


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def show_documents(documents: Sequence[Document]) -> None:
    """Print documents and where each stands."""
    rows = [
        (
            item.state if item.share is None else f"{item.state} {item.share:.0%}",
            item.library,
            item.name,
            "" if item.num_pages is None else str(item.num_pages),
            str(item.num_chunks),
            item.document_id,
            item.error or "",
        )
        for item in documents
    ]
    print_table(("state", "library", "name", "pages", "chunks", "id", "cause"), rows)


def print_json(value: Any) -> None:
    """Print a value for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
