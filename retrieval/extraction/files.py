"""Reading a file from disk for ingestion, with errors a person can act on."""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path

from retrieval.errors import InvalidDocument

_BLOCK_BYTES = 1024 * 1024
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
_UNNAMEABLE = ("Cc", "Cs", "Zl", "Zp")  # Control characters, half characters, line and paragraph ends.


def check_name(name: str, *, what: str = "file name") -> str:
    """Return `name` when it is a plain name: no folders, no control characters, at most 255 bytes.

    Raises:
        InvalidDocument: It is not.
    """
    if not name or not name.strip():
        raise InvalidDocument(f"the {what} is empty; give one such as 'report.pdf'")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise InvalidDocument(
            f"the {what} {name!r} points to a folder; give a plain name without '/' or '\\'"
        )
    if any(unicodedata.category(character) in _UNNAMEABLE for character in name):
        raise InvalidDocument(f"the {what} {name!r} holds characters that cannot be shown; rename it")
    num_bytes = len(name.encode("utf-8", "surrogatepass"))
    if num_bytes > _MAX_NAME_BYTES:
        raise InvalidDocument(
            f"the {what} {name[:40]!r}... is {num_bytes} bytes long, above the limit of {_MAX_NAME_BYTES}; "
            "shorten it"
        )
    return name


def check_path_name(name: str, *, what: str = "file name") -> str:
    """Return `name` when it is a plain name, or plain names joined by '/' such as `2024/report.pdf`.

    It names a document, never a place on a disk; all the same it cannot point upwards or to a root.

    Raises:
        InvalidDocument: It is not, or is longer than 1,024 bytes.
    """
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_PATH_BYTES:
        raise InvalidDocument(
            f"the {what} {name[:40]!r}... is above the limit of {_MAX_PATH_BYTES:,} bytes; shorten it"
        )
    for part in name.split("/"):
        if part in ("", ".", "..") and part != name:
            raise InvalidDocument(
                f"the {what} {name!r} points to a folder; give one such as 'report.pdf' or '2024/report.pdf'"
            )
        check_name(part, what=what)
    return name


def read_file(
    path: str | os.PathLike[str], max_bytes: int, *, root: str | os.PathLike[str] | None = None
) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`.

    Args:
        path: The file.
        max_bytes: Largest size accepted; checked before reading and while reading, since a file can grow.
        root: When given, the file must lie inside this folder after links are followed.

    Raises:
        InvalidDocument: It is missing, a folder or a device, not permitted, empty, too large, outside
            `root`, or it changed or vanished while being read.
    """
    path = Path(path)
    try:
        if root is not None and not path.resolve(strict=True).is_relative_to(Path(root).resolve(strict=True)):
            raise InvalidDocument(
                f"'{path}' leads outside the folder '{root}'; copy the file into it or name it directly"
            )
        # O_NONBLOCK: opening a named pipe must not wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise _not_a_file(path)
            if before.st_size > max_bytes:
                raise _too_large(path, before.st_size, max_bytes)
            blocks, num_bytes = [], 0
            while block := file.read(_BLOCK_BYTES):
                num_bytes += len(block)
                if num_bytes > max_bytes:
                    raise _too_large(path, num_bytes, max_bytes)
                blocks.append(block)
            after = os.fstat(descriptor)
    except FileNotFoundError as error:
        raise InvalidDocument(
            f"'{path}' does not exist or was removed; check the path and try again"
        ) from error
    except IsADirectoryError as error:
        raise _not_a_file(path) from error
    except PermissionError as error:
        raise InvalidDocument(f"'{path}' may not be read by this user; change its permissions") from error
    except OSError as error:
        raise InvalidDocument(
            f"'{path}' could not be read ({error.strerror or error}); check the disk"
        ) from error
    if after.st_nlink == 0:
        raise InvalidDocument(f"'{path}' was deleted while it was being read; put it back and add it again")
    if (before.st_size, before.st_mtime_ns) != (
        after.st_size,
        after.st_mtime_ns,
    ) or num_bytes != after.st_size:
        raise InvalidDocument(
            f"'{path}' changed while it was being read; wait until it is written and add it again"
        )
    if num_bytes == 0:
        raise InvalidDocument(f"'{path}' is empty (0 bytes); add a file with text")
    return b"".join(blocks)


def _not_a_file(path: Path) -> InvalidDocument:
    return InvalidDocument(f"'{path}' is not a regular file; give a file, not a folder or a device")


def _too_large(path: Path, num_bytes: int, max_bytes: int) -> InvalidDocument:
    return InvalidDocument(
        f"'{path}' has {num_bytes:,} bytes or more, above max_document_bytes={max_bytes:,}; "
        "split the file or raise the limit"
    )
