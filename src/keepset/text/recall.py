"""In-context recall: facts are stated, other text follows, then one of them is asked for.

An episode reads "Remember: Anna ring, Paul key. <other text> Recall: Paul key, Anna ring." Names
and things are drawn at random, so that only the episode itself tells which belong together: what a
recurrent state, or attention, is for. This is associative recall (Arora et al. 2023,
arXiv:2312.04927) in plain words, so that pretrained models can be asked too. A thing stands right
after its name: with words between ("Anna has the ring") small attention models did not learn to
recall within a few million tokens, while a short convolution bridges the words at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from keepset.text.corpora import paragraphs
from keepset.text.passages import is_prose, sentences

NAMES = tuple(
    """
    Adam Alan Albert Alice Amy Andrew Anna Arthur Ben Brian Carl Caroline Charles Clara Colin Daniel
    David Diana Edward Ellen Emily Emma Eric Eva Frank Fred George Grace Hannah Harry Helen Henry
    Hugo Irene Jack James Jane John Joseph Julia Karen Kate Laura Leo Louis Lucy Mark Martin Mary
    Max Nina Oliver Oscar Paul Peter Philip Robert Rose Ruth Sam Sarah Simon Thomas Victor
    """.split()  # noqa: SIM905 - a list of words reads better as text
)
"""The 64 names that facts are about."""

THINGS = tuple(
    """
    apple arrow axe bag ball basket bell book boot bottle bowl box bread brush button candle cap
    card chair chain clock coat coin cup desk doll door drum egg fan fish flag flute fork glass
    glove hammer hat horn jar key knife lamp letter map mask mirror nail needle pen pipe plate ring
    rope saddle shirt shoe spoon stamp sword table ticket watch wheel
    """.split()  # noqa: SIM905
)
"""The 64 things that names can have."""

CHANCE = 1 / len(THINGS)
"""Share of correct answers of one who does not know the episode."""

_EDGE = re.compile(r"[^\w]+$")


@dataclass(frozen=True)
class Episode:
    """Facts, the other text after them, and the order in which they are asked for."""

    facts: tuple[tuple[str, str], ...]
    """(name, thing), in the order in which they are stated; no name and no thing twice."""
    between: str
    """The text between facts and questions; may be empty."""
    asked: tuple[int, ...]
    """Which facts are asked for, in this order."""

    def pieces(self) -> list[tuple[str, bool]]:
        """The text in pieces, and whether a piece is an answer; answers start with a space."""
        stated = ",".join(f" {name} {thing}" for name, thing in self.facts)
        between = f" {self.between}" if self.between else ""
        found = [(f"Remember:{stated}.{between} Recall:", False)]
        for number, at in enumerate(self.asked, start=1):
            name, thing = self.facts[at]
            end = "." if number == len(self.asked) else ","
            found += [(f" {name}", False), (f" {thing}", True), (end, False)]
        return found

    def question(self) -> tuple[str, str]:
        """(context, target) of the first question."""
        pieces = self.pieces()
        return pieces[0][0] + pieces[1][0], pieces[2][0].strip()


def draw_episode(
    generator: np.random.Generator,
    n_facts: int,
    distance: int,
    prose: Sequence[str],
    names: Sequence[str] = NAMES,
    rounds: int = 1,
) -> Episode:
    """Draw an episode.

    Args:
        generator: Decides everything.
        n_facts: Facts stated, 1 to len(names).
        distance: Words between the last fact and the questions.
        prose: Sentences to fill the distance with; consecutive ones stay together.
        names: The names to draw from.
        rounds: How often each fact is asked for; every round has an order of its own.
    """
    chosen = generator.choice(len(names), n_facts, replace=False)
    things = generator.choice(len(THINGS), n_facts, replace=False)
    facts = tuple((names[a], THINGS[b]) for a, b in zip(chosen, things, strict=True))
    asked = tuple(int(at) for _ in range(rounds) for at in generator.permutation(n_facts))
    return Episode(facts, _filler(generator, distance, prose), asked)


def prose_sentences(documents: Iterable[str]) -> list[str]:
    """The sentences of the prose paragraphs of `documents`, in order."""
    texts = (" ".join(piece.split()) for text in documents for piece in paragraphs(text))
    return [sentence for text in texts if is_prose(text) for sentence in sentences(text)]


def _filler(generator: np.random.Generator, distance: int, prose: Sequence[str]) -> str:
    if distance == 0:
        return ""
    at = int(generator.integers(len(prose)))
    words: list[str] = []
    while len(words) < distance:
        words += prose[at % len(prose)].split()
        at += 1
    return _EDGE.sub("", " ".join(words[:distance])) + "."
