"""What all figures share: colours, panels, intervals, and files that are the same every time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from keepset.errors import KeepsetError
from keepset.store import replacing

P = ParamSpec("P")

# Okabe and Ito (2008), "Color universal design": told apart by colour-blind readers.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"
GREY = "#777777"

CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
METHODS = {"dynamic": (BLUE, "o"), "windowed": (GREEN, "^"), "static": (VERMILION, "s")}

WIDTH = 7.0  # inches: the text width of a two-column page
SPECIMEN = "specimen, trained here"

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.05,
    "pdf.fonttype": 42,
    "svg.hashsalt": "keepset",
}

# What each format would write of its own accord and that changes from run to run.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function under the project's settings, leaving matplotlib's own alone."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Write `stem`.png (200 dpi), .svg and .pdf; the same figure gives the same bytes.

    Args:
        figure: What a `draw` function returned.
        stem: Path without an ending.

    Returns:
        The three paths.
    """
    paths = [Path(f"{stem}.{kind}") for kind in _METADATA]
    with mpl.rc_context(_RC):
        for path in paths:
            kind = path.suffix[1:]
            with replacing(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=200, metadata=_METADATA[kind])
    return paths


def need(table: pd.DataFrame, figure: str, what: str) -> None:
    """Refuse to draw a figure of nothing.

    Raises:
        KeepsetError: the table has no rows.
    """
    if not len(table):
        raise KeepsetError(f"figure {figure}: there is no {what}; add it to the grid and run again")


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct values, in the order in which they first appear."""
    return list(dict.fromkeys(values))


def is_specimen(table: pd.DataFrame) -> bool:
    """Whether the rows, all of one model, are of a model that this project trained."""
    return bool((table["origin"] == "specimen").any())


def panels(
    keys: Sequence[tuple[str, str]], height: float = 1.6
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """One panel per (row, column) pair, all on the same axes; absent pairs leave a gap.

    A single column is folded into rows of three.

    Args:
        keys: The pairs that are there, in order.
        height: Of a row of panels, in inches.

    Returns:
        The figure, and the axes of each pair.
    """
    rows, columns = in_order(r for r, _ in keys), in_order(c for _, c in keys)
    if len(columns) == 1:
        n_columns = min(3, len(rows))
        place = {(r, columns[0]): divmod(at, n_columns) for at, r in enumerate(rows)}
    else:
        n_columns = len(columns)
        place = {(r, c): (rows.index(r), columns.index(c)) for r, c in keys}
    n_rows = 1 + max(row for row, _ in place.values())
    figure = Figure(figsize=(min(WIDTH, 1.0 + 2.4 * n_columns), 0.8 + height * n_rows))
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for at in np.ndindex(axes.shape):
        if at not in place.values():
            axes[at].set_visible(False)
    found = {key: axes[at] for key, at in place.items()}
    for (row, column), ax in place.items():
        below = (ax[0] + 1, ax[1])
        if below not in place.values():
            found[row, column].tick_params(labelbottom=True)
    return figure, found


def ratio_axis(axes: Iterable[Axes], values: Iterable[float]) -> None:
    """A log axis of ratios, with a line at 1 (dense) and plain numbers for ticks.

    Args:
        axes: Panels that share their y axis.
        values: Everything that is drawn, to choose tick marks that a reader can count by.
    """
    known = np.array([v for v in values if np.isfinite(v)] or [1.0])
    low, high = min(1.0, known.min()), max(1.0, known.max())
    decades = np.log10(high / low)
    for ax in axes:
        ax.set_yscale("log")
        ax.axhline(1, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
        if decades < 0.7:
            ax.yaxis.set_major_locator(AutoLocator())
        else:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(_plain))
        ax.yaxis.set_minor_formatter(NullFormatter())
        if decades < 1.7:
            ax.yaxis.set_minor_locator(NullLocator())


def _plain(value: float, _: int) -> str:
    if value >= 1e4:
        return f"$10^{{{np.log10(value):.0f}}}$" if np.log10(value) % 1 == 0 else f"{value:.0e}"
    return f"{value:g}"


def interval(ax: Axes, x: Any, y: Any, low: Any, high: Any, **style: Any) -> None:
    """Points with intervals up and down; an unknown interval leaves the point alone."""
    y, low, high = (np.asarray(v, dtype=float) for v in (y, low, high))
    arms = np.nan_to_num(np.clip([y - low, high - y], 0, None))
    ax.errorbar(x, y, yerr=arms, **{"elinewidth": 0.8, "capsize": 0} | style)


def marks(specimen: bool, colour: str) -> dict[str, Any]:
    """Filled marks for pretrained models, hollow ones for specimens."""
    return {
        "color": colour,
        "markerfacecolor": "white" if specimen else colour,
        "markeredgecolor": colour,
        "markeredgewidth": 0.9,
    }


def legend(figure: Figure, handles: list[Line2D], specimens: bool) -> None:
    """One legend under the panels, with a line on specimens where there are any."""
    if specimens:
        handles = [
            *handles,
            Line2D([], [], linestyle="", marker="o", label=SPECIMEN, **marks(True, GREY)),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))


def percent(sparsity: float) -> str:
    """0.95 -> "95%"."""
    return f"{100 * sparsity:g}%"
