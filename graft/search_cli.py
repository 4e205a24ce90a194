"""`graft search`: passages without the language model."""

from __future__ import annotations

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
)

if TYPE_CHECKING:
    from retrieval.types import SearchResult


def search(
    query: str,
    k: Annotated[int, typer.Option("-k", help="Passages to show.")] = 5,
    library: LibraryName = None,
    document: Annotated[
        list[str] | None, typer.Option("--document", help="Only this document's id; may be repeated.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help='Filter, e.g. \'year >= 1990 and lang in ("en", "de")\'.')
    ] = None,
    mode: Annotated[str, typer.Option(help="hybrid, dense or lexical.")] = "hybrid",
    fusion: Annotated[str, typer.Option(help="convex or rrf: how hybrid search joins its legs.")] = "convex",
    alpha: Annotated[float | None, typer.Option(help="Weight of the dense leg, 0 to 1.")] = None,
    rerank: Annotated[str, typer.Option(help="auto, none, maxsim or cross_encoder.")] = "auto",
    mmr: Annotated[float | None, typer.Option(help="From 1, relevance alone, to 0, diversity alone.")] = None,
    expand: Annotated[str, typer.Option(help="none, parent or neighbours.")] = "none",
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector.")] = False,
    deadline_s: Annotated[
        float | None,
        typer.Option("--deadline", help="Seconds; what is not done then is left out, and named."),
    ] = None,
    version: Annotated[str | None, typer.Option(help="Index version or alias that answers.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say how each hit came about.")] = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Find passages without asking the language model."""
    from typing import get_args

    from graft.wire import to_json
    from retrieval.types import Expand, Fusion, Rerank, SearchMode

    with open_platform(load(config, overrides), parts=("retrieval",)) as platform:
        result = platform.search(
            query,
            k=k,
            library=library,
            document_ids=document or (),
            filter=where,
            mode=one_of("--mode", mode, get_args(SearchMode)),
            fusion=one_of("--fusion", fusion, get_args(Fusion)),
            alpha=alpha,
            rerank=one_of("--rerank", rerank, get_args(Rerank)),
            mmr=mmr,
            expand=one_of("--expand", expand, get_args(Expand)),
            exact=exact,
            deadline_s=deadline_s,
            version=version,
            explain=explain,
        )
    if as_json:
        print_json(to_json(result))
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    for hit, passage in zip(result.hits, result.passages, strict=True):
        page = f", page {passage.page}" if passage.page else ""
        console.print(f"[green]{hit.score:.3f}[/] [bold]{escape(passage.document)}[/]{page}")
        console.print(passage.text, markup=False, style="dim")
    if explain:
        _show_explanation(console, result)
    if result.partial:
        typer.echo(f"graft: not all shards answered: {', '.join(result.missing_shards)}", err=True)
    if not result.hits:
        console.print("No documents yet: add some with `graft ingest PATH`.", markup=False)


def _show_explanation(console: Any, result: SearchResult) -> None:
    """Print the stages of a search and, by hit, its score at each."""
    if result.explanation is not None:
        seen = result.explanation
        console.print(
            f"version {seen.version}  epoch {seen.epoch}  terms {' '.join(seen.terms)}", markup=False
        )
        for shard, plan in seen.plans.items():
            console.print(f"{shard} at {seen.seqs[shard]}: {plan}", markup=False)
    for stage in result.stages:
        took = f"skipped: {stage.skipped}" if stage.skipped else f"{stage.ms:.1f} ms"
        console.print(f"  {stage.name:<14} {took}", markup=False)
    for hit in result.hits:
        scores = (("dense", hit.dense_score), ("bm25", hit.lexical_score), ("fused", hit.fused_score),
                  ("rerank", hit.rerank_score), ("score", hit.score))  # fmt: skip
        shown = "  ".join(f"{name} {score:.3f}" for name, score in scores if score is not None)
        console.print(f"  {hit.rank + 1:>2} {hit.chunk_id}  {shown}", markup=False)
