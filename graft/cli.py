"""The `graft` command. Heavy imports happen inside commands, so `graft --help` answers at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from graft.cli_platform import (
    AsJson,
    ConfigFile,
    LibraryName,
    Overrides,
    load,
    open_platform,
    print_json,
    print_table,
    show_documents,
    show_stage,
)
from graft.graph_cli import graph_app
from graft.index_cli import index_app
from graft.ingest_cli import ingest
from graft.search_cli import search
from graft.shards_cli import promote, reshard, shards
from graft.train_cli import jobs_app, train

app = typer.Typer(
    name="graft",
    help="Cited answers from your own documents, on hardware you hold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
index_app.command()(shards)
index_app.command()(reshard)
index_app.command()(promote)
app.command()(ingest)
app.command()(search)
app.add_typer(index_app, name="index")
app.add_typer(graph_app, name="graph")
app.command()(train)
app.add_typer(jobs_app, name="jobs")


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

    serve(load(config, overrides), on_stage=show_stage)


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

    with open_platform(load(config, overrides), parts=None) as platform:
        result = platform.pipeline(graph).invoke(question, library=library)
    if as_json:
        print_json(answer_to_json(result))
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
def documents(
    library: LibraryName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """List documents and where each stands."""
    from graft.wire import to_json

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.documents(library)
    if as_json:
        print_json([to_json(document) for document in found])
    else:
        show_documents(found)


@app.command()
def libraries(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """List libraries and how much each holds."""
    from graft.wire import to_json

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.libraries()
    if as_json:
        print_json([to_json(item) for item in found])
    else:
        print_table(
            ("library", "ready", "documents", "chunks"),
            [
                (item.name, f"{item.num_ready:,}", f"{item.num_documents:,}", f"{item.num_chunks:,}")
                for item in found
            ],
        )


@app.command()
def delete(document_ids: list[str], config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Remove documents by id; afterwards no query finds them."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        for document_id in document_ids:
            platform.delete(document_id)
            typer.echo(f"deleted {document_id}")


@app.command()
def status(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Show what runs and which release answers; exit status 3 when nothing does."""
    from graft.blocking import Graft
    from graft.running import find_running
    from graft.wire import to_json

    home = load(config, overrides).home
    running = find_running(home)
    if running is None:
        typer.echo(f"no platform runs from {home}; start one with `graft up`", err=True)
        raise typer.Exit(3)
    with Graft.connect(running.url) as platform:
        seen = platform.status()
    if as_json:
        print_json(to_json(seen))
        return
    typer.echo(f"{running.url}  process {running.pid}  graft {seen.version}  release {seen.release}")
    for part in seen.parts:
        typer.echo(f"  {part.name:<10} {part.state:<9} {part.detail}")


@app.command()
def doctor(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Check cores, memory, GPU, packages, models and port, and say what to do about each."""
    from dataclasses import asdict

    from graft.doctor import examine

    findings = examine(load(config, overrides))
    if as_json:
        print_json([asdict(finding) for finding in findings])
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

    home = load(config, overrides).home
    running = stop_running(home)
    typer.echo(f"stopped process {running.pid}" if running else f"no platform runs from {home}")


if __name__ == "__main__":
    main()
