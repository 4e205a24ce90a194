"""A person's words to an FTS5 expression that cannot be anything but words."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")

_FUNCTION_WORDS = """a an and are as at be but by can did do does for from had has have how i if in into is it
its me my of on or our so than that the their them then there these they this to was we were what when where
which who why will with would you your"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words: left out unless the query has nothing else. They match nearly every chunk, cost
time and add noise."""


def match_expression(query: str, max_terms: int) -> str | None:
    """Return `"word" OR "word" ...` over the query's distinct words, or None when it has none.

    Words are runs of letters, digits and underscores, so quotes and FTS5 operators cannot get in; each is
    quoted, so AND, OR, NOT and NEAR are words too. unicode61 may split a word further; it is then a phrase.
    """
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    telling = [word for word in words if word not in STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in telling[:max_terms]) or None
