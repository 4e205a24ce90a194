"""`graft graph ...`: entities, what they are connected with, and which belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli_platform import (
    AsJson,
    ConfigFile,
    LibraryName,
    Overrides,
    load,
    open_platform,
    print_json,
)

if TYPE_CHECKING:
    from graft.blocking import Graft
    from retrieval.graph.types import GraphAnswer, Neighbourhood

graph_app = typer.Typer(
    help="Entities that documents name, how they are connected, and which belong together.",
    no_args_is_help=True,
)
_SHOWN_MEMBERS = 8
_SHOWN_CHARS = 160


@graph_app.command()
def entities(
    name: Annotated[str, typer.Argument(help="A name or a part of one; leave out for the commonest.")] = "",
    limit: Annotated[int, typer.Option("-k", "--limit", help="Entities to show.")] = 20,
    library: LibraryName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """List entities by name, most mentioned first."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.graph.entities(name, library=library, limit=limit)
    if _begun(found, as_json):
        rows = [
            (one.name, one.kind, str(one.num_chunks), ", ".join(one.also), next(iter(one.descriptions), ""))
            for one in found.entities
        ]
        _table(("entity", "kind", "chunks", "also", "what it is"), rows)


@graph_app.command()
def neighbours(
    question: Annotated[str, typer.Argument(help="Entities are found in it.")] = "",
    entity: Annotated[list[str] | None, typer.Option("--entity", help="A whole name; repeatable.")] = None,
    max_neighbours: Annotated[int, typer.Option(help="Connected entities to show.")] = 20,
    max_chunks: Annotated[int, typer.Option(help="Passages to show.")] = 5,
    library: LibraryName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Show what is known around the entities of a question, or around entities given by name."""
    if not question and not entity:
        raise typer.BadParameter("give a question, or entities with --entity")
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.graph.neighbourhood(
            question,
            entities=tuple(entity or ()),
            library=library,
            max_neighbours=max_neighbours,
            max_chunks=max_chunks,
        )
        if _begun(found, as_json):
            _show_neighbourhood(platform, found)


@graph_app.command()
def communities(
    level: Annotated[int, typer.Option(help="0 for the coarsest.")] = 0,
    limit: Annotated[int, typer.Option("-k", "--limit", help="Communities to show.")] = 20,
    library: LibraryName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """List groups of entities that belong together, those that most chunks speak of first."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.graph.communities(library=library, level=level, limit=limit)
    if _begun(found, as_json):
        rows = [
            (one.community_id, one.library, str(one.level), str(len(one.entities)), str(one.num_chunks),
             ", ".join(entity.name for entity in one.entities[:_SHOWN_MEMBERS]))
            for one in found.communities
        ]  # fmt: skip
        _table(("community", "library", "level", "entities", "chunks", "members"), rows)
        typer.echo(
            f"{len(rows)} of {found.num_communities} communities; levels 0 to {max(found.num_levels - 1, 0)}"
        )


@graph_app.command()
def status(
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait until nothing waits.")] = 0.0,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Show how large the graph is and how far it has come."""
    from graft.wire import to_json

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        seen = platform.graph.wait_taken_up(timeout_s=wait_s) if wait_s else platform.graph.stats()
    if as_json:
        print_json(to_json(seen))
    elif seen.source == "none":
        typer.echo('no graph is kept; set retrieval.graph to "rules" or "llm"')
    else:
        typer.echo(
            f"{seen.extractor}: {seen.num_chunks:,} chunks taken up, {seen.num_pending:,} wait, "
            f"{seen.num_failed:,} failed; {seen.num_entities:,} entities, {seen.num_relations:,} relations"
        )
        if seen.failure is not None:
            typer.echo(f"a failure: {seen.failure}; `graft graph retry` queues them again")


@graph_app.command()
def retry(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Queue chunks whose extraction failed once more."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        typer.echo(f"queued {platform.graph.retry_failed():,} chunks")


@graph_app.command()
def drop(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Remove what an earlier configuration kept; retrieval.graph must be "none"."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        platform.graph.drop()
    typer.echo("removed the graph")


def _begun(found: GraphAnswer, as_json: bool) -> bool:
    """Print an answer for programs, or what it lacks for people; return whether the rest is to be shown."""
    from graft.wire import to_json

    if as_json:
        print_json(to_json(found))
        return False
    if found.partial:
        typer.echo(f"without {', '.join(found.missing_shards)}, which did not answer", err=True)
    if found.num_pending:
        typer.echo(f"{found.num_pending:,} chunks are not taken up yet; see `graft graph status`", err=True)
    return True


def _show_neighbourhood(platform: Graft, found: Neighbourhood) -> None:
    names = {one.key: one.name for one in (*found.seeds, *found.neighbours)}
    if not found.seeds:
        typer.echo("no entity that the documents name is in the question; try `graft graph entities`")
        return
    typer.echo(f"around {', '.join(one.name for one in found.seeds)}")
    rows = [
        (names[edge.source], edge.label or "with", names[edge.target], f"{edge.weight:g}")
        for edge in found.edges
    ]
    _table(("entity", "connection", "entity", "weight"), rows)
    passages = platform.passages([chunk_id for chunk_id, _ in found.chunks])
    for (_, score), passage in zip(found.chunks, passages, strict=True):
        if passage is not None:
            typer.echo(f"{score:.2f}  {passage.document}: {' '.join(passage.text.split())[:_SHOWN_CHARS]}")


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
