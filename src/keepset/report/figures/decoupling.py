"""Size against impact: does a unit that is often large also matter?"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import layout, style

_PANELS = {
    ("ffn", "weight"): "FFN: weight\n$\\Vert w\\Vert$ (the paper's)",
    ("ffn", "output"): "FFN: output\nleave-one-out",
    ("ffn", "taylor"): "FFN: taylor\n$|\\Sigma h\\,\\partial L/\\partial h|$",
    ("ffn", "loss"): "FFN: loss\nmeasured",
    ("state", "ghost"): "state: energy\n$\\sqrt{\\mathrm{mean}\\ H^2C^2}$",
}
_GAP = 0.8  # rows between models
_ROW = 0.16  # inches for one model and corpus


@style.styled
def draw(correlation: pd.DataFrame) -> Figure:
    """Spearman's correlation of size with each notion of impact; a panel per notion.

    Size is mean |h| of a neuron and ||W_B|| ||W_C|| of a state channel.

    Args:
        correlation: The `correlation` table; layer -1 holds the mean over layers. Of a state's
            rows, those of magnitude with the energy (GHOST's score) are shown.

    Returns:
        The figure: a mark with its interval per model and corpus, light dots for its layers.

    Raises:
        KeepsetError: the table has no rows.
    """
    correlation = correlation[correlation["size"] == "magnitude"]
    notion_of_row = list(zip(correlation["site"], correlation["impact"], strict=True))
    correlation = correlation[[notion in _PANELS for notion in notion_of_row]]
    style.need(correlation, "decoupling", "correlation of size and impact")
    models = style.in_order(correlation["model"])
    corpora = style.in_order(correlation["corpus"])
    notions = [notion for notion in _PANELS if notion in notion_of_row]
    keys = layout.pairs(correlation, "model", "corpus", corpora)
    row = {key: inner + _GAP * models.index(key[0]) for inner, key in enumerate(keys)}
    figure = Figure(figsize=(style.WIDTH, 1.4 + _ROW * (max(row.values()) + 1)))
    axes = figure.subplots(1, len(notions), sharex=True, sharey=True, squeeze=False)[0]
    looks = dict(zip(corpora, zip(style.CYCLE, style.MARKERS, strict=True), strict=False))
    for ax, (site, impact) in zip(axes, notions, strict=True):
        rows = correlation[correlation["impact"] == impact]
        _panel(ax, style.of_site(rows, site), row, looks)
        ax.set_title(_PANELS[site, impact])
    rows_of = [[y for key, y in row.items() if key[0] == model] for model in models]
    axes[0].set_yticks([sum(ys) / len(ys) for ys in rows_of], models)
    axes[0].set_ylim(max(row.values()) + 0.8, -0.8)
    axes[0].set_xlim(-1.05, 1.05)
    figure.supxlabel("Spearman's correlation of size with impact, over units", fontsize=8)
    handles = [style.handle(corpus, *look) for corpus, look in looks.items()]
    dots = style.handle("single layers", style.GREY, "o", "", markersize=2.5, alpha=0.4)
    style.legend(figure, [*handles, dots], correlation)
    return figure


def _panel(
    ax: Axes,
    table: pd.DataFrame,
    row: dict[tuple[str, str], float],
    looks: dict[str, tuple[str, str]],
) -> None:
    style.guide(ax, x=0)
    ax.tick_params(axis="y", length=0)
    for (model, corpus), rows in style.split(table, "model", "corpus"):
        colour, marker = looks[corpus]
        y = row[model, corpus]
        layers, pooled = rows[rows["layer"] >= 0], rows[rows["layer"] == -1]
        ax.scatter(layers["spearman"], [y] * len(layers), s=5, color=colour, alpha=0.25, lw=0)
        for _, one in pooled.iterrows():
            ax.plot([one["ci_low"], one["ci_high"]], [y, y], color=colour, linewidth=1.2)
            look = style.marks(style.any_specimen(rows), colour)
            ax.plot(one["spearman"], y, marker=marker, **look)
