from __future__ import annotations

from pathlib import Path

import pytest

from serving.prompt import RAG_SYSTEM
from serving.tokenizer import ModelTokenizer
from training.pretraining.corpus import GlossaryEntry, HumanPassage, HumanQuestion, Page
from training.pretraining.human_tasks import HumanQuestions
from training.pretraining.mixture import Library
from training.pretraining.synthetic_tasks import WordStock
from training.pretraining.tokenizer import save_tokenizer, train_tokenizer

PARAGRAPHS = (
    "The Normans were a people of northern France. In 1066 their duke William crossed the sea and took "
    "England. About 7000 men sailed with William from Normandy, and they landed at Pevensey in the autumn.",
    "A steam engine turns heat into work. James Watt improved the engine in Glasgow, and in 1776 the first "
    "of his engines was sold. Early engines wasted most of their heat, as Watt found.",
    "The river rises near Salisbury and flows through Hampshire to the sea. Farmers along the river raised "
    "sheep, and by 1800 some 40 percent of the wool of Hampshire left the harbour of Southampton.",
    "Plants make sugar from light. The work is done in the leaf, where a green pigment called chlorophyll "
    "takes up light. Water rises from the roots, and in the leaf it meets carbon dioxide from the air.",
)


def _human(index: int) -> HumanPassage:
    asked = (
        HumanQuestion("When did William take England?", ("1066",)),
        HumanQuestion("Who improved the engine?", ("James Watt",)),
        HumanQuestion("where does the river rise", ("Salisbury", "near Salisbury")),
        HumanQuestion("What takes up light?", ("chlorophyll",)),
    )[index]
    return HumanPassage(
        f"Article {index}", PARAGRAPHS[index], (asked, HumanQuestion("Who sold the moon?", ()))
    )


@pytest.fixture(scope="session")
def library() -> Library:
    """A library small enough to read in one sitting; the real one has the same shape."""
    pages = [Page(f"Page {n}", "\n".join((*PARAGRAPHS[n:], *PARAGRAPHS[:n]))) for n in range(4)]
    humans = [_human(index) for index in range(4)]
    glossary = [
        GlossaryEntry("Book", f"term{n}", f"the kind number {n} of thing that {n} people need")
        for n in range(60)
    ]
    countries = {
        name: {f"Field {n}": f"value {n} of {name} (2023 est.)" for n in range(9)}
        | {"Capital name": f"{name} City"}
        for name in ("Aland", "Borduria", "Carpathia", "Dalmaria", "Elbonia", "Florin", "Grandia", "Hav")
    }
    return Library(
        pages=pages,
        running_text=pages,
        stock=WordStock.from_texts(PARAGRAPHS, num_names=50, num_words=90, skip_words=5),
        glossary=glossary,
        countries=countries,
        squad=HumanQuestions(humans),
        nq=HumanQuestions(humans),
        nq_held_out=humans[:1],
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(
        train_tokenizer([*PARAGRAPHS, RAG_SYSTEM, "tool user assistant"] * 4, 512), folder, max_tokens=512
    )
    return folder


@pytest.fixture(scope="session")
def encoder(tokenizer_folder: Path) -> ModelTokenizer:
    return ModelTokenizer(tokenizer_folder / "tokenizer.json")
