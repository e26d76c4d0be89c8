"""How FFN neurons are chosen: every score, static and dynamic."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from keepset.report.figures import layout, score_lines, style


@style.styled
def draw(ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense by sparsity, a line per score.

    Args:
        ratios: The `ratios` table of `analyse.significance`. Of its FFN sites, those models and
            corpora are shown on which more than one score was run; where none has two, all are.

    Returns:
        The figure: a row per model and corpus, static on the left and dynamic on the right.
        Lines have intervals over documents; the band of a random score is the range of its seeds.
        Hatched: what rounding alone does to dynamic rules.

    Raises:
        KeepsetError: there is no static or dynamic run.
    """
    ffn = style.of_site(ratios, "ffn")
    table = ffn[ffn["method"].isin(["static", "dynamic"])]
    style.need(table, "scores", "static or dynamic run")
    several = table.groupby(["model", "corpus"])["score"].transform("nunique") > 1
    table = table[several] if several.any() else table
    table = table.assign(panel=table["model"] + ", " + table["corpus"])
    labels = {value: style.percent(value) for value in sorted(table["sparsity"].unique())}
    methods = [m for m in ("static", "dynamic") if (table["method"] == m).any()]
    keys = [(panel, method) for panel in style.in_order(table["panel"]) for method in methods]
    figure, panels = layout.panels_of(table, "panel", "method", keys, share_y=False)
    for (panel, method), ax, rows in panels:
        style.lines(ax, rows, "score", score_lines.looks("ffn"), "sparsity", labels)
        style.rounding_band(ax, rows, "sparsity", labels)
        ax.set_title(f"{panel}: {method}")
    x_label = "sparsity (share of neurons left out)"
    handles: list[Artist] = [*score_lines.handles("ffn", table)]
    if table["rounding"].notna().any():
        handles.append(style.rounding_handle())
    return layout.finish_ratios(figure, table, handles, x_label)
