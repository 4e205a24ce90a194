"""Reading practice from people's questions, with distractor passages that share the question's words.

Distractors are mined once by shared words weighted by rarity (RAFT, Zhang et al. 2024,
https://arxiv.org/abs/2403.10131: train with the passages a retriever would bring).
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence

from serving.prompt import PromptPassage
from training.pretraining.corpus import HumanPassage
from training.pretraining.reading_tasks import Draft, ReadingExample, arrange, split_sentences

_TOKEN = re.compile(r"\w+")


def words_of(text: str) -> frozenset[str]:
    """Return the distinct lower-case words of a text."""
    return frozenset(_TOKEN.findall(text.lower()))


def rarity(documents: Sequence[frozenset[str]]) -> dict[str, float]:
    """Return the inverse document frequency of every word."""
    counts = Counter(word for words in documents for word in words)
    return {word: math.log(1 + len(documents) / count) for word, count in counts.items()}


def most_similar(
    query: frozenset[str], documents: Sequence[frozenset[str]], weights: dict[str, float], k: int
) -> list[int]:
    """Return the indexes of the `k` documents sharing the most weighted words with the query, best first."""
    scores = [sum(weights.get(word, 0.0) for word in query & words) for words in documents]
    return sorted(range(len(documents)), key=lambda index: (-scores[index], index))[:k]


class HumanQuestions:
    """Passages people asked about, each with its nearest neighbours as distractors."""

    def __init__(self, passages: Sequence[HumanPassage], *, num_neighbours: int = 12) -> None:
        """Mine the neighbours; quadratic in the number of passages, a few seconds for two thousand."""
        self.passages = [passage for passage in passages if passage.questions]
        documents = [words_of(f"{passage.title} {passage.text}") for passage in self.passages]
        weights = rarity(documents)
        self._neighbours: list[list[int]] = []
        for index, passage in enumerate(self.passages):
            query = words_of(" ".join(q.question for q in passage.questions[:4])) | words_of(passage.title)
            found = most_similar(query, documents, weights, num_neighbours + 1)
            self._neighbours.append([other for other in found if other != index][:num_neighbours])

    def example(
        self,
        rng: random.Random,
        *,
        num_passages: int,
        max_chars: int,
        num_questions: int,
        unanswerable: float,
    ) -> ReadingExample | None:
        """Return a passage among its neighbours and questions about all shown; None when none fits.

        Args:
            rng: Source of every choice.
            num_passages: Passages shown, the gold one included.
            max_chars: Longest passage; a longer one is cut around one of its answers.
            num_questions: Most questions to ask.
            unanswerable: Most that the share of unanswerable questions may be.
        """
        centre = rng.randrange(len(self.passages))
        near = self._neighbours[centre]
        if rng.random() < 0.3:
            near = rng.sample(range(len(self.passages)), min(len(self.passages), num_passages + 2))
        others = [index for index in near if index != centre]
        members = [centre, *rng.sample(others, min(num_passages, len(others)))]
        # The last one stays hidden: its questions have no answer in what is shown.
        hidden = members.pop() if len(members) > num_passages else None
        shown: list[PromptPassage] = []
        answerable: list[Draft] = []
        missing: list[Draft] = []
        for index, member in enumerate(members):
            passage = self.passages[member]
            text = cut_around(rng, passage, max_chars)
            shown.append(PromptPassage(f"p{index}", passage.title, text))
            for question in passage.questions:
                spans = [answer for answer in question.answers if answer in text]
                if spans:
                    answerable.append(Draft(question.question, rng.choice(spans), index))
                elif not question.answers:
                    missing.append(Draft(question.question, None, -1))
        if hidden is not None:
            everything = "\n".join(passage.text for passage in shown)
            for question in self.passages[hidden].questions:
                if question.answers and not any(answer in everything for answer in question.answers):
                    missing.append(Draft(question.question, None, -1))
        rng.shuffle(answerable)
        rng.shuffle(missing)
        num_missing = sum(rng.random() < unanswerable for _ in range(num_questions))
        drafts = answerable[: num_questions - num_missing] + missing[:num_missing]
        drafts = drafts or answerable[:1] or missing[:1]
        return arrange(rng, shown, drafts) if drafts else None


def cut_around(rng: random.Random, passage: HumanPassage, max_chars: int) -> str:
    """Return the passage, or when it is too long a run of its sentences that holds some answer."""
    if len(passage.text) <= max_chars:
        return passage.text
    answers = [answer for question in passage.questions for answer in question.answers]
    sentences = split_sentences(passage.text)
    holding = [i for i, sentence in enumerate(sentences) if any(answer in sentence for answer in answers)]
    first = last = rng.choice(holding or list(range(len(sentences))))
    size = len(sentences[first])
    while True:
        grow = [
            i
            for i in (first - 1, last + 1)
            if 0 <= i < len(sentences) and size + len(sentences[i]) < max_chars
        ]
        if not grow:
            return " ".join(sentences[first : last + 1])
        added = rng.choice(grow)
        first, last, size = min(first, added), max(last, added), size + len(sentences[added]) + 1
