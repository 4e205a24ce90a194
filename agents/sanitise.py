"""Makes text from a model or a document safe to show: nothing in it may load, run or lead anywhere.

An answer can carry what a hostile document told the model to write: an image whose address leaks the
question, a link to a look-alike page, invisible instructions. Markup that fetches or navigates is
removed; a bare address loses its scheme ("https://"), without which no Markdown renderer makes it a link.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# Zero-width, bidirectional overrides, invisible tags, C0 and C1 controls but for tab and line feed.
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
    # Joiners are letters' business in Persian, Indic scripts and emoji, and a hiding place after ASCII.
    "|(?:^|(?<=[\u0000-\u007f]))[\u200c\u200d]+"
)
_IMAGE = re.compile(r"!\[([^\[\]]*)\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\[\]]*\])?")
_LINK = re.compile(r"\[([^\[\]]*)\]\(\s*<?([^()<>\s]*(?:\([^()]*\)[^()<>\s]*)*)>?[^()]*\)")
_REFERENCE = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")
_DEFINITION = re.compile(r"^[ \t]{0,3}\[[^\[\]]+\]:[ \t]*\S+.*$", re.MULTILINE)
_TAG = re.compile(
    r"</?(?:a|area|audio|base|body|button|embed|form|frame|frameset|head|html|iframe|image|img|input|link|math|"
    r"meta|object|option|picture|portal|script|select|source|style|svg|textarea|track|video)\b[^>]*(?:>|$)"
    r"|<!--.*?(?:-->|$)",
    re.IGNORECASE | re.DOTALL,
)
_AUTOLINK = re.compile(r"<([a-z][a-z0-9+.-]{1,31}:[^\s<>]*)>", re.IGNORECASE)
_SCHEME = re.compile(r"(?:https?|ftp)://|\bwww\.(?=\S)", re.IGNORECASE)


_MAX_PASSES = 8
"""Nesting deeper than this is an attack; its brackets are removed altogether."""


def plain(text: str) -> str:
    """Return the text without invisible characters; what is visible stays as it is."""
    return _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def safe(text: str, targets: Collection[str] = ()) -> str:
    """Return the text with images, foreign links and active markup removed.

    Args:
        text: What a model wrote or a document holds.
        targets: Link targets that may stay, for example names of cited documents.
    """
    text = _DEFINITION.sub("", plain(text))
    # Removing one construct can join the halves of another, so this runs until nothing changes.
    for _ in range(_MAX_PASSES):
        before = text
        text = _TAG.sub("", text)
        text = _IMAGE.sub(r"\1", text)
        text = _LINK.sub(lambda m: m.group() if m.group(2) in targets else m.group(1), text)
        # `[1][2]` are two citation marks, not a reference link.
        text = _REFERENCE.sub(
            lambda m: m.group() if m.group(1).isdigit() and m.group(2).isdigit() else m.group(1), text
        )
        text = _AUTOLINK.sub(r"\1", text)
        text = _SCHEME.sub("", text)
        if text == before:
            return text
    return re.sub(r"[\[<]", "", text)


# The tail of a draft that the next token could complete into something `safe` would change.
_OPEN = re.compile(
    r"(?:!?\[[^\[\]]*(?:\](?:[(\[][^)\]]*)?)?|!|<(?=[a-z/!]|$)[^>]*|`?[a-z][a-z0-9+.-]*:?/{0,2}[^\s]*|[^\s]*)$",
    re.IGNORECASE,
)
_MAX_HELD_CHARS = 512


class SafeStream:
    """Releases streamed text as soon as no later token can turn it into markup that loads or leads."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Return what can be shown now, `text` included as far as it is settled."""
        self._held += text
        found = _OPEN.search(self._held)
        cut = found.start() if found else len(self._held)
        if len(self._held) - cut > _MAX_HELD_CHARS:
            # An opening released before it closed must never be closed by text that follows.
            return re.sub(r"[\[<]", "", self.flush())
        settled, self._held = self._held[:cut], self._held[cut:]
        return safe(settled)

    def flush(self) -> str:
        """Return what was held back, made safe; called once the text is complete."""
        settled, self._held = self._held, ""
        return safe(settled)
