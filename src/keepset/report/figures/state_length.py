"""Do channels that were chosen on short text hold on longer text?"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import style
from keepset.report.figures.state_sweep import LOOKS, handle


@style.styled
def draw(lengths: pd.DataFrame) -> Figure:
    """Perplexity relative to dense by the length of the passages; a column per sparsity.

    Args:
        lengths: What `comparisons.length_ratios` returned. Of many sparsities, the three
            largest are shown.

    Returns:
        The figure: a line per score with intervals over passages; hollow marks are specimens.

    Raises:
        KeepsetError: no length was evaluated.
    """
    lengths = style.of_site(lengths, "state")
    style.need(lengths, "state_length", "evaluation of a recurrent state by length")
    shares = sorted(lengths["sparsity"].unique())[-3:]
    table = lengths[lengths["sparsity"].isin(shares)]
    table = table.assign(panel=table["model"] + ", " + table["corpus"])
    sizes = sorted(table["length"].unique())
    pairs = set(zip(table["panel"], table["sparsity"], strict=True))
    rows = style.in_order(table["panel"])
    keys = [(panel, share) for panel in rows for share in shares if (panel, share) in pairs]
    figure, axes = style.panels(keys, height=1.8)
    for (panel, share), ax in axes.items():
        _panel(ax, table[(table["panel"] == panel) & (table["sparsity"] == share)], sizes)
        ax.set_title(f"{panel}: {style.percent(share)} cut")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("length of the passages evaluated (tokens)", fontsize=8)
    scores = [score for score in LOOKS if (table["score"] == score).any()]
    style.legend(figure, [handle(score) for score in scores], table)
    return figure


def _panel(ax: Axes, table: pd.DataFrame, sizes: list[int]) -> None:
    for (score,), rows in style.split(table, "score"):
        colour, marker, dash = LOOKS[score]
        rows = rows.sort_values("length")
        at = [sizes.index(n) for n in rows["length"]]
        look = style.marks(style.any_specimen(rows), colour)
        ends = (rows["ratio"], rows["ci_low"], rows["ci_high"])
        style.interval(ax, at, *ends, marker=marker, linestyle=dash, **look)
        if (rows["seeds"] > 1).any():
            spread = (rows["ratio_min"], rows["ratio_max"])
            ax.fill_between(at, *spread, color=colour, alpha=0.25, linewidth=0)
    ax.set_xticks(range(len(sizes)), [str(n) for n in sizes])
