"""What all figures share: colours, panels, intervals, and files that are the same every time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from keepset.errors import KeepsetError
from keepset.files.store import replacing

P = ParamSpec("P")

# Okabe and Ito (2008), "Color universal design": told apart by colour-blind readers.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE, BLACK = "#0072B2", "#D55E00", "#CC79A7", "#000000"
GREY = "#777777"

CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
METHODS = {
    "dense": (BLACK, "o"),
    "dynamic": (BLUE, "o"),
    "windowed": (GREEN, "^"),
    "static": (VERMILION, "s"),
}

WIDTH = 7.0  # inches: the text width of a two-column page
SPECIMEN = "specimen, trained here"

_RC: dict[Any, Any] = {
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


@styled
def note(text: str) -> Figure:
    """A page that says why there is nothing to see."""
    figure = Figure(figsize=(WIDTH, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=GREY)
    return figure


def of_site(table: pd.DataFrame, site: str) -> pd.DataFrame:
    """The rows of one kind of site: ffn or state."""
    return table[table["site"] == site]


def in_order(values: Iterable[Any]) -> list[Any]:
    """Distinct values, in the order in which they first appear."""
    return list(dict.fromkeys(values))


def split(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """(values, rows) of each group, in the order in which groups first appear."""
    yield from table.groupby(list(columns), sort=False)


def any_specimen(table: pd.DataFrame) -> bool:
    """Whether some rows are of a model that this project trained."""
    return bool((table["origin"] == "specimen").any())


def panels(
    keys: Sequence[tuple[Any, Any]],
    height: float = 1.6,
    *,
    share_x: bool = True,
    share_y: bool = True,
    width: float = 2.2,
) -> tuple[Figure, dict[tuple[Any, Any], Axes]]:
    """One panel per (row, column) pair, on one x axis.

    Args:
        keys: The pairs that are there, in order. Neighbouring rows with few panels stand in one
            row of the page, up to as many panels as the longest has, and at least three.
        height: Of a row of panels, in inches.
        share_x: Whether all panels share their x axis.
        share_y: Whether the panels of a row share their y axis.
        width: Of a panel, in inches, where the page has room.

    Returns:
        The figure, and the axes of each pair.
    """
    place = _pack(keys)
    n_rows, n_columns = (1 + max(at[axis] for at in place.values()) for axis in (0, 1))
    figure = Figure(figsize=(min(WIDTH, 1.4 + width * n_columns), 0.9 + height * n_rows))
    axes = figure.subplots(n_rows, n_columns, sharex=share_x, squeeze=False)
    for at, ax in np.ndenumerate(axes):
        ax.set_visible(at in place.values())
    for row, column in place.values():
        if (row + 1, column) not in place.values():
            axes[row, column].tick_params(labelbottom=True)
    found = {key: axes[at] for key, at in place.items()}
    if share_y:
        _share_y(found)
    return figure, found


def _pack(keys: Sequence[tuple[Any, Any]]) -> dict[tuple[Any, Any], tuple[int, int]]:
    """Where each panel stands on the page: (row, column)."""
    columns = in_order(c for _, c in keys)
    by_row = {r: [key for key in keys if key[0] == r] for r, _ in keys}
    longest = max(map(len, by_row.values()))
    whole = all(len(own) == longest for own in by_row.values())
    n_columns = longest if whole and longest > 1 else min(len(keys), max(3, longest))
    place: dict[tuple[Any, Any], tuple[int, int]] = {}
    at_row, used = 0, 0
    for own in by_row.values():
        if used + len(own) > n_columns:
            at_row, used = at_row + 1, 0
        for key in sorted(own, key=lambda key: columns.index(key[1])):
            place[key] = (at_row, used)
            used += 1
    return place


def _share_y(panels: dict[tuple[Any, Any], Axes]) -> None:
    first: dict[Any, Axes] = {}
    for (row, _), ax in panels.items():
        leader = first.setdefault(row, ax)
        if ax is not leader:
            ax.sharey(leader)
            ax.tick_params(labelleft=False)


def ratio_axes(axes: Iterable[Axes]) -> None:
    """Log axes of ratios, once drawn on: a line at 1 (dense), plain numbers for ticks."""
    axes = list(axes)
    for ax in axes:
        ax.set_yscale("log")
        ax.axhline(1, color=GREY, linewidth=0.7, linestyle=":", zorder=0)
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


def legend(figure: Figure, handles: Sequence[Line2D], table: pd.DataFrame) -> None:
    """One legend above the panels; it explains hollow marks where `table` has specimens."""
    if any_specimen(table):
        mark = Line2D([], [], linestyle="", marker="o", label=SPECIMEN, **marks(True, GREY))
        handles = [*handles, mark]
    # Inches of an entry: its line and the space around it, then its letters.
    widths = [0.54 + 0.047 * len(str(handle.get_label())) for handle in handles]
    n_rows = n_columns = len(handles)
    for n_rows in range(1, len(handles) + 1):
        n_columns = -(-len(handles) // n_rows)
        # A legend is filled column by column, the first columns being the longer ones.
        if sum(map(max, np.array_split(widths, n_columns))) < figure.get_figwidth():
            break
    figure.legend(handles=list(handles), loc="outside upper center", ncols=n_columns)


def percent(sparsity: float) -> str:
    """0.95 -> "95%"."""
    return f"{100 * sparsity:g}%"
