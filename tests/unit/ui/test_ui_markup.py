from __future__ import annotations

from html.parser import HTMLParser

import pytest

from ui.markup import escape, escape_lines, render

HOSTILE = (
    "<script>window.pwned=1</script>",
    '<img src="http://tracker.invalid/p.png" onerror="window.pwned=1">',
    "![picture](http://tracker.invalid/p.png)",
    "[click](javascript:window.pwned=1)",
    "[click](http://tracker.invalid)",
    "<javascript:window.pwned=1>",
    "<http://tracker.invalid/x>",
    '"><svg onload=window.pwned=1>',
    "`<img src=x onerror=window.pwned=1>`",
    "```\n<img src=x onerror=window.pwned=1>\n```",
    "<style>@import 'http://tracker.invalid/x.css'</style>",
    "[ref]\n\n[ref]: http://tracker.invalid",
    "<div>\n\n<iframe src=http://tracker.invalid></iframe>\n\n</div>",
    "|a|\n|-|\n|<img src=x onerror=window.pwned=1>|",
)

RENDERED_TAGS = {"p", "br", "code", "pre", "em", "strong", "s", "ul", "ol", "li", "blockquote", "hr", "table"}
RENDERED_TAGS |= {"thead", "tbody", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6", "button"}


class Page(HTMLParser):
    """What a browser would make of some HTML: its tags, their attributes, its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("hostile", HOSTILE)
def test_model_output_never_becomes_markup_of_its_own(hostile: str):
    page = Page(render(f"Before {hostile} after\n\n{hostile}"))
    assert {tag for tag, _ in page.tags} <= RENDERED_TAGS
    for _, attributes in page.tags:
        assert not {name for name in attributes if name not in ("class", "style")}
        assert attributes.get("style") in (None, "text-align:left", "text-align:right", "text-align:center")


@pytest.mark.parametrize("hostile", [*HOSTILE, "a\r\nb\rc\n\n\td", "\u200b\u202efdp", "&amp; &lt; &#60;"])
def test_escaped_text_reads_back_as_itself(hostile: str):
    page = Page(f'<div title="{escape(hostile)}">{escape(hostile)}</div>')
    assert page.tags == [("div", {"title": hostile})]
    assert page.text == hostile


def test_html_cannot_hold_nul_so_it_is_replaced():
    assert escape("a\0b") == "a\ufffdb"


def test_rendered_html_holds_no_line_break():
    html = render(
        "# Title\n\n- a\n- b\n\n```py\nx = 1\n\ny = 2\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nend\nof it"
    )
    assert "\n" not in html
    assert Page(html).text.count("x = 1\n\ny = 2") == 1


def test_markdown_keeps_its_meaning():
    tags = [tag for tag, _ in Page(render("**b** *i* `c`\n\n1. one\n2. two")).tags]
    assert tags == ["p", "strong", "em", "code", "ol", "li", "li"]


def test_marks_become_chips_in_text_and_stay_text_in_code():
    html = render(
        "One [1] two [1][2], `a[1]` and [9].", {1: "<button>1</button>", 2: "<button>2</button>"}.get
    )
    page = Page(html)
    assert [tag for tag, _ in page.tags] == ["p", "button", "button", "button", "code"]
    assert page.text == "One 1 two 12, a[1] and [9]."


def test_lines_stay_lines():
    assert escape_lines("a\n<b>\r\nc") == "a<br>&lt;b&gt;<br>c"
