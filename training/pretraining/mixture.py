"""What is practised in each stage of pre-training, and the batches made from it.

Every batch is a function of (seed, stage, step) alone. A run therefore resumes at the exact next example
from the step number, on any number of loader workers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from serving.prompt import END_OF_TEXT, RAG_SYSTEM, TextEncoder
from training.errors import ConfigError
from training.pretraining.corpus import (
    HumanPassage,
    Page,
    read_books,
    read_countries,
    read_glossary,
    read_nq,
    read_squad,
    read_textbooks,
)
from training.pretraining.human_tasks import HumanQuestions
from training.pretraining.packing import Batch, PackedDocument, control_id, fill_rows, pack_example, pack_text
from training.pretraining.reading_tasks import ReadingExample, split_sentences
from training.pretraining.structured_tasks import country_questions, glossary_questions
from training.pretraining.synthetic_tasks import WordStock, lookup_list, statements
from training.pretraining.text_tasks import Noise, recurring_spans, text_questions

KINDS = ("text", "lookup", "statements", "cloze", "wh", "recurring", "glossary", "countries", "squad", "nq")
"""Every task a mixture may name."""

HELD_OUT_NQ = 150
"""The last questions of nq-gold/train, kept for watching the run."""


@dataclass(frozen=True, slots=True)
class StageConfig:
    """A stretch of training with one mixture and one row length."""

    name: str
    """Shown in the log."""
    steps: int
    """Optimizer steps; under a wall-clock limit `share` counts instead."""
    share: float
    """Share of the wall-clock limit, when one is given; shares add up to 1."""
    rows: int
    """Rows in a batch."""
    row_tokens: int
    """Tokens in a row; a document is never longer."""
    passages: tuple[int, int]
    """Fewest and most passages of an example."""
    max_chars: tuple[int, int]
    """Range of the longest passage, characters."""
    questions: tuple[int, int]
    """Fewest and most questions asked about the passages of one example."""
    unanswerable: float
    """Share of questions without an answer."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Task -> weight, by number of documents."""
    cloze: float = 0.3
    """Share of made questions left as clozes."""
    drop: float = 0.3
    """Most that words of made questions are dropped."""

    def __post_init__(self) -> None:
        """Refuse unknown tasks and empty sizes.

        Raises:
            ConfigError: Naming the stage and the field.
        """
        unknown = set(self.mixture) - set(KINDS)
        if unknown or not self.mixture:
            raise ConfigError(
                f"stage {self.name!r}: mixture names {sorted(unknown)}; tasks are {', '.join(KINDS)}"
            )
        if min(self.steps, self.rows, self.row_tokens) < 1:
            raise ConfigError(f"stage {self.name!r}: steps, rows and row_tokens are 1 or more")


@dataclass(frozen=True, slots=True)
class Library:
    """Everything practice is made from, read once."""

    pages: list[Page]
    """Textbook modules, for questions."""
    running_text: list[Page]
    """Textbook modules and books, for language modelling."""
    stock: WordStock
    """Words for synthetic facts."""
    glossary: list
    """Terms and definitions."""
    countries: dict[str, dict[str, str]]
    """Country profiles."""
    squad: HumanQuestions
    """Questions about Wikipedia paragraphs, with unanswerable ones."""
    nq: HumanQuestions
    """Search-engine questions with their gold passage."""
    nq_held_out: list[HumanPassage]
    """Never practised; for watching the run."""

    @classmethod
    def read(cls, data: Path, *, max_books: int) -> Library:
        """Return the library of a data folder; about ten seconds."""
        pages = [page for page in read_textbooks(data) if len(page.text) >= 1500]
        books = read_books(data, max_books=max_books, max_chars=60_000)
        nq = read_nq(data / "nq-gold" / "train.jsonl.xz")
        return cls(
            pages=pages,
            running_text=[*pages, *books],
            stock=WordStock.from_texts(page.text for page in pages[::6]),
            glossary=read_glossary(data),
            countries=read_countries(data),
            squad=HumanQuestions(read_squad(data / "squad2" / "train.json.xz")),
            nq=HumanQuestions(nq[:-HELD_OUT_NQ]),
            nq_held_out=nq[-HELD_OUT_NQ:],
        )

    def tokenizer_texts(self, seed: int, max_chars: int) -> list[str]:
        """Return a fixed sample of all text, with the prompt's own words many times over."""
        rng = random.Random(f"{seed}/tokenizer")
        texts = [RAG_SYSTEM] * 200 + ["Not in the documents. [1] [2] [3] [4] [5]"] * 200
        for human in (self.squad, self.nq):
            texts += [p.text for p in human.passages] + [
                q.question for p in human.passages for q in p.questions
            ]
        for name, fields in self.countries.items():
            texts.append(name + "\n" + "\n".join(f"{key}: {value}" for key, value in fields.items()))
        texts += [f"{entry.term}: {entry.definition}" for entry in self.glossary]
        size = sum(map(len, texts))
        for page in rng.sample(self.running_text, len(self.running_text)):
            if size >= max_chars:
                break
            texts.append(page.text[:20_000])
            size += len(texts[-1])
        return texts


