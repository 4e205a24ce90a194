"""Every kind of file we read, and every bad one we refuse by name, limit and remedy."""

from __future__ import annotations

import io
import zipfile

import pytest
from docx import Document as Docx
from fpdf import FPDF

from retrieval.config import RetrievalConfig
from retrieval.errors import UnreadableDocument
from retrieval.extraction import media_types
from retrieval.extraction.readers import read

CONFIG = RetrievalConfig()


def pdf_bytes(*pages: str, password: str | None = None) -> bytes:
    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    for page in pages:
        pdf.add_page()
        pdf.multi_cell(0, 8, page)
    if password:
        pdf.set_encryption(owner_password="owner", user_password=password)
    return bytes(pdf.output())


def docx_bytes(*paragraphs: str) -> bytes:
    docx = Docx()
    docx.add_heading("The heading", level=1)
    for paragraph in paragraphs:
        docx.add_paragraph(paragraph)
    table = docx.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "left cell", "right cell"
    buffer = io.BytesIO()
    docx.save(buffer)
    return buffer.getvalue()


def refusal(name: str, data: bytes, config: RetrievalConfig = CONFIG) -> str:
    with pytest.raises(UnreadableDocument) as caught:
        read(name, data, config)
    assert name in str(caught.value)
    return str(caught.value)


def test_pdf_text_comes_with_page_starts() -> None:
    media_type, document = read("a.pdf", pdf_bytes("First page words.", "Second page words."), CONFIG)
    assert media_type == media_types.PDF
    assert document.text == "First page words.\n\nSecond page words."
    assert document.page_starts == (0, 19)
    assert [document.page_at(document.text.index(word)) for word in ("First", "Second")] == [1, 2]


def test_pdf_is_known_by_its_bytes() -> None:
    assert read("a.txt", pdf_bytes("Words."), CONFIG)[0] == media_types.PDF


def test_encrypted_pdf_is_refused_with_remedy() -> None:
    assert "encrypted PDF; remove its password" in refusal("locked.pdf", pdf_bytes("x", password="pw"))


def test_pdf_without_text_layer_is_called_scanned() -> None:
    pdf = FPDF()
    pdf.add_page()
    pdf.rect(10, 10, 50, 50, style="F")
    assert "without a text layer (scanned?); run OCR" in refusal("scan.pdf", bytes(pdf.output()))


@pytest.mark.parametrize("cut", [20, 200, 600])
def test_malformed_pdf_is_refused(cut: int) -> None:
    assert "malformed PDF" in refusal("torn.pdf", pdf_bytes("Words.")[:cut])


def test_bytes_that_only_claim_to_be_pdf_are_refused() -> None:
    assert "malformed PDF" in refusal("fake.pdf", b"no pdf at all, only words")


def test_pdf_with_too_many_pages_is_refused_by_the_limit() -> None:
    assert "2 pages, above max_pages=1" in refusal(
        "long.pdf", pdf_bytes("a", "b"), RetrievalConfig(max_pages=1)
    )


def test_docx_paragraphs_and_tables_become_plain_text() -> None:
    media_type, document = read("a.docx", docx_bytes("Star * and under_score stay.", "Second."), CONFIG)
    assert media_type == media_types.DOCX
    assert document.text == (
        "The heading\n\nStar * and under_score stay.\n\nSecond.\n\nleft cell | right cell"
    )
    assert document.page_starts == ()


def test_zip_bomb_docx_is_refused_before_it_is_unpacked() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", b"\0" * (300 * 1024 * 1024))
    message = refusal("bomb.docx", buffer.getvalue())
    assert "zip bomb" in message
    assert "max_expanded_bytes" in message


def test_zip_that_lies_about_its_size_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * (8 * 1024 * 1024))
    data = bytearray(buffer.getvalue())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        data[at : at + 4] = (1000).to_bytes(4, "little")
    assert "malformed DOCX" in refusal("liar.docx", bytes(data))


def test_zip_that_is_no_docx_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "words")
    assert "without word/document.xml" in refusal("a.docx", buffer.getvalue())
    assert "a zip archive" in refusal("a.zip", buffer.getvalue())


