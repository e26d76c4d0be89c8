"""What is left of a skill: accuracy under each way to choose FFN neurons."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import style

_ROW_KEYS = ["model", "method", "sparsity", "window", "choice"]
_ROW_HEIGHT = 0.19  # inches


@style.styled
def draw(capability: pd.DataFrame) -> Figure:
    """Accuracy from dense to dynamic, windowed and static; a panel per task.

    Args:
        capability: The `capability` table of keepset.analyse.significance; its FFN sites are shown.

    Returns:
        The figure: points with Wilson intervals joined to dense; n and p on the right of each
        panel. Hollow marks are specimens.

    Raises:
        KeepsetError: the table has no row of an FFN site.
    """
    capability = style.of_site(capability, "ffn")
    style.need(capability, "capability", "task of an FFN site")
    rows = _rows(capability)
    tasks = style.in_order(capability["task"])
    height = 1.0 + _ROW_HEIGHT * (rows["place"].max() + 1)
    figure = Figure(figsize=(min(style.WIDTH, 2.6 + 2.4 * len(tasks)), height))
    axes = figure.subplots(1, len(tasks), sharex=True, sharey=True, squeeze=False)[0]
    for ax, task in zip(axes, tasks, strict=True):
        _panel(ax, capability[capability["task"] == task].merge(rows, on=_ROW_KEYS))
        ax.set_title(task)
    _name_rows(axes[0], rows)
    axes[0].set_xlim(-0.02, 1.02)
    figure.supxlabel("accuracy: share of items whose whole answer is right", fontsize=8)
    methods = style.in_order(rows["method"])
    handles = [style.handle(method, *style.METHODS[method]) for method in methods]
    style.legend(figure, handles, capability)
    return figure


def _rows(capability: pd.DataFrame) -> pd.DataFrame:
    """The rows of the figure from top to bottom, with `place`: dense opens every model."""
    rows = capability[_ROW_KEYS].drop_duplicates()
    model = rows["model"].map({name: place for place, name in enumerate(rows["model"].unique())})
    order = pd.DataFrame({"model": model, "method": rows["method"].map(list(style.METHODS).index)})
    rows = rows.loc[order.sort_values(["model", "method"], kind="stable").index]
    opens = rows["model"] != rows["model"].shift()
    steps = 1 + 0.5 * opens  # half an empty row above every model
    return rows.assign(place=steps.cumsum() - steps.iloc[0])


def _name_rows(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set_yticks(rows["place"], [_name(row) for row in rows.itertuples()])
    for label, method in zip(ax.get_yticklabels(), rows["method"], strict=True):
        label.set_fontweight("bold" if method == "dense" else "normal")
    ax.set_ylim(rows["place"].max() + 0.7, -0.7)


def _name(row: Any) -> str:
    if row.method == "dense":
        return f"{row.model}: dense"
    name = f"{row.method} {style.percent(row.sparsity)}"
    if row.method == "windowed":
        name += f", W = {row.window}, {row.choice}"
    return name


def _panel(ax: Axes, table: pd.DataFrame) -> None:
    for row in table.itertuples():
        _draw_row(ax, row)
    ax.tick_params(axis="y", length=0)
    right = ax.secondary_yaxis("right")
    right.set_yticks(table["place"], [_note(row) for row in table.itertuples()])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


def _draw_row(ax: Axes, row: Any) -> None:
    colour, marker = style.METHODS[row.method]
    y = [row.place, row.place]
    if row.method != "dense":
        ends = [row.accuracy_dense, row.accuracy]
        ax.plot(ends, y, color=style.GREY, linewidth=0.6, linestyle=":", zorder=0)
        ax.plot(ends[:1], y[:1], marker="|", markersize=6, color=style.BLACK)
    ax.plot([row.ci_low, row.ci_high], y, color=colour, linewidth=1.0)
    look = style.marks(row.origin == "specimen", colour)
    ax.plot(row.accuracy, row.place, marker=marker, **look)


def _note(row: Any) -> str:
    if row.method == "dense":
        return f"n = {row.n}"
    return "Holm p < 0.001" if row.p_holm < 0.001 else f"Holm p = {row.p_holm:.3f}"
