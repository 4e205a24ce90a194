"""What a name may look like, and when two names are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from retrieval.lexical.tokens import STOP_WORDS

MAX_NAME_CHARS = 120
"""Longer names are none."""

_OPENINGS = """about above after
again against all already also although among another any because before below
besides between beyond both code compared consider currently despite different doing during each
earlier either enough even every few finally first fourth further given hence here he her his
however including indeed instead its just last later least less like many maybe meanwhile more
moreover most much neither never nevertheless next no none nor not nothing now often once one only
ordinary other others otherwise over overall perhaps rather recent recently same second see several
she since similarly so some someone something sometimes soon still such ten therefore third those
though three through throughout thus today together too two under unlike until up upon us use used
using usually very via we well whatever whenever whereas wherever whether while whose within without
yes yet abstract background conclusion conclusions discussion figure introduction limitations method
methods note references results section summary table appendix chapter step"""
STARTERS = STOP_WORDS | frozenset(_OPENINGS.split())
"""Words that are capitalised because they open a sentence or a heading."""

_MONTHS = """
january february march april may june july august september october november december monday tuesday
wednesday thursday friday saturday sunday"""
_UNITS = "gb mb kb tb gib mib kib ghz mhz am pm"
_NO_NAMES = frozenset(f"{_MONTHS} {_UNITS} north south east west jr sr".split())
_HONORIFICS = "chairman ceo president dr mr mrs ms prof professor senator judge sir"
HONORIFICS = frozenset(_HONORIFICS.split())
"""Words before a person's name that are no part of it."""
_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015/]+")
_EDGES = re.compile(r"^\W+|[^\w+]+$")
_POSSESSIVE = re.compile(r"['\u2019]s?$")
_PLURAL_ACRONYM = re.compile(r"\b([A-Z]{2,})s\b")
_PLURAL = re.compile(r"[^\W\d_]{3}[^siu\W]s$")
_ARTICLE = re.compile(r"^(?:the|an?) ")
_COMPOUND = re.compile(r"(?:single|multi|non|pre|post|per|cross|intra|inter|sub|co|anti|self|all|first|top)-")
_TAIL = re.compile(r"-(?:based|like|style|aware|trained|only|driven|powered|specific|compatible)$")


def entity_key(name: str) -> str:
    """Return what names of the same entity share: case, hyphens, articles and plurals do not count."""
    text = _PLURAL_ACRONYM.sub(r"\1", unicodedata.normalize("NFKC", name))
    text = _SEPARATORS.sub(" ", _POSSESSIVE.sub("", _EDGES.sub("", text.casefold())))
    text = _ARTICLE.sub("", text.strip())
    return text[:-1] if " " in text and _PLURAL.search(text) else text


def name_part(word: str) -> tuple[str, int]:
    """Return the part of a word that names, and its length: `RAG` of `RAG-based`, none of `single-GPU`."""
    if _COMPOUND.match(word):
        return "", len(word)
    bare = _TAIL.sub("", _POSSESSIVE.sub("", word))
    return bare, len(bare)


def unambiguous(word: str) -> bool:
    """Return whether a word is a name wherever it stands: capitals inside it, or capitals with digits."""
    parts = word.split("-")
    capitals = sum(char.isupper() for char in word)
    if capitals and any(char.isdigit() for char in word):
        return True
    # `Fusion-in-Decoder` has capitals only where its parts begin; so has `Retrieval-Augmented`.
    return any(char.isupper() for part in parts for char in part[1:]) or capitals >= 2


def is_no_name(words: Sequence[str]) -> bool:
    """Return whether capitalised words are only dates, units or directions."""
    return all(word.lower() in _NO_NAMES or word.isdigit() for word in words)
