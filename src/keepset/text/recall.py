"""In-context recall: facts are stated, other text follows, then the facts are asked for.

An episode reads "Remember: Anna ring, Paul key. <other text> Recall: Paul key, Anna ring." Names
and things are drawn at random, so only the episode says which belong together, and a model needs
its recurrent state or its attention to answer. This is associative recall (Arora et al. 2023,
arXiv:2312.04927) in plain words, so that it works for pretrained models too. A thing directly
follows its name: with words between ("Anna has the ring"), small attention models did not learn
recall within a few million tokens; models with a short convolution did.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from keepset.errors import TextError
from keepset.text.passages import prose_paragraphs

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
"""Share of correct answers by guessing."""

_FINAL_PUNCTUATION = re.compile(r"[^\w]+$")


@dataclass(frozen=True)
class Episode:
    """Facts, the text after them, and the order in which they are asked for."""

    facts: tuple[tuple[str, str], ...]
    """(name, thing) in the order of statement; names and things are distinct."""
    between: str
    """The text between facts and questions; may be empty."""
    asked: tuple[int, ...]
    """Indices of facts, in the order in which they are asked for; at least one."""

    def __post_init__(self) -> None:
        for words in zip(*self.facts, strict=True):
            if len(set(words)) < len(words):
                raise TextError(f"names and things of an episode must be distinct: {words}")
        if not self.asked or not set(self.asked) <= set(range(len(self.facts))):
            raise TextError(f"an episode asks for some of its facts, got {self.asked}")

    def pieces(self) -> list[tuple[str, bool]]:
        """The pieces of the text, and whether each is an answer; answers start with a space."""
        stated = ",".join(f" {name} {thing}" for name, thing in self.facts)
        between = f" {self.between}" if self.between else ""
        pieces = [(f"Remember:{stated}.{between} Recall:", False)]
        for number, fact in enumerate(self.asked, start=1):
            name, thing = self.facts[fact]
            end = "." if number == len(self.asked) else ","
            pieces += [(f" {name}", False), (f" {thing}", True), (end, False)]
        return pieces

    def question(self) -> tuple[str, str]:
        """(context, target) of the first question; the target begins with its space."""
        pieces = self.pieces()
        return pieces[0][0] + pieces[1][0], pieces[2][0]


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
        generator: The only source of randomness.
        n_facts: Facts stated, from 1 to the number of names or of things.
        distance: Words between the last fact and the questions.
        prose: Sentences to fill the distance with, from a random start onwards.
        names: The names to draw from.
        rounds: How often each fact is asked for, at least once; each round has a new order.

    Raises:
        TextError: a number is out of range, or there is no prose to fill the distance with.
    """
    most = min(len(names), len(THINGS))
    if not 1 <= n_facts <= most:
        raise TextError(f"an episode has 1 to {most} facts, got {n_facts}")
    if distance < 0 or (distance > 0 and not prose):
        raise TextError(f"no prose for {distance} words between facts and questions; give some")
    chosen = generator.choice(len(names), n_facts, replace=False)
    things = generator.choice(len(THINGS), n_facts, replace=False)
    facts = tuple((names[a], THINGS[b]) for a, b in zip(chosen, things, strict=True))
    asked = tuple(int(fact) for _ in range(rounds) for fact in generator.permutation(n_facts))
    return Episode(facts, _filler(generator, distance, prose), asked)


def prose_sentences(documents: Iterable[str]) -> list[str]:
    """The sentences of the prose paragraphs of `documents`, in order."""
    return [
        sentence
        for document in documents
        for paragraph in prose_paragraphs(document)
        for sentence in paragraph
    ]


def _filler(generator: np.random.Generator, distance: int, prose: Sequence[str]) -> str:
    if distance == 0:
        return ""
    sentence = int(generator.integers(len(prose)))
    words: list[str] = []
    while len(words) < distance:
        words += prose[sentence % len(prose)].split()
        sentence += 1
    return _FINAL_PUNCTUATION.sub("", " ".join(words[:distance])) + "."
