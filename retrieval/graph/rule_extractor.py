"""Entities and relations by rules: deterministic, needs no model, reads English.

It finds proper names, identifiers, quoted titles, short forms with their long ones, terms that a sentence
defines, and pairs of them that stand in one sentence or are joined by a known phrase. What it cannot do:
resolve pronouns, tell two people of one name apart, find lower-case terms that no sentence defines, or read a
relation across sentences. Precision and recall on labelled sentences are kept by a test.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from retrieval.graph.names import MAX_NAME_CHARS, entity_key
from retrieval.graph.patterns import aliases, defined_terms, relation_label
from retrieval.graph.sentences import NameFinder, Sentence, Span, sentences
from retrieval.graph.types import CO_OCCURS, Alias, Extraction, Mention, Relation

_YEAR = re.compile(r" (?:19|20)\d\d\b")
MAX_ENTITIES = 300
"""Distinct entities of one chunk; later ones are left out."""
MAX_SENTENCE_ENTITIES = 10
"""Entities of one sentence that are paired; a longer list says little about any two."""


@dataclass(slots=True)
class _Found:
    mentions: dict[str, Mention]
    relations: dict[tuple[str, str, str], float]
    aliases: dict[tuple[str, str], Alias]


class RuleExtractor:
    """The extractor that is always there."""

    @property
    def name(self) -> str:
        """Return its name, with the number of its rules' edition."""
        return "rules-1"

    async def extract(self, texts: Sequence[str]) -> list[Extraction]:
        """Return one extraction a text, in order, on a worker thread."""
        return await asyncio.to_thread(lambda: [extract(text) for text in texts])


def extract(text: str) -> Extraction:
    """Return the entities and relations of one chunk."""
    chunk = sentences(text)
    finder = NameFinder(chunk)
    found = _Found({}, {}, {})
    for sentence in chunk:
        _read(sentence, finder.spans(sentence), found)
    names = {key: mention.name for key, mention in found.mentions.items()}
    return Extraction(
        tuple(found.mentions.values()),
        tuple(
            Relation(names[source], names[target], label, weight)
            for (source, target, label), weight in found.relations.items()
        ),
        tuple(found.aliases.values()),
    )


def _read(sentence: Sentence, spans: list[Span], found: _Found) -> None:
    explained = list(aliases(sentence.text))
    terms = [] if sentence.is_heading else list(defined_terms(sentence.text))
    spans = _with_terms(sentence, spans, [alias.long for alias in explained] + terms)
    keys = []
    for span in spans:
        key = entity_key(span.name)
        if not 2 <= len(key) <= len(span.name) + 8 or len(span.name) > MAX_NAME_CHARS:
            continue
        mention = found.mentions.get(key)
        if mention is None and len(found.mentions) == MAX_ENTITIES:
            continue
        mention = mention or Mention(span.name, span.kind, 0)
        description = mention.description
        if description is None and _describes(sentence, span):
            description = sentence.text
        found.mentions[key] = replace(mention, count=mention.count + 1, description=description)
        keys.append((key, span))
    for alias in explained:
        short, long = entity_key(alias.short), entity_key(alias.long)
        if short != long and short in found.mentions and long in found.mentions:
            found.aliases[short, long] = alias
    _relate(sentence, keys, found, {(entity_key(a.short), entity_key(a.long)) for a in explained})


def _with_terms(sentence: Sentence, spans: list[Span], terms: Sequence[str]) -> list[Span]:
    """Add the spans of terms that the rules for names do not see, in place of names within them."""
    spans = list(spans)
    for term in terms:
        start = sentence.text.lower().find(term.lower())
        if start < 0:
            continue
        end = start + len(term)
        over = [span for span in spans if span.start < end and start < span.end]
        if any(span.start <= start and end <= span.end for span in over):
            continue
        if any(span.start < start or span.end > end for span in over):
            continue
        spans = [span for span in spans if span not in over]
        spans.append(Span(sentence.text[start:end], start, end, "name" if over else "term"))
    return sorted(spans, key=lambda span: span.start)


def _describes(sentence: Sentence, span: Span) -> bool:
    """Return whether a sentence begins by saying what a name is."""
    after = sentence.text[span.end :].lstrip("\"'\u201d)").split(maxsplit=2)
    return (
        not sentence.is_heading
        and span.start <= len("The ")
        and after[:1] in (["is"], ["are"], ["was"])
        and after[1:2] != []
        and after[1] in ("a", "an", "the", "one")
    )


def _relate(
    sentence: Sentence, keys: list[tuple[str, Span]], found: _Found, same: set[tuple[str, str]]
) -> None:
    person: str | None = None
    for (left, span), (right, after) in pairwise(keys):
        label = relation_label(sentence.text[span.end : after.start])
        if label == "affiliated with":
            person = left
        elif label == "developed" and person is not None:
            # `Darren Edge and colleagues at Microsoft released ...`: the person did.
            left = person
        behind = sentence.text[after.end :]
        if label == "affiliated with" and _YEAR.match(behind):
            label = "published in"
        # `FSDP is PyTorch's answer` and `uses BERT-based models` say nothing about PyTorch and BERT.
        if label is not None and left != right and not behind.startswith(("'s", "\u2019s", "-")):
            _count(found, (left, right, label))
    distinct = list(dict.fromkeys(key for key, _ in keys))[:MAX_SENTENCE_ENTITIES]
    for left, right in combinations(distinct, 2):
        if (left, right) not in same and (right, left) not in same:
            _count(found, (min(left, right), max(left, right), CO_OCCURS))


def _count(found: _Found, relation: tuple[str, str, str]) -> None:
    found.relations[relation] = found.relations.get(relation, 0.0) + 1.0
