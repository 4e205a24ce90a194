"""A process to be killed: upserts and deletes records under a graph and reports each acknowledgement."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fakes_retrieval import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.service import LocalRetrieval
from retrieval.truth.documents import document_id_of
from retrieval.types import DEFAULT_LIBRARY, DEFAULT_TENANT, Record


def report(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(folder: str, round_number: str) -> None:
    config = RetrievalConfig(graph="rules")
    async with await LocalRetrieval.open(Path(folder), config, HashEmbedder()) as retrieval:
        report("open")
        number = 0
        while True:
            number += 1
            name = f"Node{round_number}x{number}"
            text = f"We know that {name} and Shared Name met. {name} uses vLLM and BM25. "
            await retrieval.upsert([Record(name, text * 8)])
            report(f"added {name}")
            if number % 4 == 0:
                report(f"deleting {name}")
                await retrieval.delete(document_id_of(DEFAULT_TENANT, DEFAULT_LIBRARY, name))
                report(f"deleted {name}")
            await asyncio.sleep(0.002)


asyncio.run(main(*sys.argv[1:]))
