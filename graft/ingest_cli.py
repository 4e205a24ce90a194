"""`graft ingest`: files and folders in, with progress, and a folder that is followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli_platform import (
    AsJson,
    ConfigFile,
    Overrides,
    load,
    open_platform,
    print_json,
    show_documents,
)

if TYPE_CHECKING:
    from graft.backend import Ingested
    from graft.blocking import Graft

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended."""
_MOST_LISTED = 50
"""From more documents than these only those that are not ready are listed."""


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders.")],
    library: Annotated[str, typer.Option("--library", help="Where they go; made when new.")] = "default",
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", help="field=value, for every file; value is JSON or text."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Then follow the one folder until Ctrl-C.")] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0.0, help="Seconds to wait; default is until done.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return once every file is queued.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Add files and folders, and wait until each is searchable or has failed; exit status 1 if one has."""
    from graft.folders import source_files
    from graft.progress_line import ProgressLine
    from retrieval.errors import IngestTimeout
    from retrieval.types import DocumentState

    if no_wait and (watch or timeout_s is not None):
        raise typer.BadParameter("--no-wait goes with neither --watch nor --timeout")
    if watch and timeout_s is not None:
        raise typer.BadParameter("--watch goes on until Ctrl-C; leave out --timeout")
    fields = _fields(metadata)
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        if watch:
            _watch(platform, paths, library, fields, as_json)
            return
        files = source_files(paths)
        line = ProgressLine()
        try:
            with line:
                found = platform.ingest_files(
                    files,
                    library=library,
                    metadata=fields,
                    wait=not no_wait,
                    timeout_s=timeout_s,
                    on_progress=line.show,
                )
        except (KeyboardInterrupt, IngestTimeout) as error:
            for failure in line.failures:
                typer.echo(f"failed   {failure.name}  {failure.cause}", err=True)
            if isinstance(error, IngestTimeout):
                raise
            typer.echo("stopped; what was taken in stays, and the same command goes on from there", err=True)
            raise typer.Exit(INTERRUPTED) from None
    _show(found, as_json)
    if found.refused or any(document.state is DocumentState.FAILED for document in found.documents):
        raise typer.Exit(1)


def _show(found: Ingested, as_json: bool) -> None:
    """Print what became of files, each that is not searchable with its cause."""
    from graft.wire import to_json
    from retrieval.types import DocumentState

    if as_json:
        refused = [{"name": one.name, "state": "refused", "error": one.cause} for one in found.refused]
        print_json([*(to_json(document) for document in found.documents), *refused])
        return
    listed = list(found.documents)
    if len(listed) > _MOST_LISTED:
        listed = [document for document in listed if document.state is DocumentState.FAILED]
    if listed:
        show_documents(listed)
    for one in found.refused:
        typer.echo(f"refused  {one.name}  {one.cause}")
    num_ready = sum(document.state is DocumentState.READY for document in found.documents)
    num_files = len(found.documents) + len(found.refused)
    if num_files > _MOST_LISTED or found.refused:
        typer.echo(f"{num_ready:,} of {num_files:,} files are searchable")


def _watch(
    platform: Graft, paths: list[Path], library: str, metadata: dict[str, Any] | None, as_json: bool
) -> None:
    from dataclasses import asdict

    from graft.progress_line import ProgressLine

    if len(paths) != 1:
        raise typer.BadParameter(f"--watch follows one folder; got {len(paths)} paths")
    with_fields = f" with {metadata}" if metadata else ""
    typer.echo(f"following {paths[0]} into library {library}{with_fields}; Ctrl-C stops", err=True)
    try:
        with ProgressLine() as line:
            changes = platform.watch(paths[0], library=library, metadata=metadata, on_progress=line.show)
            for item in changes:
                if as_json:
                    typer.echo(json.dumps(asdict(item), ensure_ascii=False))
                else:
                    typer.echo(f"{item.change:<8} {item.name}" + (f"  {item.cause}" if item.cause else ""))
    except KeyboardInterrupt:
        typer.echo("stopped watching; everything ingested stays", err=True)


def _fields(given: list[str] | None) -> dict[str, Any] | None:
    """Return metadata given as `field=value`; a value that is JSON is read as such, others are text."""
    if not given:
        return None
    fields: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"--metadata {item!r} is not field=value")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        fields[name] = tuple(value) if isinstance(value, list) else value
    return fields
