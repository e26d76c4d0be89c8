"""The frontier: what a keep rule costs in perplexity against what it saves in time."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import layout, style

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
    windows = sorted((w for w in table["window"].unique() if w != "corpus"), key=int)
    marks = dict(zip(windows, cycle(style.MARKERS), strict=False)) | {"corpus": "_"}
    figure, panels = layout.panels_of(table, "model", "corpus", height=2.0)
    for (model, corpus), ax, rows in panels:
        _panel(ax, rows, marks)
        ax.set_title(f"{model}, {corpus}")
    left_out = ", ".join(style.percent(value) for value in sorted(table["sparsity"].unique()))
    x_label = f"tokens/s relative to dense, decoding, {left_out} left out"
    return layout.finish_ratios(figure, table, _handles(table, marks), x_label)


def joined(kernels: pd.DataFrame, ratios: pd.DataFrame) -> pd.DataFrame:
    """Ratios with the measured speed-up of the same model and rule, where windows were timed.

    Only neurons are timed; rules on the state of a hybrid have the same settings.
    """
    speed = kernels[kernels["level"] == "model"]
    windowed = speed.loc[speed["method"] == "windowed", ["model", "score", "sparsity"]]
    speed = speed.merge(windowed.drop_duplicates(), on=["model", "score", "sparsity"])
    columns = [*SETTING, "speedup_p20", "speedup_p50", "speedup_p80"]
    timed = style.of_site(ratios, "ffn").merge(speed[columns], on=SETTING)
    both = timed.loc[timed["method"] == "windowed", ["model", "corpus"]].drop_duplicates()
    return timed.merge(both, on=["model", "corpus"])


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
    style.guide(ax, x=1)


def _handles(table: pd.DataFrame, marks: dict[str, str]) -> list[Line2D]:
    lines = [
        style.handle(label, colour, dash=dash)
        if choice != "none"
        else style.handle(label, colour, "_", "", markersize=9)
        for choice, (colour, dash, label) in _LOOKS.items()
        if (table["choice"] == choice).any()
    ]
    windows = [
        style.handle(f"W = {window}", style.GREY, marker, "")
        for window, marker in marks.items()
        if window != "corpus"
    ]
    return lines + windows
