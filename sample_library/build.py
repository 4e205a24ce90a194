"""Builds the PDF and DOCX documents of the sample library from the Markdown files in `sources/`.

Run as ``python -m sample_library.build``. The files are the same, byte for byte, on every run: all dates in
them are fixed. The PDFs are not compressed; the DOCX archives are, so another zlib may pack the same content
differently.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import docx
from fpdf import FPDF

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "sources"
DOCUMENTS = HERE / "documents"

PDF_NAMES = ("prefill-decode-disaggregation", "rlhf-and-ppo")
DOCX_NAMES = ("graphrag", "megatron-tensor-parallelism", "zero-deepspeed")

BUILD_DATE = datetime(2026, 11, 21, tzinfo=UTC)
# The earliest date a ZIP entry can hold; python-docx would write the current time.
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a source text."""

    kind: Literal["title", "heading", "paragraph", "page_break"]
    """What the block is; a line of three hyphens is a page break."""
    text: str
    """The text without markup; empty for a page break."""


def read_blocks(markdown: str) -> Iterator[Block]:
    """Yields the blocks of a source text, which may hold `#`, `##`, plain paragraphs and `---` only."""
    for part in markdown.strip().split("\n\n"):
        text = " ".join(part.split())
        if text == "---":
            yield Block("page_break", "")
        elif text.startswith("## "):
            yield Block("heading", text.removeprefix("## "))
        elif text.startswith("# "):
            yield Block("title", text.removeprefix("# "))
        else:
            yield Block("paragraph", text)


def render_pdf(markdown: str) -> bytes:
    """Returns the PDF of a source text: A4, Helvetica, left-aligned so that words keep their spacing."""
    pdf = FPDF(format="A4")
    pdf.set_compression(False)
    pdf.set_creation_date(BUILD_DATE)
    pdf.set_producer("Graft sample library")
    pdf.set_margin(25)
    pdf.set_auto_page_break(True, margin=25)
    pdf.add_page()
    for block in read_blocks(markdown):
        match block.kind:
            case "page_break":
                pdf.add_page()
                continue
            case "title":
                pdf.set_title(block.text)
                pdf.set_font("Helvetica", style="B", size=18)
            case "heading":
                pdf.set_font("Helvetica", style="B", size=13)
            case "paragraph":
                pdf.set_font("Helvetica", size=11)
        pdf.multi_cell(0, h=pdf.font_size * 1.35, text=block.text, align="L", new_x="LMARGIN", new_y="NEXT")
        pdf.ln(3)
    return bytes(pdf.output())


def render_docx(markdown: str) -> bytes:
    """Returns the DOCX of a source text, with Word's own heading styles."""
    document = docx.Document()
    properties = document.core_properties
    properties.author = properties.last_modified_by = "Graft"
    properties.comments = ""
    properties.created = properties.modified = BUILD_DATE.replace(tzinfo=None)
    for block in read_blocks(markdown):
        match block.kind:
            case "page_break":
                document.add_page_break()
            case "title":
                properties.title = block.text
                document.add_heading(block.text, level=0)
            case "heading":
                document.add_heading(block.text, level=1)
            case "paragraph":
                document.add_paragraph(block.text)
    written = io.BytesIO()
    document.save(written)
    return _with_fixed_dates(written)


def _with_fixed_dates(archive: io.BytesIO) -> bytes:
    """Returns the same ZIP archive with every entry in the same order under one date."""
    fixed = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(fixed, "w") as target:
        for entry in source.infolist():
            dated = zipfile.ZipInfo(entry.filename, ZIP_DATE)
            target.writestr(dated, source.read(entry), compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)
    return fixed.getvalue()


def build(target: Path) -> list[Path]:
    """Writes every PDF and DOCX document into `target` and returns their paths."""
    written = []
    for names, suffix, render in ((PDF_NAMES, ".pdf", render_pdf), (DOCX_NAMES, ".docx", render_docx)):
        for name in names:
            path = target / f"{name}{suffix}"
            path.write_bytes(render((SOURCES / f"{name}.md").read_text(encoding="utf-8")))
            written.append(path)
    return written


def main() -> None:
    """Writes the documents into the folder given on the command line, by default the library's own."""
    parser = argparse.ArgumentParser(description="Build the PDF and DOCX documents of the sample library.")
    parser.add_argument("--target", type=Path, default=DOCUMENTS, help="folder to write into")
    build(parser.parse_args().target)


if __name__ == "__main__":
    main()
