from __future__ import annotations

import pytest

from graft.folders import document_files
from retrieval.errors import InvalidDocument


def test_folder_gives_its_documents_in_order_and_nothing_hidden(tmp_path):
    outside = tmp_path / "outside.md"
    root = tmp_path / "root"
    for name in ("b.md", "a/z.PDF", "a/.hidden.md", ".git/x.md", "image.png", "c.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    outside.write_text("x")
    (root / "link.md").symlink_to(outside)
    assert [str(path.relative_to(root)) for path in document_files(root)] == ["a/z.PDF", "b.md", "c.txt"]


def test_file_named_directly_is_taken_whatever_its_suffix(tmp_path):
    path = tmp_path / "LICENSE"
    path.write_text("x")
    assert document_files(path) == [path]


def test_missing_path_and_empty_folder_are_named(tmp_path):
    with pytest.raises(InvalidDocument, match="absent' does not exist"):
        document_files(tmp_path / "absent")
    with pytest.raises(InvalidDocument, match="holds no document"):
        document_files(tmp_path)
