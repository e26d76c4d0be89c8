"""The dial: what it costs to hold one keep set for W tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import style

DASH: dict[str, Any] = {"oracle": "-", "causal": (0, (4, 2))}
WHEN = {
    "oracle": "oracle: chosen on the window itself",
    "causal": "causal: on the window before",
}

Positions = dict[str, float]
Looks = dict[float, tuple[str, str]]


@style.styled
def draw(ratios: pd.DataFrame, score: str = "magnitude") -> Figure:
    """Perplexity relative to dense against the window; a panel per model and corpus.

    Args:
        ratios: The `ratios` table of `analyse.significance`; its FFN sites are shown. W = 1 of the
            oracle is the dynamic run; the static run stands at the right edge.
        score: The score whose keep sets are shown.

    Returns:
        The figure: a colour per sparsity, oracle solid and causal dashed, intervals as bands.

    Raises:
        KeepsetError: there is no windowed run of this score.
    """
    ffn = style.of_site(ratios, "ffn")
    table = on_the_dial(ffn[ffn["score"] == score])
    style.need(table, "dial", f"windowed run of the score {score}")
    at = positions(table["window"])
    sparsities = sorted(table["sparsity"].unique())
    looks = dict(zip(sparsities, zip(style.CYCLE, style.MARKERS, strict=True), strict=False))
    keys = style.in_order(zip(table["model"], table["corpus"], strict=True))
    figure, axes = style.panels(keys, height=1.8)
    for (model, corpus), ax in axes.items():
        own = table[(table["model"] == model) & (table["corpus"] == corpus)]
        _panel(ax, own, at, looks)
        ax.set_title(f"{model}, {corpus}")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("window W (tokens for which one keep set is held)", fontsize=8)
    choices = [c for c in DASH if (table["choice"] == c).any()]
    style.legend(figure, _handles(looks, choices), table)
    return figure


def on_the_dial(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at the sparsities that each model and corpus has windowed runs of."""
    keys = ["model", "corpus", "sparsity"]
    windowed = table.loc[table["method"] == "windowed", keys].drop_duplicates()
    return table.merge(windowed, on=keys)


def positions(windows: pd.Series) -> Positions:
    """Where each window stands: log2 of its tokens, then the sequence, then static."""
    tokens = sorted({int(w) for w in windows if w not in ("sequence", "corpus")})
    at = {str(w): float(np.log2(w)) for w in tokens}
    for name, gap in (("sequence", 1.0), ("corpus", 1.8)):
        if (windows == name).any():
            at[name] = max(at.values(), default=-gap) + gap
    return at


def _panel(ax: Axes, table: pd.DataFrame, at: Positions, looks: Looks) -> None:
    specimen = style.any_specimen(table)
    for (sparsity, choice), rows in style.split(table, "sparsity", "choice"):
        colour, marker = looks[sparsity]
        rows = rows.assign(at=rows["window"].map(at)).sort_values("at")
        look = style.marks(specimen, colour)
        if choice == "none":
            ends = (rows["ratio"], rows["ci_low"], rows["ci_high"])
            style.interval(ax, rows["at"], *ends, marker="_", markersize=9, linestyle="", **look)
            continue
        ax.plot(rows["at"], rows["ratio"], marker=marker, markersize=3, ls=DASH[choice], **look)
        band = (rows["ci_low"], rows["ci_high"])
        ax.fill_between(rows["at"], *band, color=colour, alpha=0.15, linewidth=0)
    window_ticks(ax, at)


def window_ticks(ax: Axes, at: Positions) -> None:
    """Name the windows on the x axis."""
    names = {"sequence": "seq.", "corpus": "static"}
    tokens = [w for w in at if w not in names]
    # Labels of neighbours would run into each other on a narrow panel.
    shown = tokens[:: 1 + (len(tokens) > 5)]
    if len(tokens) > 5 and len(tokens) % 2 and "sequence" in at:
        shown = shown[:-1]
    ax.set_xticks(list(at.values()), [names.get(w, w if w in shown else "") for w in at])


def _handles(looks: Looks, choices: list[str]) -> list[Line2D]:
    sparsities = [
        Line2D([], [], color=colour, marker=marker, label=f"{style.percent(s)} left out")
        for s, (colour, marker) in looks.items()
    ]
    lines = [Line2D([], [], color=style.GREY, ls=DASH[c], label=WHEN[c]) for c in choices]
    return sparsities + lines