class Mixture:
    """Makes the batches of every stage."""

    def __init__(
        self, library: Library, encoder: TextEncoder, stages: tuple[StageConfig, ...], seed: int
    ) -> None:
        """Keep references; nothing is computed before a batch is asked for."""
        self.library = library
        self.encoder = encoder
        self.stages = stages
        self.seed = seed
        self._pad_id = control_id(END_OF_TEXT, encoder)

    def batch(self, stage_index: int, step: int) -> Batch:
        """Return the batch of one step of one stage; the same arguments give the same batch."""
        stage = self.stages[stage_index]
        rng = random.Random(f"{self.seed}/{stage_index}/{step}")
        wanted = stage.rows * stage.row_tokens
        documents: list[PackedDocument] = []
        size = 0
        # A tenth more than fits, so that the last gaps of the rows find something small enough.
        while size < 1.1 * wanted:
            document = self._document(rng, stage)
            if document is not None and len(document.token_ids) <= stage.row_tokens:
                documents.append(document)
                size += len(document.token_ids)
        return fill_rows(documents, stage.rows, stage.row_tokens, self._pad_id)

    def _document(self, rng: random.Random, stage: StageConfig) -> PackedDocument | None:
        kind = rng.choices(list(stage.mixture), list(stage.mixture.values()))[0]
        if kind == "text":
            page = rng.choice(self.library.running_text)
            start = rng.randrange(max(1, len(page.text) - 800))
            start = page.text.find(" ", start) + 1
            tokens = min(stage.row_tokens, rng.randint(100, 500))
            return pack_text(page.text[start : start + 6 * tokens], self.encoder, tokens)
        example = self.example(rng, kind, stage)
        return None if example is None else pack_example(kind, example, self.encoder)

    def example(self, rng: random.Random, kind: str, stage: StageConfig) -> ReadingExample | None:
        """Return one example of a task at a stage's size, or None when the draw gave nothing."""
        library = self.library
        num_passages = rng.randint(*stage.passages)
        max_chars = rng.randint(*stage.max_chars)
        num_questions = rng.randint(*stage.questions)
        unanswerable = stage.unanswerable
        lines = max(1, max_chars // 40)
        match kind:
            case "lookup":
                return lookup_list(rng, library.stock, num_passages=num_passages,
                                   entries=rng.randint(1, lines), num_questions=num_questions,
                                   unanswerable=unanswerable)  # fmt: skip
            case "statements":
                filler = tuple(
                    s for s in split_sentences(rng.choice(library.pages).text[:3000]) if len(s) < 160
                )
                return statements(rng, library.stock, num_passages=num_passages,
                                  facts=rng.randint(1, max(1, lines // 2)), num_questions=num_questions,
                                  unanswerable=unanswerable,
                                  filler=filler if max_chars > 250 else ())  # fmt: skip
            case "glossary":
                return glossary_questions(rng, library.glossary, num_passages=num_passages,
                                          entries=rng.randint(1, max(1, max_chars // 130)),
                                          num_questions=num_questions, unanswerable=unanswerable)  # fmt: skip
            case "countries":
                return country_questions(rng, library.countries, num_passages=num_passages,
                                         fields=rng.randint(3, max(3, max_chars // 45)),
                                         num_questions=num_questions, unanswerable=unanswerable)  # fmt: skip
            case "cloze" | "wh":
                noise = Noise(1.0 if kind == "cloze" else stage.cloze, stage.drop, 0.35)
                return text_questions(rng, library.pages, noise, num_passages=num_passages,
                                      max_chars=max_chars, num_questions=num_questions,
                                      unanswerable=unanswerable)  # fmt: skip
            case "recurring":
                return recurring_spans(rng, library.pages, num_passages=num_passages, max_chars=max_chars,
                                       num_questions=num_questions)  # fmt: skip
            case _:
                human = library.squad if kind == "squad" else library.nq
                return human.example(rng, num_passages=num_passages, max_chars=max(max_chars, 250),
                                     num_questions=num_questions, unanswerable=unanswerable)  # fmt: skip
