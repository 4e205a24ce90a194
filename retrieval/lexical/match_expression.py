"""A person's words to an FTS5 expression that cannot be anything but words."""

from __future__ import annotations

import re

from retrieval.lexical.tokens import STOP_WORDS

_WORD = re.compile(r"\w+")


def match_expression(query: str, max_terms: int) -> str | None:
    """Return `"word" OR "word" ...` over the query's distinct words, or None when it has none.

    Words are runs of letters, digits and underscores, so quotes and FTS5 operators cannot get in; each is
    quoted, so AND, OR, NOT and NEAR are words too. unicode61 may split a word further; it is then a phrase.
    """
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    telling = [word for word in words if word not in STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in telling[:max_terms]) or None
