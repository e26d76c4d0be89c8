"""Memory and scratch of one model, static and dynamic, by size and by impact."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import style

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
    style.need(cells, "side_by_side", "model with both FFN neurons and a recurrent state")
    cells = cells.assign(panel=cells["model"] + ", " + cells["corpus"])
    shares = sorted(cells["sparsity"].unique())
    pairs = set(zip(cells["panel"], cells["sparsity"], strict=True))
    rows = style.in_order(cells["panel"])
    keys = [(panel, share) for panel in rows for share in shares if (panel, share) in pairs]
    figure, axes = style.panels(keys, height=2.0, width=3.2)
    for (panel, share), ax in axes.items():
        _panel(ax, cells[(cells["panel"] == panel) & (cells["sparsity"] == share)])
        ax.set_title(f"{panel}: {style.percent(share)} left out")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    style.legend(figure, [_handle(by) for by in _LOOKS if (cells["by"] == by).any()], cells)
    return figure


def _panel(ax: Axes, table: pd.DataFrame) -> None:
    places = list(_PLACES)
    for by, (colour, marker) in _LOOKS.items():
        rows = table[table["by"] == by]
        keys = zip(rows["part"], rows["persistence"], rows["access"], strict=True)
        at = [places.index(key) + _APART[by] for key in keys]
        look = style.marks(style.any_specimen(rows), colour)
        ends = (rows["ratio"], rows["ci_low"], rows["ci_high"])
        style.interval(ax, at, *ends, marker=marker, linestyle="", **look)
    ax.axvline(2.5, color=style.GREY, linewidth=0.5)
    ax.set_xticks(range(len(places)), list(_PLACES.values()), fontsize=6)
    ax.set_xlim(-0.5, len(places) - 0.5)


def _handle(by: str) -> Line2D:
    colour, marker = _LOOKS[by]
    return Line2D([], [], color=colour, marker=marker, ls="", label=f"chosen by {by}")
