"""Lookup practice that cannot be memorised: random key-value lists and random facts in plain English.

These are the first things the model is taught: finding the place a question points at and copying from it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from serving.prompt import PromptPassage
from training.pretraining.reading_tasks import Draft, ReadingExample, arrange
from training.pretraining.relations import RELATIONS, Kind, Relation

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
TITLES = (
    "Notes",
    "List",
    "Facts",
    "Records",
    "Register",
    "Overview",
    "Report",
    "People and places",
    "Archive",
)
GROUP_TAILS = (
    "Company",
    "University",
    "Society",
    "Party",
    "Institute",
    "Army",
    "Club",
    "Union",
    "Church",
    "Group",
)
SYLLABLES = [
    "ba",
    "be",
    "bor",
    "can",
    "cor",
    "dal",
    "den",
    "dor",
    "el",
    "far",
    "gan",
    "gor",
    "hal",
    "hen",
    "jor",
    "kal",
    "ken",
    "lor",
    "mar",
    "men",
    "nor",
    "or",
    "pel",
    "quin",
    "ran",
    "ros",
    "sal",
    "sen",
    "tar",
    "tor",
    "ul",
    "van",
    "vel",
    "wen",
    "yor",
    "zan",
]

_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,11}\b")
_WORD = re.compile(r"\b[a-z]{4,12}\b")


@dataclass(frozen=True, slots=True)
class WordStock:
    """Words that real text uses, from which random facts are made."""

    names: tuple[str, ...]
    """Capitalised words seen inside sentences."""
    words: tuple[str, ...]
    """Lower-case words."""

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], *, num_names: int = 6000, num_words: int = 9000, skip_words: int = 150
    ) -> WordStock:
        """Return the most frequent names and words of texts, without the `skip_words` commonest words."""
        names: Counter[str] = Counter()
        words: Counter[str] = Counter()
        for text in texts:
            names.update(_NAME.findall(text))
            words.update(_WORD.findall(text))
        return cls(
            tuple(name for name, _ in names.most_common(num_names)),
            tuple(word for word, _ in words.most_common(num_words + skip_words))[skip_words:],
        )

    def draw(self, rng: random.Random, kind: Kind) -> str:
        """Return a random name, word, number or date of one kind."""
        match kind:
            case "person":
                return " ".join(self.name(rng) for _ in range(rng.choice((1, 2, 2))))
            case "place":
                return (
                    self.name(rng)
                    if rng.random() < 0.8
                    else f"{rng.choice(('New', 'San', 'North'))} {self.name(rng)}"
                )
            case "group":
                return f"{self.name(rng)} {rng.choice(GROUP_TAILS)}" if rng.random() < 0.8 else self.name(rng)
            case "year":
                return str(rng.randint(1000, 2025))
            case "number":
                return rng.choice(
                    (
                        str(rng.randint(2, 99)),
                        f"{rng.randint(1, 999)},{rng.randint(0, 999):03d}",
                        f"{rng.randint(1, 99)}.{rng.randint(1, 9)}",
                        str(rng.randint(100, 9999)),
                    )
                )
            case "money":
                return (
                    f"${rng.randint(1, 999)}"
                    if rng.random() < 0.6
                    else f"{rng.randint(1, 99)} million dollars"
                )
            case "date":
                return f"{rng.choice(MONTHS)} {rng.randint(1, 28)}, {rng.randint(1700, 2025)}"
            case "word":
                return " ".join(rng.choice(self.words) for _ in range(rng.choice((1, 1, 2, 3))))
            case "thing":
                return (
                    f"{self.name(rng)} {rng.choice(self.words)}"
                    if rng.random() < 0.4
                    else rng.choice(self.words)
                )
            case "term":
                return (
                    f"{self.name(rng)}{self.name(rng)}"
                    if rng.random() < 0.3
                    else " ".join(rng.choice(self.words) for _ in range(rng.choice((1, 2))))
                )

    def name(self, rng: random.Random) -> str:
        """Return a capitalised word: seen in text, or invented from syllables."""
        if rng.random() < 0.75:
            return rng.choice(self.names)
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()


def lookup_list(
    rng: random.Random,
    stock: WordStock,
    *,
    num_passages: int,
    entries: int,
    num_questions: int,
    unanswerable: float,
) -> ReadingExample:
    """Return lists of `key: value` lines with questions for values and for keys."""
    kinds: tuple[Kind, ...] = ("word", "person", "number", "year", "term", "place")
    key_kind, value_kind = rng.choice(("word", "person", "place", "term")), rng.choice(kinds)
    joiner = rng.choice((": ", " = ", " is ", " - ", " -> "))
    end = rng.choice(("\n", ". ", "; ", "\n"))
    pairs: dict[str, str] = {}
    values: set[str] = set()
    while len(pairs) < num_passages * entries + 2:
        key, value = stock.draw(rng, key_kind), stock.draw(rng, value_kind)
        if key not in pairs and value not in values:
            pairs[key] = value
            values.add(value)
    items = list(pairs.items())
    passages = [
        PromptPassage(
            f"p{index}",
            rng.choice(TITLES),
            end.join(
                f"{key}{joiner}{value}" for key, value in items[index * entries : (index + 1) * entries]
            ),
        )
        for index in range(num_passages)
    ]
    shown = num_passages * entries
    drafts: list[Draft] = []
    for _ in range(num_questions):
        missing = rng.random() < unanswerable
        place = rng.randrange(shown, len(items)) if missing else rng.randrange(shown)
        key, value = items[place]
        backwards = rng.random() < 0.25
        asked, answer = (value, key) if backwards else (key, value)
        forms = ("What is {}?", "{}", "What goes with {}?", "Find {}.", "what is {}", "Tell me about {}.")
        question = rng.choice(forms).format(asked)
        drafts.append(Draft(question, None if missing else answer, -1 if missing else place // entries))
    return arrange(rng, passages, drafts)


@dataclass(frozen=True, slots=True)
class _Fact:
    relation: Relation
    subject: str
    statement: str
    question: str
    answer: str


def _make_fact(rng: random.Random, stock: WordStock) -> _Fact:
    relation = rng.choice(RELATIONS)
    names = {"s": stock.draw(rng, relation.subject), "o": stock.draw(rng, relation.object)}
    statement = _capital(rng.choice(relation.statements).format(**names))
    if relation.ask_subject and rng.random() < 0.4:
        question, answer = rng.choice(relation.ask_subject), names["s"]
    else:
        question, answer = rng.choice(relation.ask_object), names["o"]
    return _Fact(relation, names["s"], statement, question.format(**names), answer)


def _unstated_question(rng: random.Random, stock: WordStock, stated: list[_Fact]) -> str:
    """Return a question about a stranger, or one that asks something unstated about a known subject."""
    if stated and rng.random() < 0.5:
        known = rng.choice(stated)
        others = [r for r in RELATIONS if r.subject == known.relation.subject and r is not known.relation]
        return rng.choice(rng.choice(others).ask_object).format(s=known.subject)
    return _make_fact(rng, stock).question


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def statements(
    rng: random.Random,
    stock: WordStock,
    *,
    num_passages: int,
    facts: int,
    num_questions: int,
    unanswerable: float,
    filler: tuple[str, ...] = (),
) -> ReadingExample:
    """Return passages of random facts, each asked in words that differ from those that state it.

    Args:
        rng: Source of every choice.
        stock: Names and words of the facts.
        num_passages: How many passages to write.
        facts: Facts in each passage, 1 or more.
        num_questions: Questions to ask, 1 or more.
        unanswerable: Share of questions about facts that were not stated.
        filler: Real sentences to mix in between the facts.
    """
    drafts: list[Draft] = []
    passages: list[PromptPassage] = []
    stated: list[tuple[_Fact, int]] = []
    seen: set[str] = set()
    for index in range(num_passages):
        sentences = [rng.choice(filler) for _ in range(rng.randint(0, 2))] if filler else []
        for _ in range(facts):
            fact = _make_fact(rng, stock)
            # An answer that starts the sentence with a capital would not be a span of it.
            if fact.answer in fact.statement and fact.question not in seen:
                seen.add(fact.question)
                sentences.insert(rng.randint(0, len(sentences)), fact.statement)
                stated.append((fact, index))
        passages.append(PromptPassage(f"p{index}", rng.choice(TITLES), " ".join(sentences) or "Empty."))
    for _ in range(num_questions):
        if not stated or rng.random() < unanswerable:
            question = _unstated_question(rng, stock, [fact for fact, _ in stated])
            drafts.append(Draft(question, None, -1))
        else:
            fact, index = rng.choice(stated)
            drafts.append(Draft(fact.question, fact.answer, index))
    return arrange(rng, passages, drafts)
