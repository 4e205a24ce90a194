"""Chunks are exact spans, cover the text, and fit the embedder."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.config import PACKAGED_EMBEDDER, RetrievalConfig
from retrieval.extraction.chunking import Chunker
from retrieval.model_files import model_folder, tokenizer_file
from retrieval.types import DocumentText

CONFIG = RetrievalConfig(chunk_tokens=24, chunk_overlap_tokens=6, max_chunk_chars=120)


@pytest.fixture(scope="module")
def chunker() -> Chunker:
    return Chunker(tokenizer_file(model_folder(PACKAGED_EMBEDDER)), CONFIG)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
TEXTS = st.lists(
    st.one_of(WORDS, st.sampled_from([" ", "\n", "\n\n", ". ", "日本語", "😀", "a" * 300])), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(pieces=TEXTS, joint=st.sampled_from([" ", "", "\n"]))
def test_chunks_are_exact_spans_that_cover_the_text_and_fit(
    chunker: Chunker, pieces: list[str], joint: str
) -> None:
    text = joint.join(pieces)
    chunks = chunker.chunks(DocumentText(text))
    covered = set()
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert text[chunk.start : chunk.end] == chunk.text
        assert 0 < len(chunk.text) <= CONFIG.max_chunk_chars
        assert chunker.num_tokens(chunk.text) <= CONFIG.chunk_tokens
        covered.update(range(chunk.start, chunk.end))
    assert {at for at, character in enumerate(text) if not character.isspace()} <= covered
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)


def test_neighbours_overlap(chunker: Chunker) -> None:
    text = " ".join(f"word{number}" for number in range(100))
    chunks = chunker.chunks(DocumentText(text))
    assert len(chunks) > 5
    assert any(after.start < before.end for before, after in itertools.pairwise(chunks))


def test_page_is_that_of_the_first_character(chunker: Chunker) -> None:
    pages = ["first page " * 30, "second page " * 30, "third"]
    text, starts = "", []
    for page in pages:
        starts.append(len(text))
        text += page + "\n\n"
    for chunk in chunker.chunks(DocumentText(text, tuple(starts))):
        assert chunk.page == sum(start <= chunk.start for start in starts)


def test_documents_without_pages_have_none(chunker: Chunker) -> None:
    assert {chunk.page for chunk in chunker.chunks(DocumentText("one two three"))} == {None}


def test_a_giant_word_is_cut_though_it_counts_as_one_token(chunker: Chunker) -> None:
    assert len(chunker.chunks(DocumentText("a" * 1000))) == 9
