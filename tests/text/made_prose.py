"""Made-up prose for the tests of text."""

from __future__ import annotations

import random
import re

_WORDS = re.findall(
    r"\w+",
    "the a of river mountain letter winter señor garden bridge captain answered slowly café"
    " walked under bright quiet harbour morning window naïve children opened 日本 letters",
)


def make_prose(seed: int, paragraphs: int, sentences: int = 5) -> str:
    """Paragraphs of made-up sentences, separated by blank lines; `seed` decides them."""
    draw = random.Random(seed)

    def sentence() -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(6, 14))).capitalize() + "."

    return "\n\n".join(" ".join(sentence() for _ in range(sentences)) for _ in range(paragraphs))
