"""A process to be killed: adds and deletes documents for ever and reports each acknowledgement on stdout."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fakes_retrieval import HashEmbedder

from retrieval.config import RetrievalConfig
from retrieval.service import LocalRetrieval


def report(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(folder: str, round_number: str) -> None:
    async with await LocalRetrieval.open(Path(folder), RetrievalConfig(), HashEmbedder()) as retrieval:
        report("open")
        number = 0
        while True:
            number += 1
            name = f"r{round_number}-{number}.txt"
            document = await retrieval.add(name, f"document {name} tells of topic {number}. ".encode() * 20)
            report(f"added {document.document_id} {name}")
            if number % 5 == 0:
                report(f"deleting {document.document_id} {name}")
                await retrieval.delete(document.document_id)
                report(f"deleted {document.document_id} {name}")
            if number % 7 == 0:
                await asyncio.sleep(0.01)


asyncio.run(main(*sys.argv[1:]))
