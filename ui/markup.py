"""HTML that is safe to show: everything from a person, a document or a model passes through here.

Two ways in. `escape` turns text into text. `render` turns a model's Markdown into HTML of our own making:
tags, links and images in the source stay plain text, so an answer can neither run a script nor fetch a
picture from another host. The results hold no line breaks: the chat's Markdown parser would end an HTML block
there.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARK = re.compile(r"\[(\d{1,3})\]")

_LINE_BREAKS = {"\r": "&#13;", "\n": "&#10;"}

_PARSER = (
    MarkdownIt("commonmark", {"html": False, "breaks": True})
    .enable(["table", "strikethrough"])
    .disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])
)


def escape(text: str) -> str:
    """Return text as HTML that shows exactly it, for element content and for quoted attributes.

    The browser's `textContent` of the result equals `text`; NUL, which HTML cannot hold, becomes U+FFFD.
    """
    escaped = html.escape(text.replace("\0", "\ufffd"), quote=True)
    return "".join(_LINE_BREAKS.get(character, character) for character in escaped)


def escape_lines(text: str) -> str:
    """Return text as HTML whose line breaks show as line breaks."""
    return "<br>".join(escape(line) for line in text.splitlines())


def render(text: str, mark: Callable[[int], str | None] = lambda number: None) -> str:
    """Return a model's Markdown as safe HTML on one line.

    Args:
        text: Markdown; HTML, links and images in it are shown as text.
        mark: HTML for the citation mark [n] in running text (never in code), or None to leave it as text.
    """
    tokens = _PARSER.parse(text)
    for token in tokens:
        if token.children is not None:
            token.children = [piece for child in token.children for piece in _with_marks(child, mark)]
    rendered: str = _PARSER.renderer.render(tokens, _PARSER.options, {})
    return _on_one_line(rendered)


def _with_marks(token: Token, mark: Callable[[int], str | None]) -> list[Token]:
    """Return a text token cut at its citation marks, the marks as HTML; other tokens as they are."""
    if token.type != "text":
        return [token]
    pieces: list[Token] = []
    done = 0
    for found in _MARK.finditer(token.content):
        made = mark(int(found.group(1)))
        if made is None:
            continue
        pieces.append(Token("text", "", 0, content=token.content[done : found.start()]))
        pieces.append(Token("html_inline", "", 0, content=made))
        done = found.end()
    pieces.append(Token("text", "", 0, content=token.content[done:]))
    return pieces


def _on_one_line(rendered: str) -> str:
    """Return HTML without line breaks; inside <pre> they become character references."""
    parts = re.split(r"(<pre>.*?</pre>)", rendered, flags=re.DOTALL)
    return "".join(
        part.replace("\n", "&#10;") if part.startswith("<pre>") else part.replace("\n", " ") for part in parts
    ).strip()
