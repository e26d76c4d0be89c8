"""GHOST and its rivals: what it costs to cut channels of the recurrent state."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import style

LOOKS = {
    "ghost": (style.BLUE, "o", "-"),
    "ghost-uniform": (style.SKY, "s", "-"),
    "ghost-oneshot": (style.BLUE, "^", ":"),
    "ghost-separate": (style.SKY, "D", ":"),
    "magnitude": (style.VERMILION, "v", "-"),
    "magnitude-uniform": (style.ORANGE, "P", ":"),
    "taylor": (style.GREEN, "X", "-"),
    "random": (style.GREY, "*", "-"),
}
"""Score -> colour, marker, dash."""


@style.styled
def draw(ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense by the share of channels cut; a panel per model and corpus.

    Args:
        ratios: The `ratios` table of keepset.analyse.significance; static rows of states are shown.

    Returns:
        The figure: a line per score with intervals over blocks; the band of the random score is
        the range of its seeds. Hollow marks are specimens.

    Raises:
        KeepsetError: there is no static run of a state.
    """
    state = style.of_site(ratios, "state")
    table = state[state["method"] == "static"]
    style.need(table, "state_sweep", "static run of a recurrent state")
    sparsities = sorted(table["sparsity"].unique())
    keys = style.in_order(zip(table["model"], table["corpus"], strict=True))
    figure, axes = style.panels(keys, height=2.0)
    for (model, corpus), ax in axes.items():
        own = table[(table["model"] == model) & (table["corpus"] == corpus)]
        _panel(ax, own, sparsities)
        ax.set_title(f"{model}, {corpus}")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("sparsity (share of state channels cut)", fontsize=8)
    scores = [score for score in LOOKS if (table["score"] == score).any()]
    style.legend(figure, [handle(score) for score in scores], table)
    return figure


def _panel(ax: Axes, table: pd.DataFrame, sparsities: list[float]) -> None:
    for (score,), rows in style.split(table, "score"):
        colour, marker, dash = LOOKS[score]
        rows = rows.sort_values("sparsity")
        at = [sparsities.index(s) for s in rows["sparsity"]]
        look = style.marks(style.any_specimen(rows), colour)
        ends = (rows["ratio"], rows["ci_low"], rows["ci_high"])
        style.interval(ax, at, *ends, marker=marker, linestyle=dash, **look)
        if (rows["seeds"] > 1).any():
            spread = (rows["ratio_min"], rows["ratio_max"])
            ax.fill_between(at, *spread, color=colour, alpha=0.25, linewidth=0)
    ax.set_xticks(range(len(sparsities)), [style.percent(s) for s in sparsities])


def handle(score: str) -> Line2D:
    """The entry of a score in a legend."""
    colour, marker, dash = LOOKS[score]
    label = "random (band: range of seeds)" if score == "random" else score
    return Line2D([], [], color=colour, marker=marker, ls=dash, label=label)
