"""HTML to plain text: what a reader of the page would see, one line per block.

Scripts, styles, images, forms and hidden elements are dropped and nothing is fetched. The text keeps no
markup (no Markdown escapes), so a quote of it can be highlighted as it stands.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bs4 import Tag

_DROPPED_NAMES = """script style noscript template head iframe object embed svg math canvas audio video img
picture source button input select textarea map area link meta"""
_PARAGRAPH_NAMES = """address article aside blockquote body caption details dialog div dl fieldset figure
footer form h1 h2 h3 h4 h5 h6 header hgroup hr main nav ol p pre section table ul"""
_DROPPED = frozenset(_DROPPED_NAMES.split())
_PARAGRAPHS = frozenset(_PARAGRAPH_NAMES.split())
_LINES = frozenset(["br", "dd", "dt", "li", "tr", "summary", "figcaption", "option", "legend"])
_CELLS = frozenset(("td", "th"))
_SPACES = re.compile(r"[ \t\r\n\f\v\xa0]+")


def html_to_text(html: str) -> str:
    """Return the readable text of an HTML document."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "lxml")
    pieces: list[str] = []
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    if title and not _has_heading(soup, title):
        pieces.append(f"{title}\n\n")
    _walk(soup, pieces)
    return _tidy("".join(pieces))


def _has_heading(soup: Tag, title: str) -> bool:
    heading = soup.find("h1")
    return heading is not None and heading.get_text(" ", strip=True) == title


def _walk(root: Tag, pieces: list[str]) -> None:
    """Append the text under `root`; iterative, since hostile pages nest deeper than Python's stack."""
    from bs4.element import Comment, Declaration, Doctype, NavigableString, ProcessingInstruction, Tag

    skipped = (Comment, Declaration, Doctype, ProcessingInstruction)
    # The stack holds nodes still to visit and, as plain strings, the breaks that close a visited element.
    stack: list[object] = [root]
    pre_depth = 0
    while stack:
        node = stack.pop()
        if isinstance(node, _Break):
            pieces.append(node.text)
            pre_depth -= node.closes_pre
        elif isinstance(node, Tag):
            if node.name in _DROPPED or _is_hidden(node):
                continue
            is_pre = node.name == "pre"
            pre_depth += is_pre
            opening, closing = _breaks(node.name)
            pieces.append(opening)
            stack.append(_Break(closing, is_pre))
            stack.extend(reversed(node.contents))
        elif isinstance(node, NavigableString) and not isinstance(node, skipped):
            pieces.append(str(node) if pre_depth else _SPACES.sub(" ", node))


class _Break:
    """What to write when an element ends."""

    __slots__ = ("closes_pre", "text")

    def __init__(self, text: str, closes_pre: bool) -> None:
        self.text = text
        self.closes_pre = closes_pre


def _breaks(name: str) -> tuple[str, str]:
    if name in _PARAGRAPHS:
        return "\n\n", "\n\n"
    if name == "li":
        return "\n- ", "\n"
    if name in _LINES:
        return "\n", "\n" if name != "br" else ""
    if name in _CELLS:
        return "", " \t"
    return "", ""


def _is_hidden(node: Tag) -> bool:
    if node.has_attr("hidden") or node.get("aria-hidden") == "true":
        return True
    style = str(node.get("style") or "").replace(" ", "").lower()
    return "display:none" in style or "visibility:hidden" in style


def _tidy(text: str) -> str:
    """Strip line ends, separate cells with a bar, and keep at most one empty line."""
    lines = []
    for line in text.split("\n"):
        cells = [cell.strip(" ") for cell in line.split("\t")] if " \t" in line else [line.rstrip(" ")]
        lines.append(" | ".join(cell for cell in cells if cell) if len(cells) > 1 else cells[0])
    text = "\n".join(line.removeprefix(" ") if not line.startswith("  ") else line for line in lines)
    text = re.sub(r"\n-\s*\n+(?=\S)", "\n- ", text)  # A list item whose text is in a paragraph of its own.
    return re.sub(r"\n{3,}", "\n\n", text).strip()
