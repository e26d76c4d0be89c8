"""The claims at a glance: one row per claim, one mark per verdict."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import style
from keepset.report.wording import bound

# Mark and colour of each verdict; the marks alone tell them apart.
LOOKS = {
    "reproduced": (style.BLUE, "o"),
    "contradicted": (style.VERMILION, "X"),
    "inconclusive": (style.ORANGE, "D"),
    "not tested here": (style.GREY, "_"),
}
_WIDTH = 3.5  # inches: a column of a two-column page
_ROW = 0.335  # inches
_SMALL = 6.0  # points
_LETTERS = 58  # of the smaller text on one line


@style.styled
def draw(ledger: pd.DataFrame) -> Figure:
    """Every claim with its verdict, its number here and the papers'.

    Args:
        ledger: The ledger of keepset.analyse.claims.

    Returns:
        The figure, one column wide. Hollow marks: the direction only, in specimens.

    Raises:
        KeepsetError: the ledger has no rows.
    """
    style.need(ledger, "claims", "claim")
    figure = Figure(figsize=(_WIDTH, 0.55 + _ROW * len(ledger)))
    ax = figure.subplots()
    for place, row in enumerate(ledger.itertuples()):
        _row(ax, place, row)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(ledger) - 0.5, -0.5)
    ax.set_axis_off()
    figure.legend(handles=_handles(ledger), loc="outside upper center", ncols=2)
    return figure


def _row(ax: Axes, y: int, row: Any) -> None:
    colour, marker = LOOKS[row.verdict]
    if y % 2 == 0:
        ax.axhspan(y - 0.5, y + 0.5, color="#f2f2f2", linewidth=0, zorder=-1)
    look = style.marks(row.scope == "direction", colour)
    ax.plot(0.035, y, marker=marker, markersize=7, linestyle="", **look | {"markeredgewidth": 1.4})
    ax.text(0.085, y - 0.2, row.claim, va="center", fontsize=7.5, fontweight="bold")
    ax.text(0.18, y - 0.2, row.title, va="center", fontsize=7.5)
    ax.text(0.18, y + 0.24, _detail(row), va="center", fontsize=_SMALL, color="#444444")


def _detail(row: Any) -> str:
    """The number here, beside the papers' only where the two can be compared."""
    papers = f"papers: {row.paper}"
    if not row.cases:
        words = papers if row.source != "keepset" else "nothing to test it on"
    elif row.scope == "direction" or row.source == "keepset":
        words = f"here {_number(row)}, asked {bound(row)}"
    else:
        words = f"here {_number(row)}; {papers}"
    return textwrap.shorten(words, _LETTERS, placeholder=" ...")


def _number(row: Any) -> str:
    times = "\u00d7" if row.scale == "ratio" else ""
    values = (row.estimate, row.ci_low, row.ci_high)
    # A ratio near one says something in what it differs from one by.
    near = row.scale == "ratio" and all(
        math.isnan(value) or abs(value - 1) < 0.2 for value in values
    )
    estimate, low, high = (f"{value:.3f}" if near else _plain(value) for value in values)
    text = f"{estimate}{times}"
    return text if math.isnan(row.ci_low) else f"{text} [{low}, {high}]"


def _plain(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"


def _handles(ledger: pd.DataFrame) -> list[Line2D]:
    counts = ledger["verdict"].value_counts()
    handles = [
        style.handle(
            f"{verdict}: {counts.get(verdict, 0)}", *look, "", markersize=6, markeredgewidth=1.4
        )
        for verdict, look in LOOKS.items()
    ]
    if (ledger["scope"] == "direction").any():
        hollow = style.marks(True, style.GREY)
        handles.append(style.handle("hollow: direction only", style.GREY, "o", "", **hollow))
    return handles
