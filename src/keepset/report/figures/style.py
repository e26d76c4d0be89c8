"""What all figures share: colours, panels, intervals, and files that are the same every time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from keepset.errors import KeepsetError
from keepset.files.store import replacing
from keepset.report.wording import in_order as in_order, percent as percent

P = ParamSpec("P")
Look = tuple[str, str, str]
"""Colour, marker, dash."""

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
_LEGEND_ROW = 0.15  # inches
SPECIMEN = "specimen, trained here"
FREE = "free"  # the label of the axes that stand where a page has room left

ROUNDING_SDS = 2
_HATCHED: dict[str, Any] = {"facecolor": "none", "edgecolor": GREY, "hatch": "//////"}

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
    "hatch.linewidth": 0.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.05,
    "pdf.fonttype": 42,
    "svg.hashsalt": "keepset",
}

# What each format writes by default and that changes from run to run.
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
    """Write `stem`.png (200 dpi), .svg and .pdf; the same figure gives the same bytes."""
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


def with_windows(table: pd.DataFrame, held: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows at each model, corpus and sparsity that `held`, else the table, has windows of."""
    keys = ["model", "corpus", "sparsity"]
    held = table if held is None else held
    return table.merge(held.loc[held["method"] == "windowed", keys].drop_duplicates(), on=keys)


def of_site(table: pd.DataFrame, site: str) -> pd.DataFrame:
    """The rows of one kind of site: ffn or state."""
    return table[table["site"] == site]


def split(table: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """(values, rows) of each group, in the order in which groups first appear."""
    yield from table.groupby(list(columns), sort=False)


def any_specimen(table: pd.DataFrame) -> bool:
    """Whether some rows are of a model that this project trained."""
    return bool((table["origin"] == "specimen").any())


def lines(
    ax: Axes, table: pd.DataFrame, by: str, looks: Mapping[str, Look], x: str,
    labels: Mapping[Any, str],
) -> None:  # fmt: skip
    """A line per value of `by`, with intervals; a band for the range of several seeds.

    Args:
        ax: Where.
        table: Ratios to dense of one panel.
        by: The column that tells lines apart.
        looks: Its values -> colour, marker, dash.
        x: The column of the x axis.
        labels: Its values, evenly spaced in this order -> labels of the ticks.
    """
    places = {value: place for place, value in enumerate(labels)}
    for (name,), rows in split(table, by):
        colour, marker, dash = looks[name]
        rows = rows.sort_values(x)
        look = {"marker": marker, "linestyle": dash, **marks(any_specimen(rows), colour)}
        interval(ax, rows[x].map(places), *ends(rows), **look)
        if (rows["seeds"] > 1).any():
            band(ax, rows[x].map(places), rows["ratio_min"], rows["ratio_max"], colour, 0.25)
    ax.set_xticks(range(len(labels)), list(labels.values()))


def rounding_band(ax: Axes, rows: pd.DataFrame, x: str, labels: Mapping[Any, str]) -> None:
    """Hatch what rounding alone can do to a ratio of 1, as `lines` places `x`.

    Args:
        ax: Where.
        rows: Ratios of dynamic rules; of several at one x, the largest `rounding` counts.
        x, labels: As in `lines`.
    """
    sd = rows.groupby(x)["rounding"].max().dropna()
    places = [list(labels).index(value) for value in sd.index]
    ends = (np.exp(-ROUNDING_SDS * sd), np.exp(ROUNDING_SDS * sd))
    ax.fill_between(places, *ends, linewidth=0, zorder=0, **_HATCHED)


def rounding_handle() -> Patch:
    """The legend's entry of `rounding_band`."""
    return Patch(label=f"rounding: \u00b1{ROUNDING_SDS} sd", **_HATCHED)


def ends(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Ratios with the ends of their intervals."""
    return rows["ratio"], rows["ci_low"], rows["ci_high"]


def band(ax: Axes, x: Any, low: Any, high: Any, colour: str, alpha: float = 0.15) -> None:
    """A band between two lines."""
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


def guide(ax: Axes, *, x: float | None = None, y: float | None = None) -> None:
    """A dotted grey line across a panel, behind what is drawn: 1 is dense, or 0 is nothing."""
    look: dict[str, Any] = {"color": GREY, "linewidth": 0.7, "linestyle": ":", "zorder": 0}
    if x is not None:
        ax.axvline(x, **look)
    if y is not None:
        ax.axhline(y, **look)


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


def handle(label: str, colour: str, marker: str = "", dash: Any = "-", **look: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], **{"color": colour, "marker": marker, "ls": dash, "label": label} | look)


def legend(figure: Figure, handles: Sequence[Artist], table: pd.DataFrame) -> None:
    """One legend, in the free part of the page where it fits there, else above the panels.

    It explains hollow marks where `table` has specimens.
    """
    if any_specimen(table):
        handles = [*handles, handle(SPECIMEN, GREY, "o", "", **marks(True, GREY))]
    shapes = _legend_shapes(handles)
    for ax in figure.axes:
        spec = ax.get_subplotspec()
        if spec is None or ax.get_label() != FREE:
            continue
        n_rows, n_columns = spec.get_gridspec().get_geometry()
        part = ax.figure.bbox  # of the page, or of the part of it that these panels fill
        width = 0.94 * part.width / figure.dpi * len(spec.colspan) / n_columns
        height = 0.8 * part.height / figure.dpi / n_rows
        fitting = [c for rows, c, wide in shapes if wide < width and _LEGEND_ROW * rows < height]
        if fitting:
            ax.legend(handles=list(handles), loc="center", ncols=fitting[-1])
            return
    fitting = [columns for _, columns, wide in shapes if wide < figure.get_figwidth()]
    figure.legend(handles=list(handles), loc="outside upper center", ncols=[*fitting, 1][0])


def _legend_shapes(handles: Sequence[Artist]) -> list[tuple[int, int, float]]:
    """Rows, columns and width in inches of every form of a legend, the widest first."""
    # Inches of an entry: its line and the space around it, then its letters.
    widths = [0.54 + 0.047 * len(str(entry.get_label())) for entry in handles]
    shapes = []
    for n_rows in range(1, len(handles) + 1):
        n_columns = -(-len(handles) // n_rows)
        # A legend is filled column by column, the first columns being the longer ones.
        shapes.append((n_rows, n_columns, sum(map(max, np.array_split(widths, n_columns)))))
    return shapes
