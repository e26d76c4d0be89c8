"""Recall episodes."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from keepset.errors import TextError
from keepset.text.recall import NAMES, THINGS, Episode, draw_episode, prose_sentences

PROSE = ["One two three.", "Four five, six seven.", "Eight nine ten eleven twelve."]


def test_an_episode_reads_as_documented() -> None:
    episode = Episode((("Anna", "ring"), ("Paul", "key")), "Some text.", (1, 0))
    assert "".join(text for text, _ in episode.pieces()) == (
        "Remember: Anna ring, Paul key. Some text. Recall: Paul key, Anna ring."
    )
    assert [text for text, answer in episode.pieces() if answer] == [" key", " ring"]
    assert episode.question() == (
        "Remember: Anna ring, Paul key. Some text. Recall: Paul",
        " key",
    )


def test_the_words_are_distinct() -> None:
    assert len(set(NAMES)) == len(set(THINGS)) == 64
    assert not set(NAMES) & set(THINGS)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 40))
def test_an_episode_has_what_was_asked_for(seed: int, n_facts: int, distance: int) -> None:
    episode = draw_episode(np.random.default_rng(seed), n_facts, distance, PROSE)
    assert len({name for name, _ in episode.facts}) == n_facts
    assert len({thing for _, thing in episode.facts}) == n_facts
    assert sorted(episode.asked) == list(range(n_facts))
    assert len(episode.between.split()) == distance
    assert episode == draw_episode(np.random.default_rng(seed), n_facts, distance, PROSE)


@pytest.mark.parametrize("fact", [0, 3])
def test_every_fact_is_asked_for_first_in_some_episode(fact: int) -> None:
    asked = {draw_episode(np.random.default_rng(s), 4, 0, PROSE).asked[0] for s in range(60)}
    assert fact in asked


@pytest.mark.parametrize(
    ("facts", "distance", "prose", "rounds", "message"),
    [
        (0, 0, PROSE, 1, "1 to 64 facts, got 0"),
        (65, 0, PROSE, 1, "1 to 64 facts, got 65"),
        (2, 7, [], 1, "no prose for 7 words"),
        (2, -1, PROSE, 1, "no prose for -1 words"),
        (2, 0, PROSE, 0, "asks for some of its facts"),
    ],
)
def test_episodes_that_cannot_be_are_refused(
    facts: int, distance: int, prose: list[str], rounds: int, message: str
) -> None:
    with pytest.raises(TextError, match=message):
        draw_episode(np.random.default_rng(0), facts, distance, prose, rounds=rounds)


@pytest.mark.parametrize(
    "facts", [(("Anna", "ring"), ("Anna", "key")), (("Anna", "ring"), ("Paul", "ring"))]
)
def test_names_and_things_that_repeat_are_refused(facts: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(TextError, match="must be distinct"):
        Episode(facts, "", (0,))


def test_prose_leaves_code_out() -> None:
    text = "He went home. She stayed there.\n\nx = {1: 2}; y = x[1] * 3 | 4\n\nIt rained all day."
    assert prose_sentences([text]) == ["He went home.", "She stayed there.", "It rained all day."]
