"""Two dials on one axis: what it costs to hold a keep set of the memory and of the scratch."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from keepset.report.figures import dial, layout, style

_LOOKS = {
    ("ffn", "none"): (style.GREY, "o", "scratch: FFN neurons"),
    ("input", "none"): (style.GREEN, "v", "scratch: inputs of projections"),
    ("state", "read"): (style.BLUE, "s", "memory: channels not read"),
    ("state", "write"): (style.VERMILION, "^", "memory: channels forgotten"),
    ("state", "both"): (style.BLACK, "_", "memory: channels cut (static)"),
}


@style.styled
def draw(ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense against the window, states beside FFN neurons.

    Args:
        ratios: The `ratios` table of keepset.analyse.significance. Neurons, and inputs of other
            maps, are those by magnitude, static states those by GHOST; windowed ones are those by
            impact, its form for a window, or by magnitude where impact was not run.

    Returns:
        The figure: a row per model and corpus, a column per sparsity; oracle solid, causal
        dashed, the static runs at the right edge. A model without FFN sites shows its state
        alone; models without a state are in figure dial.

    Raises:
        KeepsetError: no state has a windowed run.
    """
    table = _chosen(ratios)
    style.need(table, "memory_dial", "windowed run of a recurrent state")
    table = table.assign(panel=table["model"] + "\n" + table["corpus"])
    places = dial.positions(table["window"])
    keys = layout.pairs(table, "panel", "sparsity", sorted(table["sparsity"].unique()))
    figure, panels = layout.panels_of(table, "panel", "sparsity", keys, height=1.7)
    for (panel, share), ax, rows in panels:
        for (site, access, choice), series in style.split(rows, "site", "access", "choice"):
            colour, marker, _ = _LOOKS[site, access]
            dial.draw_held(ax, series, places, choice, colour, marker)
        dial.window_ticks(ax, places)
        ax.set_title(f"{panel.replace(chr(10), ', ')}: {style.percent(share)} left out")
    present = set(zip(table["site"], table["access"], strict=True))
    handles = [
        style.handle(label, colour, marker)
        for key, (colour, marker, label) in _LOOKS.items()
        if key in present
    ]
    handles += dial.choice_handles(table, style.BLACK)
    return layout.finish_ratios(figure, table, handles, dial.X_LABEL)


def _chosen(ratios: pd.DataFrame) -> pd.DataFrame:
    """The rows of both dials, at the sparsities of the state's; models keep their order."""
    state, static = ratios["site"] == "state", ratios["method"] == "static"
    moves = state & ratios["method"].isin(["dynamic", "windowed"])
    score = "impact" if (moves & (ratios["score"] == "impact")).any() else "magnitude"
    held = moves & (ratios["score"] == score)
    cut = state & static & (ratios["score"] == "ghost")
    scratch = ratios["site"].isin(["ffn", "input"]) & (ratios["score"] == "magnitude")
    return style.with_windows(ratios[scratch | held | cut], ratios[held])
