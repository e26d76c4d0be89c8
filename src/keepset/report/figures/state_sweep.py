"""GHOST and its rivals: what it costs to cut channels of the recurrent state."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from keepset.report.figures import layout, score_lines, style


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
    figure, panels = layout.panels_of(table, "model", "corpus", height=2.0)
    for (model, corpus), ax, rows in panels:
        style.lines(ax, rows, "score", score_lines.looks("state"), "sparsity", labels)
        ax.set_title(f"{model}, {corpus}")
    x_label = "sparsity (share of state channels cut)"
    return layout.finish_ratios(figure, table, score_lines.handles("state", table), x_label)
