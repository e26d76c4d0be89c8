"""Memory and scratch of one model, static and dynamic, by size and by impact."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import layout, style

_PLACES = {
    ("memory", "static", "both"): "memory\nstatic",
    ("memory", "dynamic", "read"): "memory\ndynamic,\nnot read",
    ("memory", "dynamic", "write"): "memory\ndynamic,\nforgotten",
    ("scratch", "static", "none"): "scratch\nstatic",
    ("scratch", "dynamic", "none"): "scratch\ndynamic",
}
_LOOKS = {"size": (style.VERMILION, "s"), "impact": (style.BLUE, "o")}
_APART = {"size": -0.14, "impact": 0.14}


@style.styled
def draw(cells: pd.DataFrame) -> Figure:
    """Perplexity relative to dense in each of the eight cells; a panel per model and sparsity.

    Args:
        cells: What keepset.analyse.comparisons.side_by_side returned.

    Returns:
        The figure: size beside impact in each place, intervals over blocks; hollow marks are
        specimens.

    Raises:
        KeepsetError: no model has both kinds of site.
    """
    style.need(cells, "side_by_side", "model with both scratch-work and a recurrent state")
    cells = cells.assign(panel=cells["model"] + ", " + cells["corpus"])
    shares = sorted(cells["sparsity"].unique())
    keys = layout.pairs(cells, "panel", "sparsity", shares)
    figure, panels = layout.panels_of(cells, "panel", "sparsity", keys, height=2.0, width=3.2)
    for (panel, share), ax, rows in panels:
        _panel(ax, rows)
        ax.set_title(f"{panel}: {style.percent(share)} left out")
    handles = [
        style.handle(f"chosen by {by}", *look, dash="")
        for by, look in _LOOKS.items()
        if (cells["by"] == by).any()
    ]
    return layout.finish_ratios(figure, cells, handles, x_label="")


def _panel(ax: Axes, table: pd.DataFrame) -> None:
    places = list(_PLACES)
    for by, (colour, marker) in _LOOKS.items():
        rows = table[table["by"] == by]
        keys = zip(rows["part"], rows["persistence"], rows["access"], strict=True)
        x = [places.index(key) + _APART[by] for key in keys]
        look = style.marks(style.any_specimen(rows), colour)
        style.interval(ax, x, *style.ends(rows), marker=marker, linestyle="", **look)
    ax.axvline(2.5, color=style.GREY, linewidth=0.5)
    ax.set_xticks(range(len(places)), list(_PLACES.values()), fontsize=6)
    ax.set_xlim(-0.5, len(places) - 0.5)
