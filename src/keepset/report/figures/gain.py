"""Where users live: what costs little perplexity, against what it gains in decoding."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import layout, style

_RECIPES = ("budget", "slim")
# Way and site, and of rules and budgets the score or allotment -> colour, marker, label.
_LOOKS: dict[tuple[str, ...], tuple[str, str, str]] = {
    ("slim", "all"): (style.VERMILION, "*", "slim: chosen by keepset slim"),
    ("budget", "all", "loss"): (style.PURPLE, "^", "budget, shares by the loss"),
    ("budget", "all", "layer"): (style.BLACK, "v", "budget, shares by layers' error (TEAL)"),
    ("budget", "all", "equal"): (style.ORANGE, "D", "budget, equal shares"),
    ("rule", "input", "magnitude"): (style.GREEN, "s", "other inputs, by |h|"),
    ("rule", "input", "impact"): (style.GREEN, "P", "other inputs, by |h|\u00b7\u2016w\u2016"),
    ("rule", "ffn", "magnitude"): (style.BLUE, "o", "neurons, by |h|"),
    ("rule", "ffn", "impact"): (style.BLUE, "X", "neurons, by |h|\u00b7\u2016w\u2016"),
}
_KERNELS = "dense, by the same kernels"


@style.styled
def draw(gains: pd.DataFrame) -> Figure:
    """Perplexity relative to dense against measured speed-up over the dense model as it is.

    Args:
        gains: The `gains` table of docs/METHODS.md.

    Returns:
        The figure: a panel per model and corpus; bars are the interval of the ratio, and the 20th
        to 80th percentile of the speed-up; numbers are the percent of all bytes left out.

    Raises:
        KeepsetError: nothing but dense models was timed.
    """
    shown = gains[gains["way"] != "kernels"]
    style.need(shown, "gain", "rule or recipe that costs little")
    options: dict[str, Any] = {"height": 2.3, "width": 3.4, "share_x": False, "share_y": False}
    figure, panels = layout.panels_of(shown, "model", "corpus", **options)
    for (model, corpus), ax, rows in panels:
        kernels = gains[(gains["way"] == "kernels") & (gains["model"] == model)]
        _panel(ax, rows, float(kernels["speedup_p50"].iloc[0]))
        ax.set_title(f"{model}, {corpus}")
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("decoded tokens/s relative to the dense model as it is", fontsize=8)
    there = {_look_key(row) for row in shown.to_dict("records")}
    handles = [
        style.handle(label, colour, marker, "")
        for key, (colour, marker, label) in _LOOKS.items()
        if key in there
    ]
    handles.append(style.handle(_KERNELS, style.GREY, dash=":"))
    style.legend(figure, handles, shown)
    return figure


def _look_key(row: dict[Any, Any]) -> tuple[str, ...]:
    key = (row["way"], row["site"])
    return key if row["way"] == "slim" else (*key, row["score"])


def _panel(ax: Axes, table: pd.DataFrame, kernels: float) -> None:
    specimen = style.any_specimen(table)
    for row in table.sort_values("way").to_dict("records"):
        colour, marker, _ = _LOOKS[_look_key(row)]
        x, y = row["speedup_p50"], row["ratio"]
        arms = [[max(x - row["speedup_p20"], 0)], [max(row["speedup_p80"] - x, 0)]]
        look = {"marker": marker, "linestyle": "", **style.marks(specimen, colour)}
        look["markersize"] = 8 if row["way"] == "slim" else 4.5
        style.interval(ax, [x], [y], [row["ci_low"]], [row["ci_high"]], xerr=arms, **look)
        if row["way"] in _RECIPES:
            left_out = style.percent(round(row["bytes_left_out"], 2))
            place: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points"}
            ax.annotate(left_out, (x, y), fontsize=6, color=colour, **place)
    style.guide(ax, x=kernels, y=1)
    ax.margins(x=0.15, y=0.1)
