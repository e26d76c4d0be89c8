"""How FFN neurons are chosen: every score, static and dynamic."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import style

_SCORES = ("magnitude", "impact", "taylor", "weight", "random")
_LOOK = {
    name: (colour, marker)
    for name, colour, marker in zip(
        _SCORES,
        (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.GREY),
        style.MARKERS,
        strict=False,
    )
}


@style.styled
def draw(ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense by sparsity, a line per score.

    Args:
        ratios: The `ratios` table of `analyse.significance`. Of its FFN sites, those models and
            corpora are shown on which more than one score was run; where none has two, all are.

    Returns:
        The figure: a row per model and corpus, static on the left and dynamic on the right.
        Lines have intervals over blocks; the band of the random score is the range of its seeds.

    Raises:
        KeepsetError: there is no static or dynamic run.
    """
    ffn = style.of_site(ratios, "ffn")
    table = ffn[ffn["method"].isin(["static", "dynamic"])]
    style.need(table, "scores", "static or dynamic run")
    several = table.groupby(["model", "corpus"])["score"].transform("nunique") > 1
    table = table[several] if several.any() else table
    table = table.assign(panel=table["model"] + ", " + table["corpus"])
    sparsities = sorted(table["sparsity"].unique())
    methods = [m for m in ("static", "dynamic") if (table["method"] == m).any()]
    keys = [(panel, method) for panel in style.in_order(table["panel"]) for method in methods]
    figure, axes = style.panels(keys, share_y=False)
    for (panel, method), ax in axes.items():
        own = table[(table["panel"] == panel) & (table["method"] == method)]
        _panel(ax, own, sparsities)
        ax.set_title(f"{panel}: {method}")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("sparsity (share of neurons left out)", fontsize=8)
    scores = [s for s in _SCORES if (table["score"] == s).any()]
    style.legend(figure, [_handle(s) for s in scores], table)
    return figure


def _panel(ax: Axes, table: pd.DataFrame, sparsities: list[float]) -> None:
    for (score,), rows in style.split(table, "score"):
        colour, marker = _LOOK[score]
        rows = rows.sort_values("sparsity")
        at = [sparsities.index(s) for s in rows["sparsity"]]
        look = style.marks(style.any_specimen(rows), colour)
        style.interval(
            ax, at, rows["ratio"], rows["ci_low"], rows["ci_high"], marker=marker, **look
        )
        if (rows["seeds"] > 1).any():
            spread = (rows["ratio_min"], rows["ratio_max"])
            ax.fill_between(at, *spread, color=colour, alpha=0.25, linewidth=0)
    ax.set_xticks(range(len(sparsities)), [style.percent(s) for s in sparsities])


def _handle(score: str) -> Line2D:
    colour, marker = _LOOK[score]
    label = "random (band: range of seeds)" if score == "random" else score
    return Line2D([], [], color=colour, marker=marker, label=label)
