from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from keepset.text.wikitext import to_prose

_TAIL = " It has been this way for as long as anyone there can remember."


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        ("'''Bold''' and ''italic''.", "Bold and italic."),
        ("A [[river]] and the [[sea|open sea]].", "A river and the open sea."),
        ("A [[ship|small|fast one]].", "A fast one."),
        (
            "See [[wikt:word|the word]] and [[:Category:Rivers]].",
            "See the word and Category:Rivers.",
        ),
        ("One.[[Category:Rivers]][[fr:Rivière]]", "One."),
        ("[[File:A.jpg|thumb|A [[river]] {{circa|1900}}.]]One.", "One."),
        ("One[http://x.org] and [https://x.org/a?b=[c the page].", "One and the page."),
        ('One<ref name="a/b">Note, [[x]].</ref> two<ref name=c /> three.', "One two three."),
        ("One<!-- a {{comment}} --> two<!-- not closed", "One two"),
        ("At {{convert|1300|km2|sqmi|abbr=on}} wide.", "At 1300 km² wide."),
        ("From {{convert|5|to|6|C}} on.", "From 5 to 6 °C on."),
        ("The Greek {{lang|grc|ἀναρχία}} ({{lang-la|opus}}).", "The Greek ἀναρχία (opus)."),
        ("Text{{citation needed|date={{CURRENTYEAR}}}} goes on.", "Text goes on."),
        (
            "{{as of|2014|lc=y}}, {{as of|2014}} {{frac|1|2}} {{frac|3}}.",
            "as of 2014, As of 2014 1/2 1/3.",
        ),
        (
            "The {{USS|Hornet|CV-12|6}} met {{nowrap|[[Pope]] Clement}}.",
            "The USS Hornet met Pope Clement.",
        ),
        ("A ({{IPA-el|x|pron}}; born 1900, {{IPA|y}}) man.", "A (born 1900) man."),
        ("A letter ({{IPA-el|x}}) here.", "A letter here."),
        ("H<sub>2</sub>O is 10<sup>6</sup> and 19<sup>th</sup>.", "H2O is 10^6 and 19th."),
        ("Cats &amp; dogs&nbsp;ran &ndash; 1 &lt; 2.", "Cats & dogs ran \N{EN DASH} 1 < 2."),
        ("One{{snd}}two{{'s}} __NOTOC__three.", "One \N{EN DASH} two's three."),
    ],
)
def test_inline_markup_becomes_text(markup: str, prose: str) -> None:
    if prose.endswith("two"):
        markup, prose = markup.replace("<!-- not", _TAIL + "<!-- not"), prose + _TAIL
    else:
        markup, prose = markup + _TAIL, prose + _TAIL
    assert to_prose(markup) == prose


@pytest.mark.parametrize(
    "markup",
    [
        '{| class="wikitable"\n|-\n| A cell that ends like any sentence of prose would.\n|}',
        "{|\n|\n{|\n| Inner.\n|}\n A row of the outer table that is left, ending in a stop.\n|}",
        "* A list item that is long enough, and that ends as a sentence does.",
        "== A heading that is long enough, and that ends as a sentence. ==",
        "==See also==\nA paragraph in the end matter, long enough to count as prose.",
        "==Notes==\n===Sub===\nA paragraph below the end matter's heading, long enough to count.",
        "The energy is <math>E = mc^2</math>, so says everybody who was asked about it.",
        "A paragraph with an opener {{that is never closed, and goes on until it ends.",
        "A paragraph with a link [[that is never closed, and goes on until it ends.",
        "<gallery>\nFile:A.jpg|A caption that is as long as a sentence of prose.\n</gallery>",
        "Too short.",
        "A line without an end, such as a caption or a remnant of some table",
        "#REDIRECT [[Elsewhere, in a page with a title long enough.]]",
    ],
)
def test_what_is_not_prose_is_left_out(markup: str) -> None:
    kept = "This paragraph stands before all of it and is kept as it is."
    assert to_prose(f"{kept}\n\n{markup}") == kept


def test_text_after_end_matter_and_tables_is_kept() -> None:
    markup = (
        f"==Notes==\nA note that is long enough to be kept.\n==Life==\n{{|\n|x\n|}}\nLife.{_TAIL}"
    )
    assert to_prose(markup) == f"Life.{_TAIL}"


def test_paragraphs_are_parted_by_one_blank_line() -> None:
    assert to_prose(f"A.{_TAIL}\n\n\nB.{_TAIL}<br/>C.{_TAIL}") == "\n\n".join(
        f"{letter}.{_TAIL}" for letter in "ABC"
    )


@given(
    st.lists(
        st.sampled_from(
            [
                "{{",
                "}}",
                "[[",
                "]]",
                "{|",
                "|}",
                "|",
                "\n",
                "''",
                "<ref>",
                "</ref>",
                "<!--",
                "x",
                ".",
            ]
        ),
        max_size=60,
    )
)
def test_no_markup_survives(pieces: list[str]) -> None:
    prose = to_prose(f"A sentence{''.join(pieces)} that ends.{_TAIL}")
    assert not any(mark in prose for mark in ("{{", "}}", "[[", "]]", "{|", "|}", "<ref", "''"))


def test_unclosed_openers_take_no_exponential_time() -> None:
    start = time.perf_counter()
    to_prose("{{a " * 2000 + "[[b {c ]d " * 2000)
    assert time.perf_counter() - start < 5
