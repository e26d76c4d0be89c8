"""What is left of a skill: last-word accuracy under each way to choose."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.figures import style

_ORDER = {"dynamic": 0, "windowed": 1, "static": 2}
_ROW = 0.19  # inches for one setting


@style.styled
def draw(capability: pd.DataFrame) -> Figure:
    """Accuracy from dense to dynamic, windowed and static; a panel per task.

    Args:
        capability: The `capability` table of keepset.significance.

    Returns:
        The figure: points with Wilson intervals joined to dense, n and Holm's p on the right.

    Raises:
        KeepsetError: the table has no rows.
    """
    style.need(capability, "capability", "task")
    tasks = style.in_order(capability["task"])
    rows_of = {task: _rows(capability[capability["task"] == task]) for task in tasks}
    n_rows = sum(len(rows) for rows in rows_of.values())
    figure = Figure(figsize=(5.0, 0.4 + 0.55 * len(tasks) + _ROW * n_rows))
    heights = [len(rows) + 2 for rows in rows_of.values()]
    axes = figure.subplots(
        len(tasks), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for ax, (task, rows) in zip(axes, rows_of.items(), strict=True):
        _panel(ax, rows)
        ax.set_title(task)
    axes[-1].set_xlabel("accuracy: share of items with the whole last word right")
    axes[-1].set_xlim(-0.02, 1.02)
    methods = [m for m in _ORDER if (capability["method"] == m).any()]
    style.legend(figure, _handles(methods), (capability["origin"] == "specimen").any())
    return figure


def _rows(table: pd.DataFrame) -> list[pd.Series]:
    """Dense first, then the settings, model by model."""
    rows = []
    for _, group in table.groupby("model", sort=False):
        rank = group["method"].map(_ORDER).fillna(-1)
        ordered = group.assign(rank=rank).sort_values(["rank", "sparsity"], kind="stable")
        rows.extend(row for _, row in ordered.iterrows())
    return rows


def _panel(ax: Axes, rows: list[pd.Series]) -> None:
    places: list[float] = []
    for row in rows:
        # A dense row opens the next model: half a row of air above it.
        step = 1.5 if row["method"] == "dense" and places else 1.0
        places.append(places[-1] + step if places else 0.0)
        _draw_row(ax, places[-1], row)
    ax.set_yticks(places, [_name(row) for row in rows])
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["method"] == "dense" else "normal")
    ax.set_ylim(places[-1] + 0.7, -0.7)
    ax.tick_params(axis="y", length=0)
    right = ax.secondary_yaxis("right")
    right.set_yticks(places, [_note(row) for row in rows])
    right.tick_params(length=0)
    right.spines["right"].set_visible(False)


def _draw_row(ax: Axes, at: float, row: pd.Series) -> None:
    dense = row["method"] == "dense"
    colour, marker = (style.BLACK, "o") if dense else style.METHODS[row["method"]]
    look = style.marks(row["origin"] == "specimen", colour)
    if not dense:
        ends = [row["accuracy_dense"], row["accuracy"]]
        ax.plot(ends, [at, at], color=style.GREY, linewidth=0.6, linestyle=":", zorder=0)
        ax.plot(ends[0], at, marker="|", markersize=6, color=style.BLACK)
    ax.plot([row["ci_low"], row["ci_high"]], [at, at], color=colour, linewidth=1.0)
    ax.plot(row["accuracy"], at, marker=marker, **look)


def _name(row: pd.Series) -> str:
    if row["method"] == "dense":
        return f"{row['model']}: dense"
    name = f"{row['method']} {style.percent(row['sparsity'])}"
    if row["method"] == "windowed":
        name += f", W = {row['window']}, {row['choice']}"
    return name


def _note(row: pd.Series) -> str:
    if row["method"] == "dense":
        return f"n = {row['n']}"
    p = row["p_holm"]
    if np.isnan(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _handles(methods: list[str]) -> list[Line2D]:
    dense = Line2D([], [], color=style.BLACK, marker="o", label="dense")
    others = [
        Line2D([], [], color=style.METHODS[m][0], marker=style.METHODS[m][1], label=m)
        for m in methods
    ]
    return [dense, *others]
