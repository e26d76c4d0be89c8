"""Static against dynamic: what it costs to choose once instead of at every token."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import style


@style.styled
def draw(ratios: pd.DataFrame, score: str = "magnitude") -> Figure:
    """Perplexity relative to dense by sparsity; a panel per model and corpus.

    Args:
        ratios: The `ratios` table of keepset.analyse.significance; its FFN sites are shown.
        score: The score whose keep sets are shown.

    Returns:
        The figure; hollow marks are specimens.

    Raises:
        KeepsetError: there is no static or dynamic run of this score.
    """
    ffn = style.of_site(ratios, "ffn")
    table = ffn[ffn["method"].isin(["static", "dynamic"]) & (ffn["score"] == score)]
    style.need(table, "static_dynamic", f"static or dynamic run of the score {score}")
    sparsities = sorted(table["sparsity"].unique())
    keys = style.in_order(zip(table["model"], table["corpus"], strict=True))
    figure, axes = style.panels(keys)
    for (model, corpus), ax in axes.items():
        own = table[(table["model"] == model) & (table["corpus"] == corpus)]
        _panel(ax, own, sparsities)
        ax.set_title(f"{model}, {corpus}")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("sparsity (share of neurons left out)", fontsize=8)
    methods = [m for m in ("static", "dynamic") if (table["method"] == m).any()]
    style.legend(figure, [_handle(m) for m in methods], table)
    return figure


def _panel(ax: Axes, table: pd.DataFrame, sparsities: list[float]) -> None:
    for (method,), rows in style.split(table, "method"):
        colour, marker = style.METHODS[method]
        rows = rows.sort_values("sparsity")
        at = [sparsities.index(s) for s in rows["sparsity"]]
        look = style.marks(style.any_specimen(rows), colour)
        style.interval(
            ax, at, rows["ratio"], rows["ci_low"], rows["ci_high"], marker=marker, **look
        )
    ax.set_xticks(range(len(sparsities)), [style.percent(s) for s in sparsities])


def _handle(method: str) -> Line2D:
    colour, marker = style.METHODS[method]
    when = {"static": "chosen once", "dynamic": "chosen at every token"}[method]
    return Line2D([], [], color=colour, marker=marker, label=f"{method}: {when}")
