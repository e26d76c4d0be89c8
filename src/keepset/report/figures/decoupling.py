"""Size against impact: does a unit that is often large also matter, and in which layers?"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from keepset.report.figures import layout, style

_PANELS = {
    ("ffn", "weight"): "FFN: weight\n$\\Vert w\\Vert$ (the paper's)",
    ("ffn", "output"): "FFN: output\nleave-one-out",
    ("ffn", "taylor"): "FFN: taylor\n$|\\Sigma h\\,\\partial L/\\partial h|$",
    ("ffn", "loss"): "FFN: loss\nmeasured",
    ("state", "ghost"): "state: energy\nleave-one-out",
}
_PROFILES = {("ffn", "weight"): "FFN: weight", ("state", "ghost"): "state: energy"}
_GAP = 0.8  # rows between models
_ROW = 0.16  # inches for one model and corpus
_PROFILE = 1.15  # inches for a row of profiles

Looks = dict[str, tuple[str, str]]


@style.styled
def draw(correlation: pd.DataFrame) -> Figure:
    """Spearman's correlation of size with each notion of impact, and how it goes with depth.

    Size is mean |h| of a neuron and ||W_B|| ||W_C|| of a state channel.

    Args:
        correlation: The `correlation` table; layer -1 holds the mean over layers, left_out -1 what
            all text gives. Of a state's rows, those of magnitude with the energy (GHOST's score)
            are shown.

    Returns:
        The figure: above, a panel per notion, with a mark and its interval per model and corpus
        and light dots for its layers; below, a panel per model of several layers, with the
        coefficient of size and weight (of a state: and energy) in each layer.

    Raises:
        KeepsetError: the table has no rows.
    """
    shown = (correlation["size"] == "magnitude") & (correlation["left_out"] == -1)
    correlation = correlation[shown]
    notion_of_row = list(zip(correlation["site"], correlation["impact"], strict=True))
    correlation = correlation[[notion in _PANELS for notion in notion_of_row]]
    style.need(correlation, "decoupling", "correlation of size and impact")
    corpora = style.in_order(correlation["corpus"])
    looks = dict(zip(corpora, zip(style.CYCLE, style.MARKERS, strict=True), strict=False))
    row = _rows(correlation, corpora)
    profiles = _profiles(correlation)
    n_rows = layout.shape(list(profiles))[0] if profiles else 0
    heights = [1.1 + _ROW * (max(row.values()) + 1), 0.4 + _PROFILE * n_rows]
    figure = Figure(figsize=(style.WIDTH, 0.3 + sum(heights[: 1 + bool(profiles)])))
    parts: Any = figure.subfigures(2, 1, height_ratios=heights) if profiles else [figure]
    _draw_notions(parts[0], correlation, row, looks)
    if profiles:
        _draw_profiles(parts[1], profiles, looks)
    handles = [style.handle(corpus, *look) for corpus, look in looks.items()]
    dots = style.handle("single layers", style.GREY, "o", "", markersize=2.5, alpha=0.4)
    style.legend(figure, [*handles, dots], correlation)
    return figure


def _rows(correlation: pd.DataFrame, corpora: list[str]) -> dict[tuple[str, str], float]:
    """Where each model and corpus stands, from the top."""
    models = style.in_order(correlation["model"])
    keys = layout.pairs(correlation, "model", "corpus", corpora)
    return {key: inner + _GAP * models.index(key[0]) for inner, key in enumerate(keys)}


def _draw_notions(
    part: Figure | SubFigure, table: pd.DataFrame, row: dict[tuple[str, str], float], looks: Looks
) -> None:
    present = set(zip(table["site"], table["impact"], strict=True))
    notions = [notion for notion in _PANELS if notion in present]
    axes = part.subplots(1, len(notions), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (site, impact) in zip(axes, notions, strict=True):
        _panel(ax, style.of_site(table[table["impact"] == impact], site), row, looks)
        ax.set_title(_PANELS[site, impact])
    models = style.in_order(model for model, _ in row)
    rows_of = [[y for key, y in row.items() if key[0] == model] for model in models]
    axes[0].set_yticks([sum(ys) / len(ys) for ys in rows_of], models)
    axes[0].set_ylim(max(row.values()) + 0.8, -0.8)
    axes[0].set_xlim(-1.05, 1.05)
    part.supxlabel("Spearman's correlation of size with impact, mean over layers", fontsize=8)


def _panel(ax: Axes, table: pd.DataFrame, row: dict[tuple[str, str], float], looks: Looks) -> None:
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


def _profiles(correlation: pd.DataFrame) -> dict[layout.Pair, pd.DataFrame]:
    """Model and kind of notion -> its single layers, where there are several."""
    layers = correlation[correlation["layer"] >= 0]
    parts = {
        (model, _PROFILES[site, impact]): rows
        for (model, site, impact), rows in style.split(layers, "model", "site", "impact")
        if (site, impact) in _PROFILES
    }
    return {key: rows for key, rows in parts.items() if rows["layer"].nunique() > 1}


def _draw_profiles(
    part: SubFigure, profiles: dict[layout.Pair, pd.DataFrame], looks: Looks
) -> None:
    panels = layout.fill(part, list(profiles), share_x=False, share_y=False)
    for (model, name), ax in panels.items():
        style.guide(ax, y=0)
        for (corpus,), rows in style.split(profiles[model, name], "corpus"):
            rows, (colour, marker) = rows.sort_values("layer"), looks[corpus]
            look = style.marks(style.any_specimen(rows), colour) | {"markersize": 2.5}
            ax.plot(rows["layer"], rows["spearman"], marker=marker, linewidth=0.8, **look)
            style.band(ax, rows["layer"], rows["ci_low"], rows["ci_high"], colour, 0.25)
        ax.set_title(f"{model}, {name}")
        ax.set_ylim(-1.05, 1.05)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    part.supylabel("Spearman's correlation", fontsize=8)
    part.supxlabel("layer", fontsize=8)
