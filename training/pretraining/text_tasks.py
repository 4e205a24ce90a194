"""Reading practice made from real text: cloze questions, wh-questions made from clozes, recurring spans.

Sources: recurring-span selection is Splinter's task (Ram et al. 2021, https://arxiv.org/abs/2101.00438);
turning clozes into noisy wh-questions is Lewis et al. 2019 (https://arxiv.org/abs/1906.04980).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from serving.prompt import PromptPassage
from training.pretraining.corpus import Page
from training.pretraining.reading_tasks import Draft, ReadingExample, arrange, cut_passages, split_sentences

STOPWORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "from",
        "by",
        "with",
        "and",
        "or",
        "but",
        "as",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "has",
        "have",
        "had",
        "do",
        "does",
        "did",
        "that",
        "this",
        "these",
        "those",
        "it",
        "its",
        "they",
        "their",
        "them",
        "he",
        "his",
        "she",
        "her",
        "we",
        "our",
        "you",
        "your",
        "who",
        "which",
        "what",
        "when",
        "where",
        "how",
        "why",
        "not",
        "no",
        "can",
        "could",
        "may",
        "might",
        "must",
        "shall",
        "should",
        "will",
        "would",
        "than",
        "then",
        "there",
        "such",
        "so",
        "if",
        "into",
        "about",
        "over",
        "under",
        "after",
        "before",
        "between",
        "during",
        "through",
        "also",
        "more",
        "most",
        "some",
        "any",
        "all",
        "each",
        "other",
        "one",
        "only",
        "very",
        "out",
        "up",
        "because",
        "while",
        "i",
    ]
)
_YEAR = re.compile(r"\b(?:1[0-9]{3}|20[0-2][0-9])s?\b(?!,)")
_NUMBER = re.compile(r"(?<![\w.])\$?\d[\d,]*(?:\.\d+)?(?: percent| million| billion|%)?(?![\w])")
_NAME = re.compile(
    r"(?<=[a-z,;] )(?:the )?[A-Z][\w\u2019'-]+(?: (?:of |the |de |and the )?[A-Z][\w\u2019'-]+){0,4}"
)
_PLACE_BEFORE = frozenset(["in", "at", "from", "near", "to", "across", "throughout", "into"])


@dataclass(frozen=True, slots=True)
class Noise:
    """How far a made question departs from the sentence it came from."""

    cloze: float
    """Share of questions left as the sentence with a blank, the easiest kind."""
    drop: float
    """Most that the chance of dropping a word may be; each question draws its own."""
    lower: float
    """Share of questions in lower case without a question mark, as people type into a search box."""


def _answer_spans(rng: random.Random, sentence: str) -> tuple[int, int, str] | None:
    """Return (start, end, kind) of a span worth asking for, or None."""
    kind = rng.choices(("year", "number", "name", "phrase"), (2, 2, 6, 4))[0]
    if kind == "phrase":
        spans = _phrases(sentence)
    else:
        pattern = {"year": _YEAR, "number": _NUMBER, "name": _NAME}[kind]
        spans = [match.span() for match in pattern.finditer(sentence)]
    spans = [span for span in spans if 2 <= span[1] - span[0] <= 60]
    if not spans:
        return None
    return (*rng.choice(spans), kind)


def _phrases(sentence: str) -> list[tuple[int, int]]:
    """Return runs of one to four content words."""
    spans: list[tuple[int, int]] = []
    run: list[tuple[int, int]] = []
    for match in re.finditer(r"[\w\u2019'-]+|[^\w\s]", sentence):
        word = match.group()
        if word.lower() in STOPWORDS or not word[0].isalpha():
            if 1 <= len(run) <= 4:
                spans.append((run[0][0], run[-1][1]))
            run = []
        else:
            run.append(match.span())
    return spans


def _wh_word(rng: random.Random, kind: str, span: str, before: str) -> str:
    last = before.split()[-1].lower() if before.split() else ""
    if kind == "year":
        return rng.choice(("When", "In what year", "What year", "When"))
    if kind == "number":
        if "$" in span or "%" in span or "percent" in span:
            return rng.choice(
                ("How much", "What percentage" if "$" not in span else "How much money", "How many")
            )
        return rng.choice(("How many", "How many", "What number"))
    if kind == "name":
        if last in _PLACE_BEFORE:
            return rng.choice(("Where", "Where", "In what place", "What country", "Which"))
        if last == "by" or (" " in span and not span.startswith("the ")):
            return rng.choice(("Who", "Who", "Which", "What"))
        return rng.choice(("Who", "What", "Which", "What"))
    return rng.choice(("What", "What", "Which", "What kind of", "How"))


def _drop_words(rng: random.Random, words: list[str], chance: float) -> list[str]:
    kept = [w for w in words if rng.random() >= chance * (1.5 if w.lower() in STOPWORDS else 0.7)]
    return kept if len(kept) >= 2 else words


def _ask(rng: random.Random, sentence: str, start: int, end: int, kind: str, noise: Noise) -> str:
    """Return a question whose answer is `sentence[start:end]`."""
    before, span, after = sentence[:start].strip(), sentence[start:end], sentence[end:].strip()
    after = after.rstrip(' .!?"\u201d)')
    if rng.random() < noise.cloze:
        return f"{before} ____ {after}".strip()
    wh = _wh_word(rng, kind, span, before)
    keep_before, keep_after = rng.randint(3, 14), rng.randint(2, 12)
    head, tail = before.split()[-keep_before:], after.lstrip(",;: ").split()[:keep_after]
    if head and wh in ("When", "Where") and head[-1].lower() in _PLACE_BEFORE | {"in", "by", "since"}:
        head = head[:-1]
    chance = rng.random() * noise.drop
    head, tail = _drop_words(rng, head, chance), _drop_words(rng, tail, chance)
    if len(head) <= 2 and len(tail) >= 3:
        words = [wh, *tail]
    else:
        auxiliary = rng.choice(("did", "was", "is", "does", "were", "", ""))
        words = [wh, *([auxiliary] if auxiliary else []), *head, *(tail if rng.random() < 0.7 else [])]
    if rng.random() < 0.15 and len(words) > 5:
        words = [*words[3:], *(word.lower() for word in words[:1])]
    question = " ".join(words).rstrip(" ,;:")
    if rng.random() < noise.lower:
        return question.lower()
    return question[0].upper() + question[1:] + "?"


def make_question(rng: random.Random, passage: str, noise: Noise) -> tuple[str, str] | None:
    """Return (question, answer) about one sentence of a passage, or None when the draw finds nothing."""
    sentence = rng.choice(split_sentences(passage) or [""])
    if not 30 <= len(sentence) <= 320:
        return None
    found = _answer_spans(rng, sentence)
    if found is None:
        return None
    start, end, kind = found
    return _ask(rng, sentence, start, end, kind, noise), sentence[start:end]


def text_questions(
    rng: random.Random,
    pages: list[Page],
    noise: Noise,
    *,
    num_passages: int,
    max_chars: int,
    num_questions: int,
    unanswerable: float,
) -> ReadingExample | None:
    """Return passages of one page with questions made from their sentences; None for a page too short.

    Unanswerable questions come from a passage of the same page that is not shown.
    """
    page = rng.choice(pages)
    pieces = [
        piece
        for piece in cut_passages(page.text, max_chars)
        if len(piece) > max_chars // 3 and "http" not in piece
    ]
    if len(pieces) < num_passages + 1:
        return None
    if rng.random() < 0.5:
        first = rng.randrange(len(pieces) - num_passages)
        chosen = pieces[first : first + num_passages + 1]
    else:
        chosen = rng.sample(pieces, num_passages + 1)
    hidden = chosen.pop()
    shown_text = "\n".join(chosen)
    drafts: list[Draft] = []
    for _ in range(num_questions * 3):
        if len(drafts) == num_questions:
            break
        missing = rng.random() < unanswerable
        source = rng.randrange(len(chosen))
        made = make_question(rng, hidden if missing else chosen[source], noise)
        if made is None or (missing and made[1] in shown_text):
            continue
        drafts.append(Draft(made[0], None, -1) if missing else Draft(made[0], made[1], source))
    if not drafts:
        return None
    title = page.title if rng.random() < 0.8 else ""
    return arrange(rng, [PromptPassage(f"p{i}", title, text) for i, text in enumerate(chosen)], drafts)


def recurring_spans(
    rng: random.Random, pages: list[Page], *, num_passages: int, max_chars: int, num_questions: int
) -> ReadingExample | None:
    """Return passages, asked by sentences of hidden passages that share a span with exactly one."""
    page = rng.choice(pages)
    pieces = [
        piece
        for piece in cut_passages(page.text, max_chars)
        if len(piece) > max_chars // 3 and "http" not in piece
    ]
    if len(pieces) < num_passages + 2:
        return None
    rng.shuffle(pieces)
    shown, rest = pieces[:num_passages], pieces[num_passages : num_passages + 12]
    drafts: list[Draft] = []
    for piece in rest:
        for sentence in split_sentences(piece):
            if not 40 <= len(sentence) <= 220 or len(drafts) == num_questions:
                continue
            names = [match.span() for match in _NAME.finditer(sentence)]
            rng.shuffle(names)
            for start, end in names[:3]:
                span = sentence[start:end]
                holders = [index for index, text in enumerate(shown) if span in text]
                if len(holders) == 1 and len(span) >= 4:
                    question = f"{sentence[:start]}____{sentence[end:]}"
                    drafts.append(Draft(question, span, holders[0]))
                    break
    if not drafts:
        return None
    return arrange(rng, [PromptPassage(f"p{i}", page.title, text) for i, text in enumerate(shown)], drafts)
