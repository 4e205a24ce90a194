"""Add files to a library of their own and search it."""

import sys
from pathlib import Path

from graft import Graft


def main(paths: list[Path], query: str) -> None:
    with Graft.connect() as graft:
        for document in graft.ingest(paths, library="mine"):
            print(document.state, document.name, document.error or f"{document.num_chunks} chunks")
        result = graft.search(query, k=3, library="mine")
        for hit, passage in zip(result.hits, result.passages, strict=True):
            print(f"{hit.score:.3f} {passage.document}: {passage.text[:80]!r}")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or [Path("README.md")], "how do I start it?")
