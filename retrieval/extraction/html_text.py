"""HTML to plain text: what a reader of the page would see, one line per block.

Scripts, styles, images, forms and hidden elements are dropped and nothing is fetched. The text keeps no
markup (no Markdown escapes), so a quote of it can be highlighted as it stands.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bs4.element import PageElement, Tag

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
    """Return the readable text of an HTML document, its title first unless a heading repeats it."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "lxml")
    writer = _Writer()
    title = _SPACES.sub(" ", soup.title.get_text()).strip() if soup.title else ""
    heading = soup.find("h1")
    if title and (heading is None or heading.get_text(" ", strip=True) != title):
        writer.write(title)
        writer.end_block(2)
    _walk(soup, writer)
    return writer.text()


class _Writer:
    """Collects text; neighbouring ends of blocks merge into one break of the larger size."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._break = 0

    def end_block(self, num_newlines: int) -> None:
        self._break = max(self._break, num_newlines)

    def write(self, text: str, *, is_pre: bool = False) -> None:
        if not is_pre:
            text = _SPACES.sub(" ", text)
            if self._break or not self._pieces or self._pieces[-1].endswith((" ", "\n")):
                text = text.lstrip(" ")
        if not text:
            return
        if self._pieces and self._break:
            self._pieces[-1] = self._pieces[-1].rstrip(" ")
            self._pieces.append("\n" * self._break)
        self._break = 0
        self._pieces.append(text)

    def write_mark(self, mark: str) -> None:
        """Write a cell separator, but not where a line begins."""
        if self._pieces and not self._break:
            self._pieces[-1] = self._pieces[-1].rstrip(" ")
            self._pieces.append(mark)

    def text(self) -> str:
        return "".join(self._pieces).strip()


class _End:
    """Marks on the stack where an element ends."""

    __slots__ = ("is_pre", "num_newlines")

    def __init__(self, num_newlines: int, is_pre: bool) -> None:
        self.num_newlines = num_newlines
        self.is_pre = is_pre


def _walk(root: Tag, writer: _Writer) -> None:
    """Write the text under `root`; iterative, since hostile pages nest deeper than Python's stack."""
    from bs4.element import Comment, Declaration, Doctype, NavigableString, ProcessingInstruction, Tag

    unseen = (Comment, Declaration, Doctype, ProcessingInstruction)
    stack: list[object] = [root]
    pre_depth = 0
    while stack:
        node = stack.pop()
        if isinstance(node, _End):
            writer.end_block(node.num_newlines)
            pre_depth -= node.is_pre
        elif isinstance(node, Tag):
            if node.name in _DROPPED or _is_hidden(node):
                continue
            num_newlines = 2 if node.name in _PARAGRAPHS else 1 if node.name in _LINES else 0
            writer.end_block(num_newlines)
            if node.name == "li":
                writer.write("- ")
            elif node.name in _CELLS:
                writer.write_mark(" | ")
            is_pre = node.name == "pre"
            pre_depth += is_pre
            # The paragraph that is all of a list item or a cell does not break from its mark.
            children = _unwrapped(node) if node.name == "li" or node.name in _CELLS else node.contents
            stack.append(_End(num_newlines, is_pre))
            stack.extend(reversed(children))
        elif isinstance(node, NavigableString) and not isinstance(node, unseen):
            writer.write(str(node), is_pre=pre_depth > 0)


def _unwrapped(node: Tag) -> list[PageElement]:
    """Return an element's children, its first paragraph replaced by that paragraph's children."""
    from bs4.element import Tag

    children = [child for child in node.contents if isinstance(child, Tag) or str(child).strip()]
    if children and isinstance(children[0], Tag) and children[0].name == "p":
        return [*children[0].contents, *children[1:]]
    return list(node.contents)


def _is_hidden(node: Tag) -> bool:
    if node.has_attr("hidden") or node.get("aria-hidden") == "true":
        return True
    style = str(node.get("style") or "").replace(" ", "").lower()
    return "display:none" in style or "visibility:hidden" in style
