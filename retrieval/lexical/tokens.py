"""Text to the terms BM25 counts: folded, English-stemmed words.

Chunks and queries go through the same steps, so a term is the same string wherever it comes from; the terms
of a chunk are part of an index version and must not change between releases without a new one.
"""

from __future__ import annotations

import re
import threading
import unicodedata

import Stemmer

MAX_TERM_CHARS = 64
"""Longer words are cut: what they are made of (base64, digests) is not looked up by its tail."""

_FUNCTION_WORDS = """a an and are as at be but by can did do does for from had has have how i if in into is it
its me my of on or our so than that the their them then there these they this to was we were what when where
which who why will with would you your"""
STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words: left out of a query unless it has nothing else. They match nearly every chunk, cost
time and add noise. Chunks keep them, so a query of nothing else still finds something."""

_WORD = re.compile(r"\w+")
_CLITIC = re.compile(r"(?<=\w)['\u2019](?:s|t|d|m|re|ve|ll)\b")
_CODE = re.compile(r"[\d_]")

_of_thread = threading.local()


def terms_of(text: str) -> list[str]:
    """Return the terms of a text in order, repeated as often as they occur.

    Words are runs of letters, digits and underscores, case and accents folded, ligatures taken apart. English
    possessives and contractions lose their tail (`cell's` is `cell`). A word with a digit or an underscore
    is an identifier and is not stemmed; one with underscores is followed by its parts, so `block_size` is
    found by itself and by `size`.
    """
    return _terms(_words(text))


def query_terms(query: str, max_terms: int) -> list[str]:
    """Return the distinct terms to look up, in order: no stop words unless the query has nothing else.

    Args:
        query: A person's words; nothing in it is an operator.
        max_terms: Most terms returned; later ones are left out.
    """
    words = _words(query)
    telling = [word for word in words if word not in STOP_WORDS]
    return list(dict.fromkeys(_terms(telling or words)))[:max_terms]


def _words(text: str) -> list[str]:
    if text.isascii():
        text = text.lower()
    else:
        decomposed = unicodedata.normalize("NFKD", text.casefold())
        bare = "".join(char for char in decomposed if not unicodedata.combining(char))
        text = unicodedata.normalize("NFC", bare).casefold()
    if "'" in text or "\u2019" in text:
        text = _CLITIC.sub("", text)
    return [word if len(word) <= MAX_TERM_CHARS else word[:MAX_TERM_CHARS] for word in _WORD.findall(text)]


def _terms(words: list[str]) -> list[str]:
    stems = _stemmer().stemWords(words)
    if not _CODE.search(" ".join(words)):
        return stems
    terms = []
    for word, stem in zip(words, stems, strict=True):
        if not _CODE.search(word):
            terms.append(stem)
            continue
        terms.append(word)
        if "_" in word:
            parts = [part for part in word.split("_") if part]
            terms += [part if _CODE.search(part) else _stemmer().stemWord(part) for part in parts]
    return terms


def _stemmer() -> Stemmer.Stemmer:
    """Return this thread's stemmer: one instance is not safe in two threads."""
    try:
        return _of_thread.stemmer
    except AttributeError:
        _of_thread.stemmer = Stemmer.Stemmer("english", 50_000)
        return _of_thread.stemmer
