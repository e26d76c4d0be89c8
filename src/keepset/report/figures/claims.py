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
_TITLE, _LINE, _PAD = 0.15, 0.11, 0.075  # inches: a title, a line below it, what surrounds both
_SMALL = 6.0  # points
_LETTERS = 60  # of the smaller text on one line


@style.styled
def draw(ledger: pd.DataFrame) -> Figure:
    """Every claim with its verdict, its number here and the papers'.

    Args:
        ledger: The ledger of keepset.analyse.claims.

    Returns:
        The figure, one column wide. Hollow marks: the direction only, in specimens. Words say why
        an open claim is open, since its interval may lie wholly outside of what is asked.

    Raises:
        KeepsetError: the ledger has no rows.
    """
    style.need(ledger, "claims", "claim")
    rows = [(row, _lines(row)) for row in ledger.itertuples()]
    total = sum(_height(lines) for _, lines in rows)
    figure = Figure(figsize=(_WIDTH, 0.6 + total))
    ax = figure.subplots()
    top = 0.0
    for place, (row, lines) in enumerate(rows):
        if place % 2 == 0:
            ax.axhspan(top, top + _height(lines), color="#f2f2f2", linewidth=0, zorder=-1)
        _row(ax, top, row, lines)
        top += _height(lines)
    ax.set_xlim(0, 1)
    ax.set_ylim(total, 0)
    ax.set_axis_off()
    figure.legend(handles=_handles(ledger), loc="outside upper center", ncols=2)
    return figure


def _height(lines: list[str]) -> float:
    return _PAD + _TITLE + _LINE * len(lines)


def _row(ax: Axes, top: float, row: Any, lines: list[str]) -> None:
    """A claim, from `top` downwards; the y axis is in inches."""
    colour, marker = LOOKS[row.verdict]
    look = style.marks(row.scope == "direction", colour) | {"markeredgewidth": 1.4}
    middle = top + _height(lines) / 2
    ax.plot(0.035, middle, marker=marker, markersize=7, linestyle="", **look)
    y = top + (_PAD + _TITLE) / 2
    ax.text(0.085, y, row.claim, va="center", fontsize=7.5, fontweight="bold")
    ax.text(0.18, y, row.title, va="center", fontsize=7.5)
    for at, line in enumerate(lines):
        y = top + _PAD / 2 + _TITLE + _LINE * (at + 0.5)
        ax.text(0.18, y, line, va="center", fontsize=_SMALL, color="#444444")


def _lines(row: Any) -> list[str]:
    """What stands below the title of a claim; no line breaks at an equals sign."""
    texts = [_detail(row), str(row.why) if row.verdict == "inconclusive" else ""]
    unbroken = (text.replace(" = ", "\u00a0=\u00a0") for text in texts)
    return [line for text in unbroken for line in textwrap.wrap(text, _LETTERS)]


def _detail(row: Any) -> str:
    """The number here, beside the papers' only where the two can be compared."""
    papers = f"papers: {row.paper}"
    if not row.cases:
        return papers if row.source != "keepset" else "nothing to test it on"
    if row.scope == "direction" or row.source == "keepset":
        return f"here {_number(row)}, asked {bound(row)}"
    return f"here {_number(row)}; {papers}"


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
