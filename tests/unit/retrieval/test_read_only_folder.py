"""A shard in a folder that cannot be written: refused with the cause and the remedy, and left as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from retrieval.config import RetrievalConfig
from retrieval.errors import IndexUnavailable
from retrieval.shard.shard import Shard

MOUNT = ["mount", "-t", "tmpfs", "tmpfs"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder, and what makes it read-only: root may write wherever the file system lets anyone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        yield folder, lambda: folder.chmod(0o555)
        folder.chmod(0o755)
        return
    if subprocess.run([*MOUNT, folder], capture_output=True, check=False).returncode != 0:
        pytest.skip("root needs the right to mount a folder that it may not write")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,ro", folder], check=True) and None
    subprocess.run(["umount", folder], check=True)


def test_new_shard_in_a_read_only_folder_is_refused(disk: tuple[Path, Callable[[], None]]) -> None:
    folder, make_read_only = disk
    make_read_only()
    with pytest.raises(
        IndexUnavailable, match=rf"'{folder}/index' cannot be used \(.*check its disk and rights"
    ):
        Shard(folder / "index", RetrievalConfig())
    assert list(folder.iterdir()) == []


def test_shard_whose_folder_became_read_only_is_refused_and_kept(
    disk: tuple[Path, Callable[[], None]],
) -> None:
    folder, make_read_only = disk
    with closing(Shard(folder, RetrievalConfig())) as shard:
        shard.add("a.txt", b"apple", "default", "default")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    make_read_only()
    with pytest.raises(IndexUnavailable, match=f"'{folder}"):
        Shard(folder, RetrievalConfig())
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
