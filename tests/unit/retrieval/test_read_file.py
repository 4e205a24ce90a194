"""Reading a file from disk: each failure names the file and the remedy."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from retrieval.errors import InvalidDocument
from retrieval.extraction import files
from retrieval.extraction.files import read_file


def test_bytes_come_back_whole(tmp_path: Path) -> None:
    data = os.urandom(3 * 1024 * 1024 + 17)
    (tmp_path / "a.bin").write_bytes(data)
    assert read_file(tmp_path / "a.bin", 2**30) == data


def test_missing_empty_large_and_odd_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "void").write_bytes(b"")
    (tmp_path / "big").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "pipe")
    for name, says in (
        ("gone", "does not exist"),
        ("void", r"empty \(0 bytes\)"),
        ("big", "above max_document_bytes=10"),
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
    ):
        with pytest.raises(InvalidDocument, match=says):
            read_file(tmp_path / name, 10)


def test_200_mb_file_is_refused_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.pdf"
    with path.open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    opened: list[io.BufferedReader] = []

    def open_and_keep(descriptor: int, mode: str) -> io.BufferedReader:
        opened.append(_Untouchable(io.FileIO(descriptor, mode)))
        return opened[0]

    monkeypatch.setattr(files.os, "fdopen", open_and_keep)
    with pytest.raises(InvalidDocument, match=r"209,715,200 bytes.*split the file"):
        read_file(path, 100 * 1024 * 1024)
    assert [file.closed for file in opened] == [True]


class _Untouchable(io.BufferedReader):
    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError(f"{size} bytes of a file that is refused were read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(InvalidDocument, match="permissions"):
        read_file(path, 10)


def test_path_that_escapes_its_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "library"
    inside.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    for path in (inside / ".." / "secret.txt", inside / "link.txt"):
        with pytest.raises(InvalidDocument, match="leads outside"):
            read_file(path, 100, root=inside)


@pytest.mark.parametrize(("change", "says"), [("delete", "deleted while"), ("grow", "changed while")])
def test_file_that_changes_while_being_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, says: str
) -> None:
    path = tmp_path / "moving.txt"
    path.write_bytes(b"x" * 100_000)
    real_fstat, calls = os.fstat, 0

    def fstat_then_disturb(descriptor: int) -> os.stat_result:
        nonlocal calls
        status = real_fstat(descriptor)
        calls += 1
        if calls == 1:  # The file was just opened and looked at.
            path.unlink() if change == "delete" else path.write_bytes(b"y" * 120_000)
        return status

    monkeypatch.setattr(files.os, "fstat", fstat_then_disturb)
    with pytest.raises(InvalidDocument, match=says):
        read_file(path, 10_000_000)
