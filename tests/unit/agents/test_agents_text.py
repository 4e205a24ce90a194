"""Words and sentences: matching keys and exact spans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.sentences import MAX_SENTENCE_CHARS, sentences
from agents.words import words


def texts(text: str) -> list[str]:
    return [text[one.start : one.end] for one in sentences(text)]


def keys(text: str) -> list[str]:
    return [word.key for word in words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met J. R. Doe at 3.5 p.m. in the U.S. Army.", None),
        ("It grew by 3.14 percent. Then it fell.", ["It grew by 3.14 percent.", "Then it fell."]),
        ("# Title\nBody text.", ["# Title", "Body text."]),
        ("Short title\nBody text follows here.", ["Short title", "Body text follows here."]),
        ("- first point\n- second point", ["first point", "second point"]),
        ("1. first step\n2. second step", ["first step", "second step"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", ["| a | b |", "| 1 | 2 |"]),
        ("東京は首都です。人口は多い。", ["東京は首都です。", "人口は多い。"]),
        ('He said "stop." Then he left.', ['He said "stop."', "Then he left."]),
        ("\n\n  \n", []),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text: str, expected: list[str] | None):
    assert texts(text) == (expected if expected is not None else [text])


def test_a_hard_wrapped_line_goes_on_in_the_next():
    text = "The key and value tensors of a sequence are stored in\nblocks of sixteen tokens. New line."
    assert texts(text) == [text[: text.index(" New")], "New line."]


def test_text_without_boundaries_is_cut():
    assert all(len(one) <= MAX_SENTENCE_CHARS for one in texts("word " * 1_000))
    assert all(len(one) <= MAX_SENTENCE_CHARS for one in texts("x" * 5_000))


@given(st.text(alphabet=st.sampled_from("aB1 .!?\n\t|#-é東。\u200b\U0001f600'\""), max_size=300))
def test_sentences_are_ordered_trimmed_and_disjoint(text: str):
    end = 0
    for one in sentences(text):
        assert end <= one.start < one.end <= len(text)
        assert text[one.start : one.end] == text[one.start : one.end].strip()
        end = one.end


@given(st.text(max_size=200))
def test_a_word_stands_where_it_says(text: str):
    end = 0
    for word in words(text):
        assert end <= word.start < word.end <= len(text)
        assert word.key
        end = word.end


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("32,768 tokens", "32768 tokens"),
        ("Zürich", "ZURICH"),
        ("Zu\u0308rich", "Zürich"),
        ("vLLM\u2019s cache", "vllm's cache"),
        ("three blocks", "3 blocks"),
        ("\uff27\uff30\uff35", "gpu"),
        ("GPT-4", "gpt 4"),
        ("straße", "STRASSE"),
    ],
)
def test_spellings_of_one_word_share_a_key(left: str, right: str):
    assert keys(left) == keys(right)


def test_forms_of_one_word_share_a_stem():
    assert {word.stem for word in words("create creates created creating")} == {"creat"}


def test_names_are_told_from_words():
    named = {
        word.key for word in words("The vLLM engine of Berkeley uses INT8 and paged blocks") if word.is_name
    }
    assert named == {"vllm", "berkeley", "int8"}
