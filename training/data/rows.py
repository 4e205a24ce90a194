"""Rows of data files, plain or xz-compressed: every complaint about one names its file and line.

One way to open and to check for all readers: a field that is missing, empty or of the wrong type is a
`DataError` with the place it stands at, never a `KeyError` halfway through a run.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import DataError, DataMissingError
from training.pretraining.corpus import open_lines

_DAMAGED = (UnicodeDecodeError, lzma.LZMAError, EOFError)


@dataclass(frozen=True, slots=True)
class Row:
    """A JSON object and where it stands."""

    place: str
    """`FILE:LINE` of a JSON-lines file, `FILE: path[index]` of a file that is one JSON value."""
    fields: dict[str, Any]
    """As parsed."""

    @classmethod
    def of(cls, value: object, place: str) -> Row:
        """Return the row of a parsed value.

        Raises:
            DataError: It is no JSON object.
        """
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected a JSON object, got {_shown(value)}")
        return cls(place, value)

    def error(self, message: str) -> DataError:
        """Return an error that names this row."""
        return DataError(f"{self.place}: {message}")

    def text(self, key: str) -> str:
        """Return a text without surrounding space; it must be there and not be empty."""
        text = self.optional_text(key)
        if not text:
            raise self.error(f"field '{key}' is missing or empty")
        return text

    def optional_text(self, key: str) -> str:
        """Return a text without surrounding space; empty where it is absent or null."""
        value = self.fields.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(f"field '{key}' must be a text, got {_shown(value)}")
        return value.strip()

    def identifier(self, key: str) -> str:
        """Return an id as text; whole numbers are ids too."""
        value = self.fields.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the distinct non-empty texts of a list, in order; empty where it is absent or null."""
        texts = self.items(key, required=False)
        if not all(isinstance(text, str) for text in texts):
            raise self.error(f"field '{key}' must be a list of texts, got {_shown(texts)}")
        return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self.fields.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"field '{key}' must be true or false, got {_shown(value)}")
        return value

    def items(self, key: str, *, required: bool = True) -> list[Any]:
        """Return a list as it is."""
        value = self.fields.get(key)
        if value is None and not required:
            return []
        if not isinstance(value, list):
            raise self.error(f"field '{key}' must be a list, got {_shown(value)}")
        return value

    def rows(self, key: str, *, required: bool = True) -> Iterator[Row]:
        """Yield the objects of a list as rows that know their index."""
        inner = f"{self.place}." if self.place.endswith("]") else f"{self.place}: "
        for index, value in enumerate(self.items(key, required=required)):
            yield Row.of(value, f"{inner}{key}[{index}]")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (`FILE:LINE`, line) of the lines that are not blank.

    Raises:
        DataMissingError: The file is not there.
        DataError: It is no UTF-8, or its compressed bytes are damaged.
    """
    if not path.is_file():
        raise DataMissingError(path)
    number = 0
    try:
        for line in open_lines(path) if path.suffix == ".xz" else _plain_lines(path):
            number += 1
            if line.strip():
                yield f"{path}:{number}", line
    except _DAMAGED as error:
        raise DataError(f"{path}:{number + 1}: cannot be read further: {error}") from error


def _plain_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        yield from lines


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the objects of a JSON-lines file.

    Raises:
        DataMissingError: The file is not there.
        DataError: A line is no JSON object; the message names it.
    """
    for place, line in numbered_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
        yield Row.of(value, place)


def read_json(path: Path) -> Any:
    """Return the one JSON value that a file holds.

    Raises:
        DataMissingError: The file is not there.
        DataError: It is not JSON; the message names the line.
    """
    if not path.is_file():
        raise DataMissingError(path)
    try:
        raw = path.read_bytes()
        text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8")
    except _DAMAGED as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
