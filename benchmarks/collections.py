"""Retrieval test collections from a data folder: passages, queries and which passages answer them.

The folder is given with `--data`; each collection names the files it reads, and is left out, saying so, where
they are not there. Nothing of it belongs to the product.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.nodes.retrieve import search_query
from agents.state import ChatTurn


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the passages that answer it."""

    text: str
    """As it is searched."""
    gains: dict[str, float]
    """Gain by passage name."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Passages and queries."""

    name: str
    """Its name in the results."""
    passages: dict[str, str]
    """Text by name."""
    queries: tuple[Query, ...]
    """Queries that have at least one relevant passage."""


def load(name: str, data: Path) -> Collection | None:
    """Return a collection of `COLLECTIONS`; None where its files are not in the folder."""
    try:
        return COLLECTIONS[name](data)
    except FileNotFoundError:
        return None


def _rows(path: Path) -> Iterator[Any]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _json(path: Path) -> Any:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _name_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _titled(title: str, text: str) -> str:
    return f"{title}\n{text}" if title else text


def _scifact(data: Path) -> Collection:
    """BEIR's SciFact test task: 5,183 abstracts, 300 claims."""
    folder = data / "scifact"
    passages = {row["_id"]: _titled(row["title"], row["text"]) for row in _rows(folder / "corpus.jsonl.xz")}
    queries = tuple(
        Query(row["claim"], dict.fromkeys(map(str, row["cited_doc_ids"]), 1.0))
        for row in _rows(folder / "claims_dev.jsonl.xz")
        if row["cited_doc_ids"]
    )
    return Collection("scifact", passages, queries)


def _squad2(data: Path) -> Collection:
    """SQuAD 2.0 dev questions that have an answer; paragraphs of dev and distractors."""
    folder = data / "squad2"
    passages = {_name_of(row["text"]): row["text"] for row in _rows(folder / "distractor_passages.jsonl.xz")}
    queries = []
    for article in _json(folder / "dev.json.xz")["data"]:
        for paragraph in article["paragraphs"]:
            name = _name_of(paragraph["context"])
            passages[name] = paragraph["context"]
            queries += [
                Query(question["question"], {name: 1.0})
                for question in paragraph["qas"]
                if not question["is_impossible"]
            ]
    return Collection("squad2", passages, tuple(queries))


def _nq_gold(data: Path) -> Collection:
    """Natural Questions dev with gold passages, among those of train and dev."""
    folder = data / "nq-gold"
    passages: dict[str, str] = {}
    queries = []
    for split in ("train", "dev"):
        for row in _rows(folder / f"{split}.jsonl.xz"):
            gold = _titled(row["ctxs"][0]["title"], row["ctxs"][0]["text"])
            passages[_name_of(gold)] = gold
            if split == "dev":
                queries.append(Query(row["question"], {_name_of(gold): 1.0}))
    return Collection("nq-gold", passages, tuple(queries))


def _clapnq(data: Path) -> Collection:
    """CLAPnq dev: answerable questions, among the passages of answerable and unanswerable ones."""
    folder = data / "clapnq-dev"
    passages: dict[str, str] = {}
    queries = []
    for kind in ("answerable", "unanswerable"):
        for row in _rows(folder / f"clapnq_dev_{kind}.jsonl.xz"):
            names = []
            for passage in row["passages"]:
                text = _titled(passage["title"], passage["text"])
                passages[_name_of(text)] = text
                names.append(_name_of(text))
            if kind == "answerable":
                queries.append(Query(row["input"], dict.fromkeys(names, 1.0)))
    return Collection("clapnq", passages, tuple(queries))


def _mtrag(data: Path, name: str, query_of: Callable[[list[ChatTurn]], str]) -> Collection:
    """MTRAG tasks with human judgements: the query made of a conversation's turns, 350 passages."""
    file = "mtrag-human__evaluations__reference_subset_with_human_evaluations.json.xz"
    given = _json(data / "mtrag" / file)
    passages = {item["document_id"]: item["text"] for item in given["documents"]}
    queries = []
    for task in given["tasks"]:
        turns = [
            ChatTurn("user" if turn["speaker"] == "user" else "assistant", turn["text"])
            for turn in task["input"]
        ]
        gains = {item["document_id"]: 1.0 for item in task["contexts"] if item["document_id"] in passages}
        if gains:
            queries.append(Query(query_of(turns), gains))
    return Collection(name, passages, tuple(queries))


def _as_asked(turns: list[ChatTurn]) -> str:
    """Return what the platform searches for: the last user turn, and the one before it."""
    return search_query(turns[-1].text, turns)


def _last_turn(turns: list[ChatTurn]) -> str:
    return turns[-1].text


COLLECTIONS: dict[str, Callable[[Path], Collection]] = {
    "scifact": _scifact,
    "squad2": _squad2,
    "nq-gold": _nq_gold,
    "clapnq": _clapnq,
    "mtrag": lambda data: _mtrag(data, "mtrag", _as_asked),
    "mtrag-last-turn": lambda data: _mtrag(data, "mtrag-last-turn", _last_turn),
}
"""How each collection is read."""
