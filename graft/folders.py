"""Which files of a folder are documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from retrieval.errors import InvalidDocument
from retrieval.ingestion.bulk import SourceFile

DOCUMENT_SUFFIXES = frozenset(
    (".pdf", ".docx", ".html", ".htm", ".xhtml", ".md", ".markdown", ".txt", ".text", ".rst")
)
"""Taken from a folder; a file named directly is taken whatever its suffix."""


def document_name(path: Path, root: Path) -> str:
    """Return the name of a document taken from `root`: its path below it, or the name of a file itself."""
    return path.name if path == root else path.relative_to(root).as_posix()


def document_files(path: Path) -> list[Path]:
    """Return a file itself, or the documents of a folder and its subfolders in order of path.

    Hidden files and folders are left out, and so are links that lead out of the folder.

    Raises:
        InvalidDocument: The path does not exist, or the folder holds no document.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidDocument(f"'{path}' does not exist; check the path")
    root = path.resolve()
    found = [
        item
        for item in sorted(path.rglob("*"))
        if item.suffix.lower() in DOCUMENT_SUFFIXES
        and item.is_file()
        and item.resolve().is_relative_to(root)
        and not any(part.startswith(".") for part in item.relative_to(path).parts)
    ]
    if not found:
        raise InvalidDocument(
            f"the folder '{path}' holds no document; documents end in {', '.join(sorted(DOCUMENT_SUFFIXES))}"
        )
    return found


def source_files(roots: Iterable[Path]) -> list[SourceFile]:
    """Return the documents of files and folders under their names.

    Raises:
        InvalidDocument: A path does not exist, or a folder holds no document.
    """
    return [SourceFile(document_name(path, root), path) for root in roots for path in document_files(root)]
