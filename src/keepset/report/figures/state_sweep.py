"""GHOST and its rivals: what it costs to cut channels of the recurrent state."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from keepset.report.figures import score_lines, style


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
    labels = {value: style.percent(value) for value in sorted(table["sparsity"].unique())}
    keys = style.in_order(zip(table["model"], table["corpus"], strict=True))
    figure, axes = style.panels(keys, height=2.0)
    for (model, corpus), ax in axes.items():
        rows = table[(table["model"] == model) & (table["corpus"] == corpus)]
        score_lines.draw_lines(ax, "state", rows, "sparsity", labels)
        ax.set_title(f"{model}, {corpus}")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("sparsity (share of state channels cut)", fontsize=8)
    style.legend(figure, score_lines.handles("state", table), table)
    return figure
