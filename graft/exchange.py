"""Records in files: JSON lines and Parquet, read and written in batches of bounded memory.

A JSON line is `{"name", "text", "metadata", "vector"}`; the last two may be left out. A Parquet file has the
columns `name` and `text` (string), `metadata` (JSON text) and `vector` (list of float32); the last two may be
left out too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from graft.wire import from_json, to_json
from retrieval.errors import InvalidDocument, StorageFull
from retrieval.types import Record

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (".jsonl", ".parquet")


async def read_records(path: Path, batch: int) -> AsyncIterator[list[Record]]:
    """Yield the records of a file, `batch` at a time.

    Raises:
        InvalidDocument: The file is missing or damaged, or an entry is no record; the message says which.
    """
    _check_kind(path)
    batches = _read_jsonl(path, batch) if path.suffix == ".jsonl" else _read_parquet(path, batch)
    try:
        while (records := await asyncio.to_thread(next, batches, None)) is not None:
            yield records
    except OSError as error:
        raise InvalidDocument(
            f"'{path}' cannot be read ({error.strerror or error}); check the path"
        ) from error


async def write_records(path: Path, batches: AsyncIterator[Sequence[Record]]) -> int:
    """Write records to a file, whole or not at all, and return how many there were.

    Raises:
        InvalidDocument: The name ends in neither `.jsonl` nor `.parquet`, or its folder cannot be written.
        StorageFull: The disk has no room; nothing is left of the file.
    """
    _check_kind(path)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        sink: _Sink = (_JsonLines if path.suffix == ".jsonl" else _Parquet)(partial)
        try:
            async for records in batches:
                await asyncio.to_thread(sink.write, records)
                count += len(records)
        finally:
            await asyncio.to_thread(sink.close)
        partial.replace(path)
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise StorageFull(f"the disk that holds '{path}' is full; nothing was written") from error
        raise InvalidDocument(f"'{path}' cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _check_kind(path: Path) -> None:
    if path.suffix not in KINDS:
        raise InvalidDocument(f"'{path.name}' ends in neither {' nor '.join(KINDS)}; rename it")


def _read_jsonl(path: Path, batch: int) -> Iterator[list[Record]]:
    records: list[Record] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                records.append(from_json(Record, json.loads(line)))
            except (ValueError, ValidationError) as error:
                raise InvalidDocument(
                    f"line {number} of '{path.name}' is no record ({_shortly(error)}); a line is an object "
                    "with name, text and perhaps metadata and vector. Those before it are kept"
                ) from error
            if len(records) == batch:
                yield records
                records = []
    if records:
        yield records


def _read_parquet(path: Path, batch: int) -> Iterator[list[Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as source, pq.ParquetFile(source) as table:
            number = 0
            for block in table.iter_batches(batch):
                records = []
                for row in block.to_pylist():
                    number += 1
                    records.append(_of_row(row, number, path))
                yield records
    except pa.ArrowException as error:
        raise InvalidDocument(f"'{path.name}' is no Parquet file that can be read ({error})") from error


def _of_row(row: dict[str, Any], number: int, path: Path) -> Record:
    try:
        given = {**row, "metadata": json.loads(row.get("metadata") or "{}")}
        return from_json(Record, given)
    except (ValueError, ValidationError, TypeError) as error:
        raise InvalidDocument(
            f"row {number} of '{path.name}' is no record ({_shortly(error)}); the columns are name, text and "
            "perhaps metadata (JSON) and vector (float32 list). Those before it are kept"
        ) from error


def _shortly(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
    return str(error)


class _Sink(Protocol):
    def write(self, records: Sequence[Record]) -> None:
        """Append records."""
        ...

    def close(self) -> None:
        """Write what is left and close the file."""
        ...


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8")

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            self._file.write(json.dumps(to_json(record), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema: pa.Schema = pa.schema(
            [("name", pa.string()), ("text", pa.string()), ("metadata", pa.string()),
             ("vector", pa.list_(pa.float32()))]
        )  # fmt: skip
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, records: Sequence[Record]) -> None:
        import pyarrow as pa

        rows = [
            {"name": record.name, "text": record.text, "metadata": json.dumps(to_json(record)["metadata"]),
             "vector": record.vector and list(record.vector)}
            for record in records
        ]  # fmt: skip
        self._writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=self._schema))

    def close(self) -> None:
        self._writer.close()
