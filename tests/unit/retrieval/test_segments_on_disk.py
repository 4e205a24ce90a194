"""Segment folders: whole or not there, whatever tears, rots, fills up or dies in the middle."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retrieval.errors import IndexUnavailable, StorageFull
from retrieval.shard.segments_on_disk import Manifest, SegmentFolders, checksum

FILES = {"matrix.f32": os.urandom(9001), "lexical/terms.bin": b"apple", "empty": b""}


def _fill(seq: int, files: dict[str, bytes] = FILES) -> Callable[[Path], Manifest]:
    def fill(folder: Path) -> Manifest:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return Manifest("v1", seq, f"mark-{seq}", 7, 3, "exact", {"recall": 0.99})

    return fill


def _accept(_: Manifest) -> None:
    return None


def _seq(folders: SegmentFolders) -> int | None:
    found = folders.current(_accept)
    if found is None:
        return None
    folder, manifest = found
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
    return manifest.seq


def test_published_segment_is_found_again_with_its_manifest(tmp_path: Path) -> None:
    folders = SegmentFolders(tmp_path / "segments" / "1")
    assert folders.current(_accept) is None
    folder, manifest = folders.publish(_fill(5))
    assert folder == tmp_path / "segments" / "1" / "5"
    assert folders.current(_accept) == (folder, manifest)
    assert manifest.details == {"recall": 0.99}
    assert set(manifest.files) == set(FILES)


def test_collect_keeps_one(tmp_path: Path) -> None:
    folders = SegmentFolders(tmp_path)
    folders.publish(_fill(1))
    (tmp_path / ".building-1-9").mkdir()
    folder, _ = folders.publish(_fill(2))
    again, _ = folders.publish(_fill(2))
    assert (folder.name, again.name) == ("2", "2.1")
    assert folders.current(_accept) == (again, folders.current(_accept)[1])  # pyright: ignore[reportOptionalSubscript]
    folders.collect(again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.1", "CURRENT"]
    folders.collect(None)
    assert _seq(folders) is None


def _tears() -> Iterator[tuple[str, Callable[[Path], object]]]:
    yield "truncated", lambda folder: os.truncate(folder / "matrix.f32", 4096)
    yield "grown", lambda folder: os.truncate(folder / "matrix.f32", 9002)
    yield "missing", lambda folder: (folder / "lexical/terms.bin").unlink()
    yield (
        "flipped bit",
        lambda folder: _write(folder / "matrix.f32", 8999, bytes([FILES["matrix.f32"][8999] ^ 1])),
    )
    yield "zeroed page", lambda folder: _write(folder / "matrix.f32", 4096, bytes(4096))
    yield (
        "swapped pages",
        lambda folder: _write(
            folder / "matrix.f32", 0, FILES["matrix.f32"][4096:8192] + FILES["matrix.f32"][:4096]
        ),
    )
    yield "no manifest", lambda folder: (folder / "manifest.json").unlink()
    yield "empty manifest", lambda folder: (folder / "manifest.json").write_bytes(b"")
    yield "half a manifest", lambda folder: os.truncate(folder / "manifest.json", 99)
    yield "binary manifest", lambda folder: (folder / "manifest.json").write_bytes(os.urandom(200))
    yield "list as manifest", lambda folder: (folder / "manifest.json").write_text("[1, 2]")
    yield "newer format", lambda folder: (folder / "manifest.json").write_text('{"format": 99}')
    yield (
        "edited manifest",
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace("mark-2", "mark-3")
        ),
    )


def _write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(("name", "tear"), list(_tears()), ids=[name for name, _ in _tears()])
def test_damage_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, name: str, tear: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    folders = SegmentFolders(tmp_path)
    folders.publish(_fill(1))
    folder, _ = folders.publish(_fill(2))
    tear(folder)
    assert _seq(folders) == 1
    assert len(caplog.records) == 1
    assert str(folder) in caplog.text
    shutil.rmtree(tmp_path / "1")
    assert _seq(folders) is None


def test_foreign_segment_is_refused_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = SegmentFolders(tmp_path)
    folders.publish(_fill(2))
    assert folders.current(lambda manifest: f"it is of {manifest.version_id}, not v2") is None
    assert "it is of v1, not v2" in caplog.text


def test_stray_files_and_lost_pointer_do_no_harm(tmp_path: Path) -> None:
    folders = SegmentFolders(tmp_path)
    folders.publish(_fill(9))
    folders.publish(_fill(10))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "not a number").mkdir()
    assert _seq(folders) == 10
    (tmp_path / "CURRENT").write_bytes(b"\xff\xfe nothing")
    assert _seq(folders) == 10
    (tmp_path / "CURRENT").unlink()
    assert _seq(folders) == 10


_STEPS = ("fsync", "rename", "replace", "unlink")


def _publish_until(root: Path, step: int, after: bool) -> bool:
    """Publish and collect in a child that dies at a step; return whether it lived to the end."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(function: Callable) -> Callable:
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == step and not after:
                    os._exit(9)
                result = function(*args, **kwargs)
                if count == step:
                    os._exit(9)
                return result

            return call

        for name in _STEPS:
            setattr(os, name, dying(getattr(os, name)))
        folders = SegmentFolders(root)
        folder, _ = folders.publish(_fill(2))
        folders.collect(folder)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("after", [False, True])
def test_death_between_any_two_steps_leaves_a_whole_segment(tmp_path: Path, after: bool) -> None:
    outcomes = []
    for step in range(1, 200):
        root = tmp_path / str(step)
        folders = SegmentFolders(root)
        folders.publish(_fill(1))
        lived = _publish_until(root, step, after)
        outcomes.append(_seq(folders))
        folder, _ = folders.publish(_fill(3))  # And it goes on as if nothing had been.
        folders.collect(folder)
        assert _seq(folders) == 3
        assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == [
            "3",
            "CURRENT",
        ]
        if lived:
            break
    else:
        pytest.fail("publishing never came to its end")
    assert set(outcomes) == {1, 2}
    assert outcomes == sorted(outcomes)  # Once the new one answers, no later death brings the old one back.
    assert len(outcomes) > 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_publishes_nothing_and_leaves_no_rest(small_disk: Path) -> None:
    folders = SegmentFolders(small_disk / "segments")
    folders.publish(_fill(1))
    with pytest.raises(StorageFull, match=r"is full; the index was not compacted and nothing is lost"):
        folders.publish(_fill(2, {"big": os.urandom(2_000_000)}))
    assert _seq(folders) == 1
    assert sorted(path.name for path in folders.root.iterdir()) == ["1", "CURRENT"]
    folders.publish(_fill(3))
    assert _seq(folders) == 3


def test_folder_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = SegmentFolders(tmp_path)
    folders.publish(_fill(1))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(IndexUnavailable, match="cannot be written \\(Read-only file system\\)"):
        folders.publish(_fill(2))
    assert _seq(folders) == 1


def test_checksum_tells_sizes_apart(tmp_path: Path) -> None:
    sums = set()
    for number, data in enumerate(
        (b"", b"\0", b"a", b"a\0", b"ab", bytes(4096), bytes(5000), bytes(3_000_000))
    ):
        path = tmp_path / str(number)
        path.write_bytes(data)
        sums.add((path.stat().st_size, checksum(path)))
    assert len(sums) == 8
