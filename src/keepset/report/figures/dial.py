"""The dial: what it costs to hold one keep set for W tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import layout, style

DASH: dict[str, Any] = {"oracle": "-", "causal": (0, (4, 2))}
WHEN = {
    "oracle": "oracle: chosen on the window itself",
    "causal": "causal: on the window before",
}

X_LABEL = "window W (tokens for which one keep set is held)"

Positions = dict[str, float]


@style.styled
def draw(ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense against the window; a panel per model and corpus.

    Args:
        ratios: The `ratios` table of `analyse.significance`; magnitude at its FFN sites is shown.
            W = 1 of the oracle is the dynamic run; the static run stands at the right edge.

    Returns:
        The figure: a colour per sparsity, oracle solid and causal dashed, intervals as bands.

    Raises:
        KeepsetError: there is no windowed run of magnitude.
    """
    return draw_site(ratios, "ffn", "dial")


def draw_site(ratios: pd.DataFrame, site: str, name: str) -> Figure:
    """The same of one kind of site; `name` is the figure's, for messages."""
    units = style.of_site(ratios, site)
    table = style.with_windows(units[units["score"] == "magnitude"])
    style.need(table, name, "windowed run of the score magnitude")
    places = positions(table["window"])
    sparsities = sorted(table["sparsity"].unique())
    looks = dict(zip(sparsities, zip(style.CYCLE, style.MARKERS, strict=True), strict=False))
    figure, panels = layout.panels_of(table, "model", "corpus", height=1.8)
    for (model, corpus), ax, rows in panels:
        for (sparsity, choice), series in style.split(rows, "sparsity", "choice"):
            draw_held(ax, series, places, choice, *looks[sparsity])
        window_ticks(ax, places)
        ax.set_title(f"{model}, {corpus}")
    handles = [
        style.handle(f"{style.percent(sparsity)} left out", *look)
        for sparsity, look in looks.items()
    ]
    handles += choice_handles(table, style.GREY)
    return layout.finish_ratios(figure, table, handles, X_LABEL)


def positions(windows: pd.Series) -> Positions:
    """Where each window stands: log2 of its tokens, then the sequence, then static."""
    tokens = sorted({int(w) for w in windows if w not in ("sequence", "corpus")})
    places = {str(w): float(np.log2(w)) for w in tokens}
    for name, gap in (("sequence", 1.0), ("corpus", 1.8)):
        if (windows == name).any():
            places[name] = max(places.values(), default=-gap) + gap
    return places


def draw_held(
    ax: Axes, rows: pd.DataFrame, places: Positions, choice: str, colour: str, marker: str
) -> None:
    """A line over windows with its interval as a band; a static set is a short dash."""
    rows = rows.assign(place=rows["window"].map(places)).sort_values("place")
    look = style.marks(style.any_specimen(rows), colour)
    if choice == "none":
        look |= {"marker": "_", "markersize": 9, "linestyle": ""}
        style.interval(ax, rows["place"], *style.ends(rows), **look)
        return
    look |= {"marker": marker, "markersize": 3, "ls": DASH[choice]}
    ax.plot(rows["place"], rows["ratio"], **look)
    style.band(ax, rows["place"], rows["ci_low"], rows["ci_high"], colour)


def window_ticks(ax: Axes, places: Positions) -> None:
    """Name the windows on the x axis."""
    names = {"sequence": "seq.", "corpus": "static"}
    tokens = [w for w in places if w not in names]
    # Labels of neighbours would run into each other on a narrow panel.
    shown = tokens[:: 1 + (len(tokens) > 5)]
    if len(tokens) > 5 and len(tokens) % 2 and "sequence" in places:
        shown = shown[:-1]
    ax.set_xticks(list(places.values()), [names.get(w, w if w in shown else "") for w in places])


def choice_handles(table: pd.DataFrame, colour: str) -> list[Line2D]:
    """The legend's entries for the choices that `table` has rows of."""
    choices = [choice for choice in DASH if (table["choice"] == choice).any()]
    return [style.handle(WHEN[choice], colour, dash=DASH[choice]) for choice in choices]
