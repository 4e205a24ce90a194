"""One suite over every `DocumentStore`: the fake, the one-process form and the actor form."""

from __future__ import annotations

import pytest

from retrieval.errors import InvalidDocument, UnknownDocument
from retrieval.types import DocumentState, DocumentStore, SearchRequest

WAIT_S = 60.0


async def _add(store: DocumentStore, name: str, text: str, **where: str) -> str:
    document = await store.add(name, text.encode(), **where)
    owner = {"tenant": where["tenant"]} if "tenant" in where else {}
    (document,) = await store.wait_ready([document.document_id], timeout_s=WAIT_S, **owner)
    assert document.state is DocumentState.READY, document.error
    return document.document_id


async def test_added_document_becomes_ready_and_readable(store: DocumentStore) -> None:
    document_id = await _add(store, "note.txt", "Paged attention cuts waste.")
    document = await store.document(document_id)
    assert (document.name, document.library, document.num_bytes) == ("note.txt", "default", 27)
    assert document.num_chunks == 1
    assert (await store.text(document_id)).text == "Paged attention cuts waste."
    assert await store.content(document_id) == b"Paged attention cuts waste."


async def test_unchanged_bytes_are_a_no_op(store: DocumentStore) -> None:
    document_id = await _add(store, "note.txt", "the same words")
    before = await store.document(document_id)
    assert await store.add("note.txt", b"the same words") == before


async def test_changed_bytes_replace_under_the_same_id(store: DocumentStore) -> None:
    first = await _add(store, "note.txt", "alpha words")
    second = await _add(store, "note.txt", "beta words")
    assert first == second
    assert (await store.text(second)).text == "beta words"
    assert await store.content(second) == b"beta words"
    assert len(await store.documents()) == 1


async def test_documents_are_ordered_by_name_and_filtered_by_library(store: DocumentStore) -> None:
    for name, library in (("b.txt", "one"), ("c.txt", "two"), ("a.txt", "two")):
        await _add(store, name, f"text of {name}", library=library)
    assert [document.name for document in await store.documents()] == ["a.txt", "b.txt", "c.txt"]
    assert [document.name for document in await store.documents(library="two")] == ["a.txt", "c.txt"]
    assert await store.documents(library="three") == []


async def test_libraries_count_documents_and_chunks(store: DocumentStore) -> None:
    for name, library in (("b.txt", "one"), ("c.txt", "two"), ("a.txt", "two")):
        await _add(store, name, f"text of {name}", library=library)
    libraries = await store.libraries()
    assert [(one.name, one.num_documents, one.num_ready, one.num_chunks) for one in libraries] == [
        ("one", 1, 1, 1),
        ("two", 2, 2, 2),
    ]


async def test_deleted_document_is_unknown_everywhere(store: DocumentStore) -> None:
    document_id = await _add(store, "note.txt", "gone soon")
    await store.delete(document_id)
    for read in (store.document, store.text, store.content, store.delete):
        with pytest.raises(UnknownDocument):
            await read(document_id)
    assert await store.documents() == []
    assert await store.libraries() == []


async def test_other_tenants_documents_are_unknown(store: DocumentStore) -> None:
    document_id = await _add(store, "note.txt", "mine alone", tenant="mine")
    for read in (store.document, store.text, store.content, store.delete):
        with pytest.raises(UnknownDocument):
            await read(document_id, tenant="yours")
    assert await store.documents(tenant="yours") == []
    assert await store.libraries(tenant="yours") == []
    assert (await store.text(document_id, tenant="mine")).text == "mine alone"


async def test_same_name_in_two_tenants_and_libraries_is_three_documents(store: DocumentStore) -> None:
    ids = {
        await _add(store, "note.txt", "one", tenant="a"),
        await _add(store, "note.txt", "two", tenant="b"),
        await _add(store, "note.txt", "three", tenant="a", library="other"),
    }
    assert len(ids) == 3


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "../x.txt", "a\\b.txt", "/etc/passwd", "a//b.txt", "a/./b", "x\0.txt", "a\nb",
     "n" * 300, "n/" * 600 + "n"],
)  # fmt: skip
async def test_name_that_points_elsewhere_or_cannot_be_shown_is_refused(
    store: DocumentStore, name: str
) -> None:
    with pytest.raises(InvalidDocument, match="name"):
        await store.add(name, b"text")
    with pytest.raises(InvalidDocument, match="library"):
        await store.add("x.txt", b"text", library=name)
    assert await store.documents() == []


async def test_files_of_one_name_in_two_folders_are_two_documents(store: DocumentStore) -> None:
    await _add(store, "2023/notes.txt", "one")
    await _add(store, "2024/notes.txt", "two")
    assert [document.name for document in await store.documents()] == ["2023/notes.txt", "2024/notes.txt"]
    with pytest.raises(InvalidDocument, match="library"):
        await store.add("x.txt", b"text", library="a/b")


async def test_name_with_unusual_but_printable_characters_is_kept(store: DocumentStore) -> None:
    name = "Bildschirmfoto 10.00\u202fPM \xa0 \U0001f600 (1).txt"
    document_id = await _add(store, name, "words")
    assert (await store.document(document_id)).name == name


async def test_empty_file_is_refused_by_name(store: DocumentStore) -> None:
    with pytest.raises(InvalidDocument, match=r"'void\.txt' is empty"):
        await store.add("void.txt", b"")


async def test_too_large_file_is_refused_with_limit_and_remedy(store: DocumentStore) -> None:
    with pytest.raises(InvalidDocument, match=r"'big\.txt' has .* max_document_bytes=104,857,600; split"):
        await store.add("big.txt", bytes(200 * 1024 * 1024))
    assert await store.documents() == []


async def test_wait_ready_of_unknown_document_says_so(store: DocumentStore) -> None:
    with pytest.raises(UnknownDocument, match="no document 'nope'"):
        await store.wait_ready(["nope"], timeout_s=WAIT_S)


async def test_added_text_is_found_and_deleted_text_is_not(store: DocumentStore) -> None:
    keep = await _add(store, "keep.txt", "zebras graze on grass")
    drop = await _add(store, "drop.txt", "zebras are striped")
    request = SearchRequest("zebras", k=10)
    (result,) = await store.search([request])  # pyright: ignore[reportAttributeAccessIssue]
    assert {passage.document_id for passage in result.passages} == {keep, drop}
    await store.delete(drop)
    (result,) = await store.search([request])  # pyright: ignore[reportAttributeAccessIssue]
    assert {passage.document_id for passage in result.passages} == {keep}
