"""Weight against energy: channels of low weight and high energy, and the reverse."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import layout, style

_LOOKS = {
    "phantom": (style.VERMILION, "^", "phantom: low weight, high energy"),
    "corporeal": (style.BLUE, "s", "corporeal: high weight, low energy"),
    "strong": (style.GREY, "o", "high in both"),
    "idle": (style.GREY, "v", "low in both"),
}
# Where a quadrant's share is written, in shares of the panel.
_CORNERS = {
    "phantom": (0.02, 0.98, "left", "top"),
    "strong": (0.98, 0.98, "right", "top"),
    "idle": (0.02, 0.02, "left", "bottom"),
    "corporeal": (0.98, 0.02, "right", "bottom"),
}


@style.styled
def draw(channels: pd.DataFrame, shares: pd.DataFrame) -> Figure:
    """Energy of every channel against the product of its weights' norms; a panel per model.

    Args:
        channels: What keepset.analyse.quadrants.with_quadrants returned.
        shares: What keepset.analyse.quadrants.shares returned.

    Returns:
        The figure: dotted lines are medians over the model, numbers the shares of the quadrants.

    Raises:
        KeepsetError: there is no channel.
    """
    style.need(channels, "phantom", "channel of a recurrent state")
    figure, panels = layout.panels_of(
        channels, "model", "corpus", height=2.4, share_x=False, share_y=False
    )
    by_text = shares.set_index(["model", "corpus"])
    for (model, corpus), ax, rows in panels:
        facts = by_text.loc[(model, corpus)]
        _panel(ax, rows, facts)
        mark = " (specimen)" if style.any_specimen(rows) else ""
        differ = f"{100 * facts['disagreement']:.0f}%"
        ax.set_title(f"{model}{mark}, {corpus}\nthe halves kept differ in {differ}")
    figure.supylabel("energy (root mean square change of $y$)", fontsize=8)
    figure.supxlabel("weight $\\Vert W_B\\Vert\\,\\Vert W_C\\Vert$", fontsize=8)
    handles = [
        style.handle(label, colour, marker, "")
        for name, (colour, marker, label) in _LOOKS.items()
        if (channels["quadrant"] == name).any()
    ]
    style.legend(figure, handles, channels)
    return figure


def _panel(ax: Axes, table: pd.DataFrame, facts: Any) -> None:
    hollow = style.any_specimen(table)
    for (quadrant,), rows in style.split(table, "quadrant"):
        colour, marker, _ = _LOOKS[quadrant]
        face = "none" if hollow else colour
        points = (rows["magnitude"], rows["energy"])
        ax.scatter(*points, s=6, marker=marker, facecolors=face, edgecolors=colour, lw=0.5)
    ax.axvline(table["weight_median"].iloc[0], color=style.BLACK, lw=0.7, ls=":")
    ax.axhline(table["energy_median"].iloc[0], color=style.BLACK, lw=0.7, ls=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(0.12)
    layout.log_ticks(ax.xaxis)
    layout.log_ticks(ax.yaxis)
    for quadrant, (x, y, across, up) in _CORNERS.items():
        share = f"{100 * facts[quadrant]:.0f}%"
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        place: dict[str, Any] = {"ha": across, "va": up, "transform": ax.transAxes}
        ax.text(x, y, share, color=_LOOKS[quadrant][0], fontsize=8, bbox=box, **place)
