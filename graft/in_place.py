"""Files that a client names and the platform reads where they are.

Three things must hold, or the client sends the files instead: the caller is the owner, by the platform's
token or as a process of the same user on this machine; a file lies in a folder meant for it, none hidden; and
what is at its path here is what the client sees there, by size and time of change: the machines may be two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.access import Access
from graft.errors import NotInPlace
from graft.peer import Address, is_own_process
from retrieval.ingestion.bulk import SourceFile


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file of this machine as a client sees it."""

    name: str
    """Its document's name."""
    path: str
    """Its absolute path."""
    num_bytes: int
    """Its size."""
    modified_ns: int
    """When it was changed last, in nanoseconds of Unix time."""


def named(file: SourceFile) -> NamedFile:
    """Return a file as it is now; raises OSError where it cannot be seen."""
    path = file.path.absolute()
    seen = path.stat()
    return NamedFile(file.name, str(path), seen.st_size, seen.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class InPlace:
    """Decides which files may be read in place, and for whom."""

    access: Access
    """Who may call at all."""
    folders: tuple[Path, ...]
    """Folders that hold files meant for it."""

    def check_caller(self, client: Address | None, server: Address | None) -> None:
        """Raise NotInPlace unless the caller is the platform's owner.

        A caller who passed a platform with a token showed the token.
        """
        if self.access.token is not None:
            return
        if client is None or server is None or not is_own_process(client, server):
            raise NotInPlace(
                "files are read in place only for the user who runs the platform, on the same Linux machine; "
                "set GRAFT_TOKEN on both sides to show who you are in another way"
            )

    def files(self, given: Sequence[NamedFile]) -> list[SourceFile]:
        """Return the files as the platform reads them: links followed.

        Raises:
            NotInPlace: One is not here, is another one here, or is not meant to be read.
        """
        roots = [folder.resolve() for folder in self.folders]
        return [self._file(one, roots) for one in given]

    def _file(self, given: NamedFile, roots: Sequence[Path]) -> SourceFile:
        # Where a file may not be read, nothing is told of whether it is there.
        try:
            path = Path(given.path).resolve()
        except (OSError, RuntimeError, ValueError):
            path = None
        root = next((root for root in roots if path and path.is_relative_to(root)), None)
        if path is None or root is None or not Path(given.path).is_absolute():
            raise NotInPlace(
                f"'{given.path}' lies in none of server.ingest_folders ({', '.join(map(str, roots))}); "
                "add its folder there to have it read in place"
            )
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            raise NotInPlace(f"'{given.path}' is hidden, and hidden files are not read in place")
        try:
            seen = path.stat()
        except OSError as error:
            raise NotInPlace(
                f"'{given.path}' cannot be read by the platform ({error.strerror}); it may run elsewhere"
            ) from error
        if (seen.st_size, seen.st_mtime_ns) != (given.num_bytes, given.modified_ns):
            raise NotInPlace(
                f"'{given.path}' is not the same file for the platform, which may run elsewhere, "
                "or it changed just now"
            )
        return SourceFile(given.name, path)
