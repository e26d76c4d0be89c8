"""Do channels that were chosen on short text hold on longer text?"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from keepset.report.figures import score_lines, style


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
    pairs = set(zip(table["panel"], table["sparsity"], strict=True))
    panels = style.in_order(table["panel"])
    keys = [(panel, share) for panel in panels for share in shares if (panel, share) in pairs]
    figure, axes = style.panels(keys, height=1.8)
    for (panel, share), ax in axes.items():
        rows = table[(table["panel"] == panel) & (table["sparsity"] == share)]
        score_lines.draw_lines(ax, "state", rows, "length", labels)
        ax.set_title(f"{panel}: {style.percent(share)} cut")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("length of the passages evaluated (tokens)", fontsize=8)
    style.legend(figure, score_lines.handles("state", table), table)
    return figure
