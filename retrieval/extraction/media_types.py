"""What a file is, decided from its first bytes and its name."""

from __future__ import annotations

from pathlib import PurePosixPath

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML = "text/html"
MARKDOWN = "text/markdown"
TEXT = "text/plain"
BINARY = "application/octet-stream"

READABLE = "PDF, DOCX, HTML, Markdown and text"
"""The kinds we read, for messages."""

_BY_SUFFIX = {
    ".pdf": PDF,
    ".docx": DOCX,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
}
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png", "a PNG image"),
    (b"\xff\xd8\xff", "image/jpeg", "a JPEG image"),
    (b"GIF87a", "image/gif", "a GIF image"),
    (b"GIF89a", "image/gif", "a GIF image"),
    (b"RIFF", "application/x-riff", "a RIFF file (WebP, WAV or AVI)"),
    (b"\x1f\x8b", "application/gzip", "a gzip archive"),
    (b"BZh", "application/x-bzip2", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "application/x-xz", "an xz archive"),
    (b"(\xb5/\xfd", "application/zstd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed", "a 7z archive"),
    (b"Rar!\x1a\x07", "application/vnd.rar", "a RAR archive"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "application/x-ole-storage",
        "an old Office file (.doc, .xls, .ppt)",
    ),
    (b"\x7fELF", "application/x-elf", "a Linux program"),
    (b"MZ\x90\x00", "application/x-dosexec", "a Windows program"),
    (b"SQLite format 3\x00", "application/vnd.sqlite3", "an SQLite database"),
    (b"PAR1", "application/vnd.apache.parquet", "a Parquet table"),
    (b"ID3", "audio/mpeg", "an MP3 recording"),
    (b"OggS", "application/ogg", "an Ogg recording"),
    (b"\x00\x00\x00\x18ftyp", "video/mp4", "an MP4 film"),
    (b"\x00\x00\x00\x20ftyp", "video/mp4", "an MP4 film"),
)
_KINDS = {media_type: kind for _, media_type, kind in _MAGIC}
_WIDE_TEXT_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_HEAD_BYTES = 8192


def sniff(name: str, data: bytes) -> str:
    """Return the MIME type of a file; the bytes win over the name where they are telling."""
    suffix = PurePosixPath(name.lower()).suffix
    by_name = _BY_SUFFIX.get(suffix, TEXT)
    head = data[:_HEAD_BYTES]
    if b"%PDF-" in head[:1024]:
        return PDF
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return DOCX if by_name == DOCX else "application/zip"
    for magic, media_type, _ in _MAGIC:
        if head.startswith(magic):
            return media_type
    if b"\x00" in head and not head.startswith(_WIDE_TEXT_MARKS):
        return BINARY
    if by_name in (PDF, DOCX):
        return by_name  # Its reader says what is wrong with it.
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if by_name == TEXT and start.startswith((b"<!doctype html", b"<html")):
        return HTML
    return by_name


def kind(media_type: str) -> str:
    """Return words for a media type we do not read."""
    if media_type == "application/zip":
        return "a zip archive"
    return _KINDS.get(media_type, "binary data")
