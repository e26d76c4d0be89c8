from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from keepset.text.passages import STOP_WORDS, passages, sentences

FILLER = "Some people came by and looked at what was there for a while."  # 13 words


def _passages(text: str, low: int = 10, high: int = 30) -> list[tuple[str, str]]:
    return list(passages(text, low, high))


def test_the_last_word_and_what_follows_it_are_parted_from_the_rest() -> None:
    text = 'The old Bridge was closed. He said that "nobody may now cross over this bridge."'
    context = 'The old Bridge was closed. He said that "nobody may now cross over this'
    assert _passages(text) == [(context, "bridge")]


@pytest.mark.parametrize(
    ("last", "why"),
    [
        ("garden.", "not said before"),
        ("the.", "too short"),
        ("there.", "a stop word"),
        ("1900.", "a number"),
        ("on-looked.", "not only letters"),
        ("(people).", "in brackets"),
        ("people", "no sentence ends here"),
    ],
)
def test_a_last_word_that_does_not_serve_ends_no_passage(last: str, why: str) -> None:
    assert _passages(f"{FILLER} In 1900 they all went to see the {last}") == [], why


@pytest.mark.parametrize(
    "mark",
    ["[1]", "a_b", "f(x) = 1", "`code`", "<b>", "{x}", "a | b", "http://x.org", "1 2 3 " * 12],
)
def test_paragraphs_that_are_not_prose_are_passed_over(mark: str) -> None:
    assert _passages(f"{FILLER} Then it was seen by these people.") != []
    assert _passages(f"{FILLER} Then {mark} was seen by these people.") == []


def test_wrapped_lines_are_one_paragraph_and_blank_lines_part_them() -> None:
    wrapped = "The river ran on\n   through the valley,\nand we all went back to the river."
    expected = ("The river ran on through the valley, and we all went back to the", "river")
    assert _passages(wrapped) == [expected]
    assert _passages(wrapped.replace("valley,\n", "valley,\n\n")) == []


def test_passages_do_not_overlap_and_stop_at_the_first_end_that_serves() -> None:
    paragraph = " ".join([FILLER, "Then all of these left with the other people."] * 3)
    pairs = _passages(paragraph, 10, 90)
    assert len(pairs) == 3
    assert {f"{context} {target}." for context, target in pairs} == {
        f"{FILLER} Then all of these left with the other people."
    }


_sentence = st.lists(
    st.sampled_from(["river", "People", "the", "with", "Mr. Smith", "10", "went", "U.S.", "house"]),
    min_size=1,
    max_size=12,
).map(lambda words: "Then " + " ".join(words) + ".")


@given(
    st.lists(st.lists(_sentence, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=3),
    st.integers(2, 20),
    st.integers(0, 30),
)
def test_every_passage_keeps_the_promises(parts: list[str], low: int, extra: int) -> None:
    text = "\n\n".join(parts)
    pairs = _passages(text, low, low + extra)
    for context, target in pairs:
        passage = f"{context} {target}"
        assert f"{passage}." in text
        assert low <= len(passage.split()) <= low + extra
        assert target.isalpha()
        assert len(target) >= 4
        assert target.lower() not in STOP_WORDS
        assert target.lower() in context.lower().replace(".", " ").split()
    assert sum(len(f"{context} {target}.") for context, target in pairs) <= len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One went. Two came! Did Three? Yes.", ["One went.", "Two came!", "Did Three?", "Yes."]),
        (
            'He said "Go." Then he "left!" She too.',
            ['He said "Go."', 'Then he "left!"', "She too."],
        ),
        (
            "Mr. Smith met J. K. Low, e.g. Tom. It rained.",
            ["Mr. Smith met J. K. Low, e.g. Tom.", "It rained."],
        ),
        (
            "The U.S. Senate met on Jan. 5 at St. Paul. No end",
            ["The U.S. Senate met on Jan. 5 at St. Paul.", "No end"],
        ),
        ("It cost 3.5 dollars. 20 came.", ["It cost 3.5 dollars.", "20 came."]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected
