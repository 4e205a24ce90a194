"""Small JSON files that survive a crash: a reader sees the old content or the new, never half of either."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from retrieval.errors import IndexUnavailable, StorageFull


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace the file; when this returns the new content is on the disk.

    Raises:
        StorageFull: The disk has no room; the old content is untouched.
        IndexUnavailable: The folder cannot be written to; the old content is untouched.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else IndexUnavailable
        raise kind(
            f"'{path}' cannot be written ({error.strerror}); nothing was changed: check its disk and rights"
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the content; None where there is no such file.

    Raises:
        IndexUnavailable: The file is not one of ours.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IndexUnavailable(f"'{path}' cannot be read ({error.strerror}); check its rights") from error
    except ValueError as error:
        raise IndexUnavailable(f"'{path}' is damaged ({error}); restore it from a snapshot") from error
    if not isinstance(value, dict):
        raise IndexUnavailable(f"'{path}' is not one of ours; use another data folder")
    return value


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
