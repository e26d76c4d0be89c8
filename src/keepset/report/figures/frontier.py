"""The frontier: what a keep rule costs in perplexity against what it saves in time."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import style

SETTING = ["model", "method", "score", "sparsity", "window", "choice"]
_LOOKS: dict[str, tuple[str, Any, str]] = {
    "oracle": (style.BLUE, "-", "oracle: sets from a pass before; W = 1 is dynamic"),
    "causal": (style.VERMILION, (0, (4, 2)), "causal: sets from the window before"),
    "none": (style.BLACK, "", "static"),
}


@style.styled
def draw(kernels: pd.DataFrame, ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense against measured speed-up, along the dial.

    Args:
        kernels: The `kernels` table; its whole models are shown, at the sparsity that windows
            were timed at.
        ratios: The `ratios` table of keepset.analyse.significance.

    Returns:
        The figure: a panel per model and corpus, a line per choice, a mark per window; bars are
        the 20th to 80th percentile of the speed-up and the interval of the ratio.

    Raises:
        KeepsetError: no windowed rule was both timed and evaluated.
    """
    table = joined(kernels, ratios)
    style.need(table, "frontier", "windowed rule that was both timed and evaluated")
    windows = sorted(w for w in table["window"].unique() if w != "corpus")
    windows.sort(key=int)
    marks = dict(zip(windows, cycle(style.MARKERS), strict=False)) | {"corpus": "_"}
    keys = style.in_order(zip(table["model"], table["corpus"], strict=True))
    figure, axes = style.panels(keys, height=2.0)
    for (model, corpus), ax in axes.items():
        own = table[(table["model"] == model) & (table["corpus"] == corpus)]
        _panel(ax, own, marks)
        ax.set_title(f"{model}, {corpus}")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    left = ", ".join(style.percent(sparsity) for sparsity in sorted(table["sparsity"].unique()))
    figure.supxlabel(f"tokens/s relative to dense, decoding, {left} left out", fontsize=8)
    style.legend(figure, _handles(table, marks), table)
    return figure


def joined(kernels: pd.DataFrame, ratios: pd.DataFrame) -> pd.DataFrame:
    """Ratios with the measured speed-up of the same model and rule, where windows were timed.

    Only neurons are timed; rules on the state of a hybrid have the same settings.
    """
    speed = kernels[kernels["level"] == "model"]
    windowed = speed.loc[speed["method"] == "windowed", ["model", "score", "sparsity"]]
    speed = speed.merge(windowed.drop_duplicates(), on=["model", "score", "sparsity"])
    columns = [*SETTING, "speedup_p20", "speedup_p50", "speedup_p80"]
    found = style.of_site(ratios, "ffn").merge(speed[columns], on=SETTING)
    both = found.loc[found["method"] == "windowed", ["model", "corpus"]].drop_duplicates()
    return found.merge(both, on=["model", "corpus"])


def _panel(ax: Axes, table: pd.DataFrame, marks: dict[str, str]) -> None:
    specimen = style.any_specimen(table)
    for choice, (colour, dash, _) in _LOOKS.items():
        rows = table[table["choice"] == choice]
        rows = rows.sort_values("window", key=lambda w: w.map(list(marks).index))
        ax.plot(rows["speedup_p50"], rows["ratio"], color=colour, linestyle=dash, zorder=1)
        for row in rows.to_dict("records"):
            look = style.marks(specimen, colour)
            ends = (row["ratio"], row["ci_low"], row["ci_high"])
            x = row["speedup_p50"]
            arms = [[max(x - row["speedup_p20"], 0)], [max(row["speedup_p80"] - x, 0)]]
            size = 9 if choice == "none" else 5
            mark = {"marker": marks[row["window"]], "markersize": size, **look}
            style.interval(ax, [x], *([end] for end in ends), xerr=arms, **mark)
    ax.axvline(1, color=style.GREY, linewidth=0.7, linestyle=":", zorder=0)


def _handles(table: pd.DataFrame, marks: dict[str, str]) -> list[Line2D]:
    shown = [choice for choice in _LOOKS if (table["choice"] == choice).any()]
    lines = []
    for choice in shown:
        colour, dash, label = _LOOKS[choice]
        bar = {"marker": "_", "markersize": 9, "linestyle": ""} if choice == "none" else {}
        lines.append(Line2D([], [], **{"color": colour, "linestyle": dash, "label": label} | bar))
    windows = [
        Line2D([], [], color=style.GREY, linestyle="", marker=marker, label=f"W = {window}")
        for window, marker in marks.items()
        if window != "corpus"
    ]
    return lines + windows
