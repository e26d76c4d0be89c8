"""Speed-up against sparsity: the down projection, the FFN block, the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from keepset.report.figures import layout, style

LEVELS = {
    "kernel": "down projection, set given",
    "ffn": "FFN block",
    "model": "whole model, decoding",
}
_KINDS = {
    "bag": ("o", "embedding_bag"),
    "select": ("s", "copy rows, multiply"),
    "masked": ("X", "mask, multiply densely"),
    "triton-down": ("v", "Triton, kept rows where they are"),
    "dynamic": ("^", "dynamic: set chosen at every token"),
    "known": ("D", "set known: static or windowed"),
    "dynamic, triton-ffn": ("<", "dynamic, block by Triton kernels"),
    "known, triton-ffn": (">", "set known, block by Triton kernels"),
}
_TRITON = "triton-ffn"


@style.styled
def draw(kernels: pd.DataFrame) -> Figure:
    """Measured speed-up over dense against sparsity, one token at a time.

    Args:
        kernels: The `kernels` table. Windowed rules are for the frontier and are left out here.

    Returns:
        The figure: a panel per number format and level, a colour per shape or model, a mark per
        path or rule, the 20th to 80th percentile of rounds as bars; dotted, the limit
        1 / (share kept).

    Raises:
        KeepsetError: nothing was timed at batch 1.
    """
    table = kernels[(kernels["batch"] == 1) & kernels["method"].isin(["dynamic", "static"])]
    style.need(table, "speedup", "time at batch 1")
    table = table.assign(kind=[_kind(row) for row in table.to_dict("records")])
    sparsities = sorted(table["sparsity"].unique())
    places = {sparsity: place for place, sparsity in enumerate(sparsities)}
    names = style.in_order(table["model"])
    colours = dict(zip(names, style.CYCLE * (1 + len(names) // len(style.CYCLE)), strict=False))
    keys = layout.pairs(table, "dtype", "level", LEVELS)
    figure, panels = layout.panels_of(table, "dtype", "level", keys, height=2.6, share_y=False)
    for (dtype, level), ax, rows in panels:
        _panel(ax, rows, places, colours)
        ax.set_title(f"{LEVELS[level]}\n{dtype}")
    handles, timed = _handles(table, colours), table.assign(origin="pretrained")
    return layout.finish_ratios(figure, timed, handles, "neurons left out", "speed-up over dense")


def _kind(row: Mapping[Any, Any]) -> str:
    if row["level"] == "kernel":
        return str(row["path"])
    kind = "dynamic" if row["method"] == "dynamic" else "known"
    return f"{kind}, {row['path']}" if row["level"] == "ffn" and row["path"] == _TRITON else kind


def _panel(
    ax: Axes, table: pd.DataFrame, places: dict[float, int], colours: dict[str, str]
) -> None:
    for (name, kind), rows in style.split(table, "model", "kind"):
        rows = rows.sort_values("sparsity")
        marker, _ = _KINDS.get(kind, ("P", kind))
        values = (rows["speedup_p50"], rows["speedup_p20"], rows["speedup_p80"])
        look = style.marks(False, colours[name])
        style.interval(ax, rows["sparsity"].map(places), *values, marker=marker, **look)
    limit = [1 / (1 - sparsity) for sparsity in places]
    if (table["level"] != "model").all():
        ax.plot(list(places.values()), limit, color=style.GREY, linestyle=":", linewidth=1)
    ax.set_xticks(list(places.values()), [style.percent(sparsity) for sparsity in places])


def _handles(table: pd.DataFrame, colours: dict[str, str]) -> list[Line2D]:
    kinds = style.in_order(table["kind"])
    known = [kind for kind in _KINDS if kind in kinds]
    marks = [_KINDS.get(kind, ("P", kind)) for kind in style.in_order([*known, *kinds])]
    return [
        *(style.handle(name, colour) for name, colour in colours.items()),
        *(style.handle(label, style.GREY, marker, "") for marker, label in marks),
        style.handle("limit: 1 / (share kept)", style.GREY, dash=":"),
    ]
