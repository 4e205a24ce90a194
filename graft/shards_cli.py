"""`graft index shards`, `reshard` and `promote`: the shards of the index and their copies."""

from __future__ import annotations

from typing import Annotated

import typer

from graft.cli_platform import (
    AsJson,
    ConfigFile,
    Overrides,
    load,
    open_platform,
    print_json,
    print_table,
)


def shards(as_json: AsJson = False, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """List the shards and their copies; exit status 1 when one does not answer."""
    from graft.wire import to_json

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        found = platform.index.shards()
    if as_json:
        print_json([to_json(item) for item in found])
    else:
        print_table(
            ("shard", "name", "copy", "role", "seq", "cause"),
            [
                (str(item.shard), item.name, str(item.slot), "primary" if item.is_primary else "replica",
                 "" if item.seq is None else f"{item.seq:,}", item.error or "")
                for item in found
            ],
        )  # fmt: skip
    if any(item.error for item in found):
        raise typer.Exit(1)


def reshard(num_shards: int, config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Spread the documents over another number of shards while they answer."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        placement = platform.index.reshard(num_shards)
    shards_now = "1 shard" if placement.num_shards == 1 else f"{placement.num_shards} shards"
    typer.echo(f"{shards_now}, generation {placement.generation}")


def promote(
    shard: int,
    copy: Annotated[int | None, typer.Argument(help="Leave out for the copy that is furthest.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Let another copy of a shard take its writes, for a primary that is gone for good."""
    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        placement = platform.index.promote(shard, copy)
    typer.echo(f"copy {placement.primary(shard)} of shard {shard} takes its writes")
