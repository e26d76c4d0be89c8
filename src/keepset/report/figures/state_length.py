"""Do channels that were chosen on short text hold on longer text?"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from keepset.report.figures import layout, score_lines, style


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
    labels = {length: str(length) for length in sorted(table["length"].unique())}
    keys = layout.pairs(table, "panel", "sparsity", shares)
    figure, panels = layout.panels_of(table, "panel", "sparsity", keys, height=1.8)
    for (panel, share), ax, rows in panels:
        style.lines(ax, rows, "score", score_lines.looks("state"), "length", labels)
        ax.set_title(f"{panel}: {style.percent(share)} cut")
    x_label = "length of the passages evaluated (tokens)"
    return layout.finish_ratios(figure, table, score_lines.handles("state", table), x_label)
