"""Files that are there whole or not at all, whatever kills the process that writes them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

PARTIAL_SUFFIX = ".partial"
"""Ends the names of files and folders that were not finished; whoever owns a folder may delete them."""


def partial_path(path: Path) -> Path:
    """Return a name beside a path that no other writer uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")


def write_durably(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under another name, flush it to disk and rename it into place.

    Args:
        path: Replaced when it exists.
        write: Puts the bytes into the open file.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def rename_durably(partial: Path, path: Path) -> None:
    """Flush every file of a finished folder to disk and rename it into place, where nothing may be."""
    for file in partial.rglob("*"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    partial.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
