"""Static against dynamic: what it costs to choose once instead of at every token."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from keepset.report.figures import layout, style

_CHOSEN = {"static": "chosen once", "dynamic": "chosen at every token"}


@style.styled
def draw(ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense by sparsity; a panel per model and corpus.

    Args:
        ratios: The `ratios` table of keepset.analyse.significance, of which magnitude at FFN sites
            is shown.

    Returns:
        The figure; hollow marks are specimens. Hatched: what rounding alone does to dynamic rules.

    Raises:
        KeepsetError: there is no static or dynamic run of magnitude.
    """
    ffn = style.of_site(ratios, "ffn")
    table = ffn[ffn["method"].isin(list(_CHOSEN)) & (ffn["score"] == "magnitude")]
    style.need(table, "static_dynamic", "static or dynamic run of the score magnitude")
    labels = {value: style.percent(value) for value in sorted(table["sparsity"].unique())}
    looks = {method: (*style.METHODS[method], "-") for method in _CHOSEN}
    figure, panels = layout.panels_of(table, "model", "corpus")
    for (model, corpus), ax, rows in panels:
        style.lines(ax, rows, "method", looks, "sparsity", labels)
        style.rounding_band(ax, rows[rows["method"] == "dynamic"], "sparsity", labels)
        ax.set_title(f"{model}, {corpus}")
    handles: list[Artist] = [
        style.handle(f"{method}: {chosen}", *looks[method])
        for method, chosen in _CHOSEN.items()
        if (table["method"] == method).any()
    ]
    if table["rounding"].notna().any():
        handles.append(style.rounding_handle())
    return layout.finish_ratios(figure, table, handles, "sparsity (share of neurons left out)")
