"""The folders of base segments: published whole or not at all, checked when opened, replaced atomically.

`segments/<version number>/<seq>/` holds one segment; `manifest.json` in it is written last and lists every
file with its size and checksum; `CURRENT` beside the folders names the one in use. A segment is a cache of a
prefix of the shard's log: whatever is torn, corrupt or another shard's is ignored and built again.

Publishing, any step of which may be the last before a crash: files into a hidden folder, fsync of each, the
manifest, fsync of the folder, rename, fsync of the parent, `CURRENT` by rename, fsync of the parent.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import IndexUnavailable, StorageFull

FORMAT = 1
MANIFEST_NAME = "manifest.json"
CURRENT_NAME = "CURRENT"
_HIDDEN = ".building"
_PAGE_BYTES = 4096
_READ_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a segment is, and what it must consist of."""

    version_id: str
    """The index version it is a part of."""
    seq: int
    """Log position it reflects."""
    mark: str
    """What the log holds at that position: tells the shard's own log from another's."""
    num_rows: int
    """Chunks in it."""
    dim: int
    """Numbers per vector."""
    kind: str
    """Structure of its vector base."""
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What its parts need to open again: parameters, measured recall."""
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    """By path within the folder: size in bytes and checksum."""


class SegmentFolders:
    """The segments of one index version of one shard."""

    def __init__(self, root: Path) -> None:
        """Use `root`, which need not exist yet."""
        self.root = root

    def publish(self, fill: Callable[[Path], Manifest]) -> tuple[Path, Manifest]:
        """Make a segment and return its folder; what was current stays until `collect`.

        Args:
            fill: Writes the files into the folder it is given and returns the manifest without `files`.

        Raises:
            StorageFull: The disk has no room; nothing was published.
            IndexUnavailable: The folder cannot be written; nothing was published.
        """
        hidden = self.root / f"{_HIDDEN}-{os.getpid()}"
        try:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.mkdir(parents=True)
            manifest = _sealed(hidden, fill(hidden))
            folder, attempt = self.root / str(manifest.seq), 0
            while folder.exists():  # Left by a death before `CURRENT` named it, or damaged since.
                attempt += 1
                folder = self.root / f"{manifest.seq}.{attempt}"
            os.rename(hidden, folder)
            _sync_folder(self.root)
            _replace(self.root / CURRENT_NAME, folder.name)
            _sync_folder(self.root)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"the disk that holds '{self.root}' is full; the index was not compacted and nothing is "
                    "lost: free some space and compact again"
                ) from error
            raise IndexUnavailable(
                f"the index segment in '{self.root}' cannot be written ({error.strerror or error}); "
                "nothing is lost: check the folder's rights and disk"
            ) from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        return folder, manifest

    def current(self, refuse: Callable[[Manifest], str | None]) -> tuple[Path, Manifest] | None:
        """Return the newest segment that is whole and ours; None when there is none.

        Args:
            refuse: Returns why a segment cannot be used, or None when it can.
        """
        for folder in self._candidates():
            try:
                manifest = _read_manifest(folder)
                reason = refuse(manifest) or _damage(folder, manifest)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = f"its manifest cannot be read ({error})"
            else:
                if reason is None:
                    return folder, manifest
            _log.warning("ignoring index segment '%s': %s; it will be built again", folder, reason)
        return None

    def is_empty(self) -> bool:
        """Return whether no segment was ever published here, or all were removed."""
        return not self._candidates()

    def collect(self, keep: Path | None) -> None:
        """Remove every segment but one; a mapped file stays readable until its reader lets go."""
        for folder in self._folders():
            if keep is None or folder.name != keep.name:
                # The manifest first: half a folder must not pass for a segment.
                with contextlib.suppress(OSError):
                    os.unlink(folder / MANIFEST_NAME)
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []

    def _candidates(self) -> list[Path]:
        """Return published folders, the current one first, then the newest."""
        folders = [path for path in self._folders() if not path.name.startswith(_HIDDEN)]
        try:
            current = (self.root / CURRENT_NAME).read_text().strip()
        except (OSError, ValueError):
            current = ""
        folders.sort(key=lambda path: (path.name == current, _order(path.name)), reverse=True)
        return folders


def checksum(path: Path) -> str:
    """Return a checksum of a file, fast enough to be taken at every opening.

    sha256 over the sums of each 4 KiB page's 64-bit words: any torn, zeroed, moved or flipped page changes
    it. It is no defence against someone who means to deceive.
    """
    digest = hashlib.sha256()
    block = memoryview(bytearray(_READ_BYTES))
    words = np.frombuffer(block, dtype="<u8")
    # Read, not mapped: a disk error is then an exception in place of a dead process.
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            padded = -(-count // _PAGE_BYTES) * _PAGE_BYTES
            block[count:padded] = bytes(padded - count)
            pages = words[: padded // 8].reshape(-1, _PAGE_BYTES // 8)
            digest.update(pages.sum(axis=1, dtype=np.uint64).tobytes())
    return digest.hexdigest()[:32]


def _sealed(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with every file listed, after all of them and it are on the disk."""
    files: dict[str, tuple[int, str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            _sync_folder(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = (path.stat().st_size, checksum(path))
    sealed = Manifest(**{**asdict(manifest), "files": files})
    body = json.dumps(asdict(sealed), sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    _write_synced(folder / MANIFEST_NAME, json.dumps({"format": FORMAT, "sha256": digest, "body": body}))
    _sync_folder(folder)
    return sealed


def _read_manifest(folder: Path) -> Manifest:
    sealed = json.loads((folder / MANIFEST_NAME).read_bytes())
    if sealed["format"] != FORMAT:
        raise ValueError(f"format {sealed['format']}, this release reads {FORMAT}")
    if hashlib.sha256(sealed["body"].encode()).hexdigest() != sealed["sha256"]:
        raise ValueError("its checksum does not match")
    values = json.loads(sealed["body"])
    files = {name: (int(size), str(digest)) for name, (size, digest) in values.pop("files").items()}
    return Manifest(**values, files=files)


def _damage(folder: Path, manifest: Manifest) -> str | None:
    """Return what is wrong with a segment's files, or None."""
    for name, (size, _) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"'{name}' is missing"
        if path.stat().st_size != size:
            return f"'{name}' has {path.stat().st_size:,} bytes, not {size:,}"
    for name, (_, digest) in manifest.files.items():
        if checksum(folder / name) != digest:
            return f"'{name}' is corrupt: its checksum does not match"
    return None


def _order(name: str) -> tuple[int, int]:
    seq, _, attempt = name.partition(".")
    return (int(seq) if seq.isdigit() else -1, int(attempt) if attempt.isdigit() else 0)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    _write_synced(temporary, text)
    os.replace(temporary, path)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
