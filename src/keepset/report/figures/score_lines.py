"""What figures of scores share: the look and the name of a score."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from matplotlib.lines import Line2D

from keepset.report.figures import style
from keepset.rules.kinds import KINDS, is_seeded

_BAND = " (band: range of seeds)"
_CHOSEN: dict[str, dict[str, style.Look]] = {
    "ffn": {
        "magnitude": (style.BLUE, "o", "-"),
        "impact": (style.ORANGE, "s", "-"),
        "taylor": (style.GREEN, "^", "-"),
        "weight": (style.PURPLE, "D", "-"),
        "random": (style.GREY, "v", "-"),
    },
    "state": {
        "ghost": (style.BLUE, "o", "-"),
        "ghost-uniform": (style.SKY, "s", "-"),
        "ghost-oneshot": (style.BLUE, "^", ":"),
        "ghost-separate": (style.SKY, "D", ":"),
        "magnitude": (style.VERMILION, "v", "-"),
        "magnitude-uniform": (style.ORANGE, "P", ":"),
        "taylor": (style.GREEN, "X", "-"),
        "random": (style.GREY, "*", "-"),
    },
}
"""By kind of site. Scores that are not here take from the cycle what these leave."""


def looks(site: str) -> dict[str, style.Look]:
    """The look of every score of a kind of site, in the order of legends: seeded ones last."""
    chosen, scores = _CHOSEN.get(site, {}), KINDS[site].scores
    colours, markers = ({look[part] for look in chosen.values()} for part in (0, 1))
    others = zip(
        [name for name in scores if name not in chosen],
        cycle([colour for colour in style.CYCLE if colour not in colours] or style.CYCLE),
        cycle([marker for marker in style.MARKERS if marker not in markers] or style.MARKERS),
        strict=False,
    )
    every = chosen | {name: (colour, marker, "-") for name, colour, marker in others}
    return dict(sorted(every.items(), key=lambda item: is_seeded(item[0])))


def handles(site: str, table: pd.DataFrame) -> list[Line2D]:
    """The legend's entries for the scores that `table` has rows of."""
    shown = set(table["score"])
    return [
        style.handle(score + _BAND * is_seeded(score), *look)
        for score, look in looks(site).items()
        if score in shown
    ]
