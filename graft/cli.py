"""The `graft` command. Heavy imports happen inside commands, so `graft --help` answers at once."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graft.config import GraftConfig
    from graft.sdk import Graft
    from graft.stages import Stage

app = typer.Typer(
    name="graft",
    help="Cited answers from your own documents, on hardware you hold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; default is ./graft.toml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. server.port=7861.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
LibraryName = Annotated[str | None, typer.Option("--library", help="Only this library.")]


def main() -> None:
    """Run the command line; an error of ours is one clear line and exit status 1."""
    try:
        app()
    except Exception as error:
        from graft.wire import OURS

        if not isinstance(error, OURS):
            raise
        typer.echo(f"graft: {error}", err=True)
        sys.exit(1)


@app.command()
def up(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Start the platform and serve the chat and the API until Ctrl-C."""
    from graft.serve import serve

    serve(_load(config, overrides), on_stage=_show_stage)


@app.command()
def ask(
    question: str,
    library: LibraryName = None,
    graph: Annotated[str, typer.Option(help="Which graph answers.")] = "rag",
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Answer a question from the documents, with citations."""
    from graft.wire import answer_to_json

    with _platform(_load(config, overrides), parts=None) as platform:
        result = platform.pipeline(graph).invoke(question, library=library)
    if as_json:
        _print_json(answer_to_json(result))
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console()
        console.print(result.answer, markup=False)
        for citation in result.citations:
            page = f", page {citation.page}" if citation.page else ""
            console.print(
                f"[green]\\[{citation.number}][/] [bold]{escape(citation.document)}[/]{page}: ", end=""
            )
            console.print(citation.quote, markup=False, style="dim")
        if result.error:
            typer.echo(f"graft: {result.error}", err=True)
    if result.stop_reason == "error":
        raise typer.Exit(1)


@app.command()
def search(
    query: str,
    k: Annotated[int, typer.Option("-k", help="Passages to show.")] = 5,
    library: LibraryName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Find passages without asking the language model."""
    from graft.wire import to_json

    with _platform(_load(config, overrides), parts=("retrieval",)) as platform:
        result = platform.search(query, k=k, library=library)
    if as_json:
        _print_json(to_json(result))
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for hit, passage in zip(result.hits, result.passages, strict=True):
        page = f", page {passage.page}" if passage.page else ""
        console.print(f"[green]{hit.score:.3f}[/] [bold]{escape(passage.document)}[/]{page}")
        console.print(passage.text, markup=False, style="dim")
    if not result.hits:
        console.print("No documents yet: add some with `graft ingest PATH`.", markup=False)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders.")],
    library: Annotated[str, typer.Option("--library", help="Where they go; made when new.")] = "default",
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Add files and folders, and wait until each is searchable or has failed."""
    from graft.wire import to_json
    from retrieval.types import DocumentState

    with _platform(_load(config, overrides), parts=("retrieval",)) as platform:
        documents = platform.ingest(paths, library=library)
    if as_json:
        _print_json([to_json(document) for document in documents])
    else:
        _show_documents(documents)
    if any(document.state is DocumentState.FAILED for document in documents):
        raise typer.Exit(1)


@app.command()
def documents(
    library: LibraryName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """List documents and where each stands."""
    from graft.wire import to_json

    with _platform(_load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.documents(library)
    if as_json:
        _print_json([to_json(document) for document in found])
    else:
        _show_documents(found)


@app.command()
def delete(document_ids: list[str], config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Remove documents by id; afterwards no query finds them."""
    with _platform(_load(config, overrides), parts=("retrieval",)) as platform:
        for document_id in document_ids:
            platform.delete(document_id)
            typer.echo(f"deleted {document_id}")


@app.command()
def status(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Show what runs and which release answers; exit status 3 when nothing does."""
    from graft.running import find_running
    from graft.sdk import Graft
    from graft.wire import to_json

    home = _load(config, overrides).home
    running = find_running(home)
    if running is None:
        typer.echo(f"no platform runs from {home}; start one with `graft up`", err=True)
        raise typer.Exit(3)
    with Graft.connect(running.url) as platform:
        seen = platform.status()
    if as_json:
        _print_json(to_json(seen))
        return
    typer.echo(f"{running.url}  process {running.pid}  graft {seen.version}  release {seen.release}")
    for part in seen.parts:
        typer.echo(f"  {part.name:<10} {part.state:<9} {part.detail}")


@app.command()
def doctor(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Check cores, memory, GPU, packages, models and port, and say what to do about each."""
    from dataclasses import asdict

    from graft.doctor import examine

    findings = examine(_load(config, overrides))
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        from rich.console import Console
        from rich.table import Table

        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        table = Table("check", "verdict", "found", "what to do", box=None, pad_edge=False)
        for finding in findings:
            colour = colours[finding.verdict]
            table.add_row(finding.check, f"[{colour}]{finding.verdict}[/]", finding.seen, finding.remedy)
        Console().print(table)
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def down(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Stop the platform that runs from the home folder, and wait until it is gone."""
    from graft.running import stop_running

    home = _load(config, overrides).home
    running = stop_running(home)
    typer.echo(f"stopped process {running.pid}" if running else f"no platform runs from {home}")


def _load(config: Path | None, overrides: list[str] | None) -> GraftConfig:
    from graft.config import load_config

    return load_config(config, overrides or ())


@contextmanager
def _platform(config: GraftConfig, parts: tuple[str, ...] | None) -> Iterator[Graft]:
    """Attach to the platform of the home folder, or start what the command needs for its duration."""
    from graft.running import find_running
    from graft.sdk import Graft

    running = find_running(config.home)
    if running is not None:
        with Graft.connect(running.url) as platform:
            yield platform
    else:
        with Graft.up(config, on_stage=_show_stage, parts=parts) as platform:
            yield platform


def _show_stage(stage: Stage) -> None:
    """Print a stage on standard error, so that standard output stays for answers."""
    mark = "..." if stage.done_s is None else f"{stage.done_s:5.1f} s"
    typer.echo(f"{stage.name:>10}  {mark:>7}  {stage.message}", err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _show_documents(documents: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("state", "library", "name", "pages", "chunks", "id", "cause", box=None, pad_edge=False)
    for item in documents:
        pages = "" if item.num_pages is None else str(item.num_pages)
        table.add_row(
            item.state,
            item.library,
            item.name,
            pages,
            str(item.num_chunks),
            item.document_id,
            item.error or "",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
