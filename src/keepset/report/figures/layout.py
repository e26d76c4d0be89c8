"""Where panels stand on a page, and the axes that figures of ratios share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from keepset.report.figures.style import FREE, WIDTH, guide, in_order, legend

Pair = tuple[Any, Any]
"""The values of two columns: a row and a column of panels."""


def pairs(table: pd.DataFrame, row: str, column: str, order: Iterable[Any]) -> list[Pair]:
    """The values of two columns that stand in one row of `table`; `order` is that of `column`."""
    present = set(zip(table[row], table[column], strict=True))
    names = in_order(table[row])
    return [(name, value) for name in names for value in order if (name, value) in present]


def panels_of(
    table: pd.DataFrame, row: str, column: str, keys: Sequence[Pair] | None = None, **options: Any
) -> tuple[Figure, list[tuple[Pair, Axes, pd.DataFrame]]]:
    """One panel per pair of values of two columns.

    Args:
        table: The rows of all panels.
        row: The column whose values are rows of panels.
        column: The column whose values are columns of panels.
        keys: The pairs; those that are there, in order of appearance, where none are given.
        options: As for `panels`.

    Returns:
        The figure, and of each panel its pair, its axes and its rows of `table`.
    """
    keys = in_order(zip(table[row], table[column], strict=True)) if keys is None else keys
    figure, axes = panels(keys, **options)
    return figure, [
        (key, ax, table[(table[row] == key[0]) & (table[column] == key[1])])
        for key, ax in axes.items()
    ]


def panels(
    keys: Sequence[Pair],
    height: float = 1.6,
    *,
    share_x: bool = True,
    share_y: bool = True,
    width: float = 2.2,
) -> tuple[Figure, dict[Pair, Axes]]:
    """One panel per (row, column) pair, on one x axis.

    A whole grid keeps its shape. Panels of any other fill the page row by row, three or four to a
    row; what is left of the last row is for the legend (`style.legend`).

    Args:
        keys: The pairs that are there, in order.
        height: Of a row of panels, in inches.
        share_x: Whether all panels share their x axis.
        share_y: Whether the panels of a row share their y axis.
        width: Of a panel, in inches, where the page has room.

    Returns:
        The figure, and the axes of each pair.
    """
    n_rows, n_columns = shape(keys)
    figure = Figure(figsize=(min(WIDTH, 1.4 + width * n_columns), 0.9 + height * n_rows))
    return figure, fill(figure, keys, share_x=share_x, share_y=share_y)


def shape(keys: Sequence[Pair]) -> tuple[int, int]:
    """Rows and columns of the page that `keys` fill."""
    rows, columns = zip(*_pack(keys).values(), strict=True)
    return 1 + max(rows), 1 + max(columns)


def fill(
    part: Figure | SubFigure, keys: Sequence[Pair], *, share_x: bool = True, share_y: bool = True
) -> dict[Pair, Axes]:
    """The panels of `panels`, in a figure or in a part of one."""
    place, (n_rows, n_columns) = _pack(keys), shape(keys)
    grid = part.add_gridspec(n_rows, n_columns)
    by_key: dict[Pair, Axes] = {}
    for key, cell in place.items():
        first = next(iter(by_key.values()), None) if share_x else None
        by_key[key] = part.add_subplot(grid[cell], sharex=first)
    for (row, column), ax in zip(place.values(), by_key.values(), strict=True):
        ax.tick_params(labelbottom=not share_x or (row + 1, column) not in place.values())
    if share_y:
        _share_y(by_key, place)
    last = max(column for row, column in place.values() if row == n_rows - 1)
    if last + 1 < n_columns:
        free = part.add_subplot(grid[n_rows - 1, last + 1 :], label=FREE)
        free.set_axis_off()
    return by_key


def _pack(keys: Sequence[Pair]) -> dict[Pair, tuple[int, int]]:
    """Where each panel stands on the page: (row, column)."""
    columns = in_order(column for _, column in keys)
    by_row = {row: [key for key in keys if key[0] == row] for row, _ in keys}
    longest = max(map(len, by_row.values()))
    whole = all(len(row_keys) == longest for row_keys in by_row.values())
    n_columns = longest if whole and longest > 1 else min(len(keys), 3 if longest < 4 else 4)
    ordered = [
        key
        for row_keys in by_row.values()
        for key in sorted(row_keys, key=lambda key: columns.index(key[1]))
    ]
    return {key: divmod(at, n_columns) for at, key in enumerate(ordered)}


def _share_y(panels: dict[Pair, Axes], place: dict[Pair, tuple[int, int]]) -> None:
    """One y axis for the panels of a row, labelled where that row begins on the page."""
    first: dict[Any, Axes] = {}
    for key, ax in panels.items():
        page_row, column = place[key]
        leader = first.setdefault(key[0], ax)
        if ax is not leader:
            ax.sharey(leader)
        left = next((k for k, cell in place.items() if cell == (page_row, column - 1)), None)
        ax.tick_params(labelleft=left is None or left[0] != key[0])


def finish_ratios(
    figure: Figure, table: pd.DataFrame, handles: Sequence[Artist], x_label: str,
    y_label: str = "token perplexity / dense",
) -> Figure:  # fmt: skip
    """Give a figure of ratios to dense its axes, labels and legend, once its panels are drawn."""
    ratio_axes(ax for ax in figure.axes if ax.get_label() != FREE)
    figure.supylabel(y_label, fontsize=8)
    if x_label:
        figure.supxlabel(x_label, fontsize=8)
    legend(figure, handles, table)
    return figure


def ratio_axes(axes: Iterable[Axes]) -> None:
    """Log axes of ratios, once drawn on: a line at 1 (dense), plain numbers for ticks."""
    axes = list(axes)
    for ax in axes:
        ax.set_yscale("log")
        guide(ax, y=1)
    for ax in axes:
        log_ticks(ax.yaxis)


def log_ticks(axis: Axis) -> None:
    """Plain numbers for the ticks of a log axis, at least two of them."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    # The default of a log axis, powers of ten, leaves a narrow range with one tick or none.
    if decades < 1.7:
        subs = (1, 1.5, 2, 3, 5) if decades < 0.8 else (1, 2, 5)
        axis.set_major_locator(MaxNLocator(5) if decades < 0.3 else LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: int) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    lead, power = f"{value:e}".split("e")
    times = "" if float(lead) == 1 else rf"{float(lead):g} \cdot "
    return f"${times}10^{{{int(power)}}}$"
