"""Whose files, and which of them, a platform reads where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from graft.access import Access
from graft.errors import NotInPlace
from graft.in_place import InPlace, NamedFile, named
from retrieval.ingestion.bulk import SourceFile

ENDS = ("127.0.0.1", 40_000), ("127.0.0.1", 7_860)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / ".private").mkdir(parents=True)
    for path in (folder / "a.txt", folder / ".private" / "key.txt", tmp_path / "outside.txt"):
        path.write_text("words", encoding="utf-8")
    return folder


def seen(path: Path) -> NamedFile:
    return named(SourceFile("name", path))


def test_a_file_of_the_folder_is_read_with_links_followed(docs: Path) -> None:
    (docs / "link.txt").symlink_to(docs / "a.txt")
    rule = InPlace(Access(), (docs,))
    assert rule.files([seen(docs / "a.txt"), seen(docs / "link.txt")]) == [
        SourceFile("name", docs / "a.txt"),
        SourceFile("name", docs / "a.txt"),
    ]


def test_what_is_outside_hidden_or_reached_by_a_way_out_is_refused(docs: Path) -> None:
    (docs / "out.txt").symlink_to(docs.parent / "outside.txt")
    (docs / "shown.txt").symlink_to(docs / ".private" / "key.txt")
    rule = InPlace(Access(), (docs,))
    for path, words in (
        (docs.parent / "outside.txt", "none of server.ingest_folders"),
        (docs / "out.txt", "none of server.ingest_folders"),
        (docs / ".." / "outside.txt", "none of server.ingest_folders"),
        (docs / ".private" / "key.txt", "hidden"),
        (docs / "shown.txt", "hidden"),
    ):
        with pytest.raises(NotInPlace, match=words):
            rule.files([seen(docs / "a.txt"), seen(path)])


def test_a_path_outside_tells_nothing_of_what_is_there(docs: Path) -> None:
    rule = InPlace(Access(), (docs,))
    told = []
    for name in ("outside.txt", "absent.txt"):
        with pytest.raises(NotInPlace) as raised:
            rule.files([NamedFile("name", str(docs.parent / name), 1, 1)])
        told.append(str(raised.value).replace(name, ""))
    assert told[0] == told[1]


@pytest.mark.parametrize("path", ["a.txt", "docs/a.txt", "", "\0", "/"])
def test_a_path_that_is_no_file_of_this_machine_is_refused(
    docs: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(docs)
    with pytest.raises(NotInPlace):
        InPlace(Access(), (docs,)).files([NamedFile("name", path, 5, 1)])


def test_a_file_that_is_another_one_here_is_refused(docs: Path) -> None:
    rule, given = InPlace(Access(), (docs,)), seen(docs / "a.txt")
    for other in (replace(given, num_bytes=6), replace(given, modified_ns=given.modified_ns + 1)):
        with pytest.raises(NotInPlace, match="not the same file"):
            rule.files([other])
    (docs / "a.txt").unlink()
    with pytest.raises(NotInPlace, match="may run elsewhere"):
        rule.files([given])


def test_the_token_shows_the_owner_and_an_unknown_caller_is_refused() -> None:
    InPlace(Access("secret"), ()).check_caller(("203.0.113.9", 40_000), ENDS[1])
    for client, server in ((None, None), (("203.0.113.9", 40_000), ENDS[1]), (("testclient", 1), ENDS[1])):
        with pytest.raises(NotInPlace, match="same Linux machine"):
            InPlace(Access(), ()).check_caller(client, server)
