"""What figures of scores share: the look and the name of a score, and the lines."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from keepset.report.figures import style
from keepset.rules.kinds import KINDS, is_seeded

Look = tuple[str, str, str]
"""Colour, marker, dash."""

_BAND = " (band: range of seeds)"
_CHOSEN: dict[str, dict[str, Look]] = {
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


def looks(site: str) -> dict[str, Look]:
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
        Line2D([], [], color=colour, marker=marker, ls=dash, label=score + _BAND * is_seeded(score))
        for score, (colour, marker, dash) in looks(site).items()
        if score in shown
    ]


def draw_lines(ax: Axes, site: str, table: pd.DataFrame, x: str, labels: Mapping[Any, str]) -> None:
    """A line per score, with intervals; a band for the range of several seeds.

    Args:
        ax: Where.
        site: The kind of site of `table`.
        table: Ratios to dense of one panel.
        x: The column of the x axis.
        labels: Its values, evenly spaced in this order -> labels of the ticks.
    """
    by_score, values = looks(site), list(labels)
    for (score,), rows in style.split(table, "score"):
        colour, marker, dash = by_score[score]
        rows = rows.sort_values(x)
        places = [values.index(value) for value in rows[x]]
        ends = (rows["ratio"], rows["ci_low"], rows["ci_high"])
        look = style.marks(style.any_specimen(rows), colour)
        style.interval(ax, places, *ends, marker=marker, linestyle=dash, **look)
        if (rows["seeds"] > 1).any():
            spread = (rows["ratio_min"], rows["ratio_max"])
            ax.fill_between(places, *spread, color=colour, alpha=0.25, linewidth=0)
    ax.set_xticks(range(len(labels)), list(labels.values()))
