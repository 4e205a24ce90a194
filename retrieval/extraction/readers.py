"""Bytes of a file to its text: PDF, DOCX, HTML, Markdown and text.

Runs inside the reading process (`reading_process.py`), because a hostile file may crash, hang or swell a
parser. Every refusal is an `UnreadableDocument` that names the file, the limit and the remedy.
"""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
import zipfile
import zlib
from xml.parsers.expat import ExpatError

from retrieval.config import MIB, RetrievalConfig
from retrieval.errors import UnreadableDocument
from retrieval.extraction import media_types
from retrieval.extraction.html_text import html_to_text
from retrieval.types import DocumentText

PAGE_SEPARATOR = "\n\n"

# Everything that cannot be shown: control characters but tab and newline, surrogates, noncharacters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\ufeff]")
# PDFium writes a hyphen at a line's end as U+0002 or U+FFFE: the word goes on in the next line.
_LINE_HYPHEN = re.compile("[\x02\ufffe](?:\r?\n)?")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_META_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE
)
_MAX_CONTROL_SHARE = 0.02
# What zipfile, expat and mammoth raise for archives and XML that Word's format does not allow.
_DOCX_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    ExpatError,
    NotImplementedError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


def read(name: str, data: bytes, config: RetrievalConfig) -> tuple[str, DocumentText]:
    """Return the MIME type and the text of a file.

    Raises:
        UnreadableDocument: No text can be extracted, or a limit of `config` is passed.
    """
    media_type = media_types.sniff(name, data)
    if media_type == media_types.PDF:
        document = _read_pdf(name, data, config)
    elif media_type == media_types.DOCX:
        document = DocumentText(clean(html_to_text(_docx_html(name, data, config))))
    elif media_type == media_types.HTML:
        document = DocumentText(clean(html_to_text(decode(name, data, declared=_declared_charset(data)))))
    elif media_type in (media_types.MARKDOWN, media_types.TEXT):
        document = DocumentText(clean(decode(name, data)))
    else:
        raise UnreadableDocument(
            f"'{name}' is {media_types.kind(media_type)}, which has no text to read; "
            f"add {media_types.READABLE} files"
        )
    if not document.text.strip():
        raise UnreadableDocument(f"'{name}' holds no text, only spaces or markup; add a file with text")
    if len(document.text) > config.max_document_chars:
        raise UnreadableDocument(
            f"'{name}' has {len(document.text):,} characters of text, above max_document_chars="
            f"{config.max_document_chars:,}; split the file or raise the limit"
        )
    return media_type, document


