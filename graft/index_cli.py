"""`graft index ...`: versions, compaction, snapshots, recall, import and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graft.cli_platform import (
    AsJson,
    ConfigFile,
    LibraryName,
    Overrides,
    load,
    one_of,
    open_platform,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from retrieval.admin import SegmentReport
    from retrieval.versions import VersionInfo

index_app = typer.Typer(
    help="Versions, compaction, snapshots, recall, import and export of the index.", no_args_is_help=True
)
VersionName = Annotated[
    str | None, typer.Option("--version", help="Version or alias; default is the active one.")
]


@index_app.command()
def versions(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """List the versions that are kept."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        _show_versions(platform.index.versions(), as_json)


@index_app.command()
def reindex(
    embedder: Annotated[str | None, typer.Option(help="Another embedder: a folder or a model id.")] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Another length of chunks.")] = None,
    chunk_overlap_tokens: Annotated[int | None, typer.Option(help="Another overlap.")] = None,
    dim: Annotated[int | None, typer.Option(help="Numbers kept of each vector; 0 for all.")] = None,
    vectors: Annotated[str | None, typer.Option(help="float32, float16, int8 or binary.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Token vectors: none, sign, int4 or int8.")] = None,
    kind: Annotated[str | None, typer.Option(help="auto, exact, ivf_sq8, ivf_pq, rabitq, hnsw, ...")] = None,
    switch: Annotated[bool, typer.Option("--switch", help="Let it answer when it is complete.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait for it.")] = 3600.0,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Build a version that differs from the active one, beside it, while that answers."""
    from typing import get_args

    from retrieval.versions import IndexKind, TokenCodec, VectorCodec

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        made = platform.index.reindex(
            embedder=embedder,
            chunk_tokens=chunk_tokens,
            chunk_overlap_tokens=chunk_overlap_tokens,
            dim=dim,
            vectors=None if vectors is None else one_of("--vectors", vectors, get_args(VectorCodec)),
            tokens=None if tokens is None else one_of("--tokens", tokens, get_args(TokenCodec)),
            kind=None if kind is None else one_of("--kind", kind, get_args(IndexKind)),
            timeout_s=timeout_s,
        )
        if switch:
            made = platform.index.switch(made.version_id)
    _show_versions([made], as_json)


@index_app.command()
def switch(
    version: str, as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None
) -> None:
    """Let a complete version answer, on all shards at once."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        _show_versions([platform.index.switch(version)], as_json)


@index_app.command()
def rollback(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Switch back to the version that answered before; again, and it goes further back."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        _show_versions([platform.index.rollback()], as_json)


@index_app.command()
def drop(version: str, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Remove a version that does not answer, with everything it stored."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        platform.index.drop_version(version)
    typer.echo(f"dropped {version}")


@index_app.command()
def collect(
    keep: Annotated[
        int | None, typer.Option(min=0, help="Retired versions that stay; default is keep_versions.")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Remove retired versions, but for those kept for a rollback."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        removed = platform.index.collect(keep)
    if as_json:
        print_json(removed)
    else:
        typer.echo("\n".join(f"removed {version}" for version in removed) or "nothing to remove")


@index_app.command()
def alias(
    name: str,
    version: Annotated[str | None, typer.Argument(help="Leave out to remove the name.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Let a name point to a version."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        platform.index.set_alias(name, version)
    typer.echo(f"{name} -> {version}" if version else f"removed {name}")


@index_app.command()
def segments(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Show what each shard holds in memory."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        _show_segments(platform.index.segments(), as_json)


@index_app.command()
def compact(
    version: VersionName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Build new base segments without dead rows."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        _show_segments(platform.index.compact(version), as_json)


@index_app.command()
def recall(
    num_queries: Annotated[int, typer.Option("--queries", help="Queries it rests on.")] = 200,
    version: VersionName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Estimate how many of the true nearest chunks the index finds; exit status 1 below the floor."""
    from graft.wire import to_json

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.index.estimate_recall(num_queries, version=version)
    if as_json:
        print_json(to_json(found))
    else:
        typer.echo(
            f"recall@10 {found.recall:.3f} (95 %: {found.low:.3f} to {found.high:.3f}) over "
            f"{found.num_queries} queries; floor {found.floor:.2f}" + (", ALARM" if found.alarm else "")
        )
    if found.alarm:
        raise typer.Exit(1)


@index_app.command()
def snapshot(
    folder: Path, as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None
) -> None:
    """Copy the whole index into an empty folder while it answers."""
    from graft.wire import to_json

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        made = platform.index.snapshot(folder.absolute())
    if as_json:
        print_json(to_json(made))
    else:
        typer.echo(f"{made.folder}  {made.num_bytes:,} bytes  {dict(made.seqs)}")


@index_app.command()
def restore(folder: Path, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Put a snapshot in place of the index of a stopped platform; what was there is kept beside it."""
    from graft.restore import restore as restore_snapshot

    kept = restore_snapshot(folder, load(config, overrides))
    typer.echo(f"restored {folder}" + (f"; what was there is in {kept}" if kept else ""))


@index_app.command("export")
def export_(
    path: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file.")],
    library: LibraryName = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Write every searchable chunk with its vector to a file."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        count = platform.index.export_file(path, library=library)
    typer.echo(f"wrote {count:,} records to {path}")


@index_app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file.")],
    library: Annotated[str, typer.Option("--library", help="Where they go; made when new.")] = "default",
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Store the records of a file; those with a vector keep it, the others are embedded."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        count = platform.index.import_file(path, library=library)
    typer.echo(f"stored {count:,} records in {library}")


@index_app.command()
def progress(
    library: LibraryName = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Show how far ingestion is, and how long it will still take."""
    from graft.wire import to_json

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        seen = platform.index.progress(library)
    if as_json:
        print_json(to_json(seen))
        return
    rest = "" if seen.remaining_s is None else f", about {seen.remaining_s:.0f} s left"
    typer.echo(
        f"{seen.num_ready} of {seen.num_documents} ready, {seen.num_failed} failed, "
        f"{seen.num_under_way} under way{rest}"
    )


def _show_versions(found: list[VersionInfo], as_json: bool) -> None:
    from graft.wire import to_json

    rows = [
        (item.state, item.version_id, f"{item.num_documents:,} of {item.num_wanted:,}",
         f"{item.num_chunks:,}", item.spec.embedder, str(item.spec.chunk_tokens), item.spec.vectors,
         item.spec.tokens, item.spec.kind,
         " ".join(item.aliases))
        for item in found
    ]  # fmt: skip
    head = (
        "state",
        "version",
        "documents",
        "chunks",
        "embedder",
        "tokens",
        "vectors",
        "codes",
        "kind",
        "alias",
    )
    _show([to_json(item) for item in found], head, rows, as_json)


def _show_segments(found: list[SegmentReport], as_json: bool) -> None:
    from graft.wire import to_json

    rows = [
        (item.shard, item.version_id, item.kind, str(item.seq), f"{item.num_rows:,}",
         f"{item.num_base_rows:,}", f"{item.num_delta_rows:,}", f"{item.num_dead_rows:,}",
         f"{item.resident_bytes / 2**20:,.1f}",
         "" if item.built_recall is None else f"{item.built_recall:.3f}", _served(item))
        for item in found
    ]  # fmt: skip
    head = ("shard", "version", "kind", "seq", "rows", "base", "delta", "dead", "MiB", "built at", "served")
    _show([to_json(item) for item in found], head, rows, as_json)


def _served(item: SegmentReport) -> str:
    """Return the recall searches were served with, for a table."""
    recall = item.served_recall
    if recall is None:
        return ""
    alarm = " ALARM" if recall.alarm else ""
    return f"{recall.recall:.3f} ({recall.low:.3f}-{recall.high:.3f}){alarm}"


def _show(values: list[Any], head: tuple[str, ...], rows: list[tuple[str, ...]], as_json: bool) -> None:
    if as_json:
        print_json(values)
    else:
        print_table(head, rows)