@pytest.mark.parametrize(
    "document", ["<w:document", "<html/>", "<!DOCTYPE x [<!ENTITY a 'b'>]><w:document>&a;"]
)
def test_docx_with_broken_xml_is_refused(document: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", document)
    assert "a.docx" in refusal("a.docx", buffer.getvalue())


def test_torn_docx_is_refused() -> None:
    assert "malformed DOCX" in refusal("torn.docx", docx_bytes("words")[:-100])


def test_docx_bytes_that_are_an_old_word_file_are_refused() -> None:
    assert "old Office file" in refusal("old.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))


def test_html_is_read_as_a_person_would_see_it() -> None:
    page = """<!doctype html><html><head><title>Site</title><style>p{color:red}</style></head><body>
      <h1>Heads  up</h1><script>steal()</script><p>One <b>bold</b> word &amp; a_b*c.</p>
      <img src="https://example.org/x.png" alt="picture"><p hidden>unseen</p><!-- note -->
      <div style="display: none">unseen</div><ul><li>first</li><li><p>second</p></li></ul>
      <table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>
      <pre>x = 1\n  y = 2</pre></body></html>"""
    media_type, document = read("page", page.encode(), CONFIG)
    assert media_type == media_types.HTML
    assert document.text == (
        "Site\n\nHeads up\n\nOne bold word & a_b*c.\n\n- first\n- second\n\na | b\nc | d\n\nx = 1\n  y = 2"
    )


def test_deeply_nested_html_is_read_without_recursion() -> None:
    text = read("deep.html", b"<div>" * 20_000 + b"core" + b"</div>" * 20_000, CONFIG)[1].text
    assert text == "core"


def test_html_charset_is_taken_from_its_declaration_unless_it_is_wrong() -> None:
    body = "<meta charset=iso-8859-1><p>Grüße aus Köln</p>"
    assert read("a.html", body.encode("latin-1"), CONFIG)[1].text == "Grüße aus Köln"
    wrong = "<meta charset=ascii><p>Grüße aus Köln</p>"
    assert read("a.html", wrong.encode(), CONFIG)[1].text == "Grüße aus Köln"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "shift_jis"]
)
def test_text_in_a_wrong_encoding_is_still_read(encoding: str) -> None:
    german = "Die Größe der Straße überrascht Jörg, müde vom Frühstück. " * 5
    japanese = "これは日本語の文章です。検索できるはずです。" * 5
    text = japanese if encoding == "shift_jis" else german
    data = text.encode(encoding)
    if encoding == "utf-16-le":
        data = b"\xff\xfe" + data
    assert read("a.txt", data, CONFIG)[1].text.strip() == text.strip()


def test_markdown_is_kept_as_written() -> None:
    media_type, document = read("a.md", b"# Title\r\n\r\n* item_one\r\n", CONFIG)
    assert media_type == media_types.MARKDOWN
    assert document.text == "# Title\n\n* item_one\n"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
        (b"\x7fELF" + bytes(100), "a Linux program"),
        (b"\x1f\x8b" + bytes(100), "a gzip archive"),
        (b"words\x00\x01\x02 more", "binary data"),
        (bytes(range(1, 9)) * 200, "binary data"),
    ],
)
def test_binary_file_is_refused_with_its_kind(data: bytes, kind: str) -> None:
    assert kind in refusal("thing.txt", data)


@pytest.mark.parametrize("data", [b" \n\t ", b"\xef\xbb\xbf", b"<html><script>x</script></html>"])
def test_file_without_text_is_refused(data: bytes) -> None:
    assert "holds no text" in refusal("blank.html" if b"<" in data else "blank.txt", data)


def test_control_characters_are_removed_and_text_is_composed() -> None:
    text = read("a.txt", "a\x07b\x1bc\x7f e\u0301\ufeff".encode(), CONFIG)[1].text
    assert text == "abc é"


def test_too_much_text_is_refused_by_the_limit() -> None:
    config = RetrievalConfig(max_document_chars=10)
    assert "11 characters of text, above max_document_chars=10" in refusal("a.txt", b"x" * 11, config)
