"""Two dials on one axis: what it costs to hold a keep set of the memory and of the scratch."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import dial, style

_LOOKS = {
    ("ffn", "none"): (style.GREY, "o", "scratch: FFN neurons"),
    ("state", "read"): (style.BLUE, "s", "memory: channels not read"),
    ("state", "write"): (style.VERMILION, "^", "memory: channels forgotten"),
    ("state", "both"): (style.BLACK, "_", "memory: channels cut (static)"),
}


@style.styled
def draw(ratios: pd.DataFrame, scratch: str = "magnitude", static: str = "ghost") -> Figure:
    """Perplexity relative to dense against the window, states beside FFN neurons.

    Args:
        ratios: The `ratios` table of keepset.analyse.significance.
        scratch: The score of the FFN's keep sets.
        static: The score of the state's static keep sets; windowed ones are those by impact, its
            form for a window, or by magnitude where impact was not run.

    Returns:
        The figure: a row per model and corpus, a column per sparsity; oracle solid, causal
        dashed, the static runs at the right edge. A model without FFN sites shows its state
        alone; models without a state are in figure dial.

    Raises:
        KeepsetError: no state has a windowed run.
    """
    table = _chosen(ratios, scratch, static)
    style.need(table, "memory_dial", "windowed run of a recurrent state")
    table = table.assign(panel=table["model"] + "\n" + table["corpus"])
    at = dial.positions(table["window"])
    shares = sorted(table["sparsity"].unique())
    keys = [
        (panel, share)
        for (panel,), rows in style.split(table, "panel")
        for share in shares
        if (rows["sparsity"] == share).any()
    ]
    figure, axes = style.panels(keys, height=1.7)
    for (panel, share), ax in axes.items():
        own = table[(table["panel"] == panel) & (table["sparsity"] == share)]
        _panel(ax, own, at)
        ax.set_title(f"{panel.replace(chr(10), ', ')}: {style.percent(share)} left out")
    style.ratio_axes(axes.values())
    figure.supylabel("token perplexity / dense", fontsize=8)
    figure.supxlabel("window W (tokens for which one keep set is held)", fontsize=8)
    style.legend(figure, _handles(table), table)
    return figure


def _chosen(ratios: pd.DataFrame, scratch: str, static: str) -> pd.DataFrame:
    """The rows of both dials, at the sparsities that the state's dial has."""
    state = style.of_site(ratios, "state")
    held = state[state["method"].isin(["dynamic", "windowed"])]
    score = "impact" if (held["score"] == "impact").any() else "magnitude"
    held = held[held["score"] == score]
    cut = state[(state["method"] == "static") & (state["score"] == static)]
    ffn = style.of_site(ratios, "ffn")
    rows = pd.concat([ffn[ffn["score"] == scratch], held, cut])
    keys = ["model", "corpus", "sparsity"]
    return rows.merge(held.loc[held["method"] == "windowed", keys].drop_duplicates(), on=keys)


def _panel(ax: Axes, table: pd.DataFrame, at: dial.Positions) -> None:
    for (site, access, choice), rows in style.split(table, "site", "access", "choice"):
        colour, marker, _ = _LOOKS[site, access]
        rows = rows.assign(at=rows["window"].map(at)).sort_values("at")
        look: dict[str, Any] = style.marks(style.any_specimen(rows), colour)
        ends = (rows["ratio"], rows["ci_low"], rows["ci_high"])
        if choice == "none":
            style.interval(ax, rows["at"], *ends, marker="_", markersize=9, linestyle="", **look)
            continue
        look |= {"marker": marker, "markersize": 3, "ls": dial.DASH[choice]}
        ax.plot(rows["at"], rows["ratio"], **look)
        ax.fill_between(rows["at"], *ends[1:], color=colour, alpha=0.15, linewidth=0)
    dial.window_ticks(ax, at)


def _handles(table: pd.DataFrame) -> list[Line2D]:
    seen = set(zip(table["site"], table["access"], strict=True))
    marks = [
        Line2D([], [], color=colour, marker=marker, label=label)
        for key, (colour, marker, label) in _LOOKS.items()
        if key in seen
    ]
    choices = [c for c in dial.DASH if (table["choice"] == c).any()]
    lines = [
        Line2D([], [], color=style.BLACK, ls=dial.DASH[c], label=dial.WHEN[c]) for c in choices
    ]
    return marks + lines