def clean(text: str) -> str:
    """Return text in NFC with one kind of newline and without characters that cannot be shown."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n")
    return unicodedata.normalize("NFC", _UNPRINTABLE.sub("", text))


def decode(name: str, data: bytes, *, declared: str | None = None) -> str:
    """Return bytes as text: by byte-order mark, declared charset, UTF-8, then by likelihood.

    Raises:
        UnreadableDocument: No encoding fits, or what comes out is not text.
    """
    text = _decode_exactly(data, declared)
    if text is None:
        from charset_normalizer import from_bytes

        best = from_bytes(data).best()
        if best is None:
            raise UnreadableDocument(
                f"'{name}' is not text in any encoding we know; save it as UTF-8 and add it again"
            )
        text = str(best)
    controls = sum(map(text.count, map(chr, (*range(9), *range(14, 32)))))
    if controls > max(8, len(text) * _MAX_CONTROL_SHARE):
        raise UnreadableDocument(
            f"'{name}' is binary data ({controls:,} control characters in {len(text):,}), not text; "
            f"add {media_types.READABLE} files"
        )
    return text


def _decode_exactly(data: bytes, declared: str | None) -> str | None:
    """Return text where an encoding is certain, else None."""
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                return None
    for encoding in (declared, "utf-8"):
        if encoding is None:
            continue
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):  # Wrongly declared, or no such charset: try the next.
            continue
    return None


def _declared_charset(data: bytes) -> str | None:
    found = _META_CHARSET.search(data[:4096])
    return found.group(1).decode("ascii") if found else None


def _read_pdf(name: str, data: bytes, config: RetrievalConfig) -> DocumentText:
    import pypdfium2
    import pypdfium2.raw as pdfium_c

    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == pdfium_c.FPDF_ERR_PASSWORD:
            raise UnreadableDocument(
                f"'{name}' is an encrypted PDF; remove its password (open it, print to PDF) and add it again"
            ) from error
        raise UnreadableDocument(
            f"'{name}' is a malformed PDF ({error}); export or print it to PDF again and add the new file"
        ) from error
    try:
        num_pages = len(pdf)
        if num_pages > config.max_pages:
            raise UnreadableDocument(
                f"'{name}' has {num_pages:,} pages, above max_pages={config.max_pages:,}; "
                "split the file or raise the limit"
            )
        pages, page_starts, length = [], [], 0
        for number in range(num_pages):
            text = clean(_LINE_HYPHEN.sub("", _page_text(name, pdf, number))).strip()
            page_starts.append(length)
            pages.append(text)
            length += len(text) + len(PAGE_SEPARATOR)
            if length > config.max_document_chars:
                break  # The caller refuses it by the same limit.
    finally:
        pdf.close()
    if not any(pages):
        raise UnreadableDocument(
            f"'{name}' is a PDF of {num_pages} pages without a text layer (scanned?); "
            "run OCR on it, for example with ocrmypdf, and add the result"
        )
    return DocumentText(PAGE_SEPARATOR.join(pages), tuple(page_starts))


def _page_text(name: str, pdf: object, number: int) -> str:
    import pypdfium2

    try:
        page = pdf[number]  # pyright: ignore[reportIndexIssue]
        try:
            textpage = page.get_textpage()
            try:
                return textpage.get_text_range()
            finally:
                textpage.close()
        finally:
            page.close()
    except pypdfium2.PdfiumError as error:
        raise UnreadableDocument(
            f"'{name}' is a malformed PDF (page {number + 1}: {error}); export or print it to PDF again "
            "and add the new file"
        ) from error


def _docx_html(name: str, data: bytes, config: RetrievalConfig) -> str:
    import mammoth

    _check_docx_archive(name, data, config)
    try:
        # Images are dropped: mammoth would otherwise inline each as base64.
        result = mammoth.convert_to_html(
            io.BytesIO(data), convert_image=mammoth.images.img_element(lambda image: {"src": ""})
        )
    except _DOCX_ERRORS as error:
        raise _malformed_docx(name, error) from error
    return result.value


def _malformed_docx(name: str, error: Exception) -> UnreadableDocument:
    return UnreadableDocument(
        f"'{name}' is a malformed DOCX ({error}); open it in a word processor, save it anew and add that"
    )


def _check_docx_archive(name: str, data: bytes, config: RetrievalConfig) -> None:
    """Refuse what is no DOCX, is encrypted, or unpacks to too much; counts real bytes, headers can lie."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise UnreadableDocument(
            f"'{name}' is an encrypted or old Word file; save it as DOCX without a password"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if "word/document.xml" not in {entry.filename for entry in entries}:
                raise UnreadableDocument(
                    f"'{name}' is a zip archive without word/document.xml, not a DOCX; "
                    f"add {media_types.READABLE} files"
                )
            if any(entry.flag_bits & 0x1 for entry in entries):
                raise UnreadableDocument(
                    f"'{name}' is an encrypted DOCX; remove its password and add it again"
                )
            limit = min(config.max_expanded_bytes, max(len(data) * config.max_expansion_ratio, MIB))
            declared = sum(entry.file_size for entry in entries)
            if declared > limit:
                raise _zip_bomb(name, len(data), declared, limit)
            unpacked = 0
            for entry in entries:
                with archive.open(entry) as member:
                    while block := member.read(MIB):
                        unpacked += len(block)
                        if unpacked > limit:
                            raise _zip_bomb(name, len(data), unpacked, limit)
    except _DOCX_ERRORS as error:
        raise _malformed_docx(name, error) from error


def _zip_bomb(name: str, stored: int, unpacked: int, limit: int) -> UnreadableDocument:
    return UnreadableDocument(
        f"'{name}' is a DOCX of {stored:,} bytes that unpacks to {unpacked:,} or more, above the limit of "
        f"{limit:,} (max_expanded_bytes, max_expansion_ratio): it looks like a zip bomb. "
        "If it is genuine, save it as PDF"
    )
