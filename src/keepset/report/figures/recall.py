"""Recall: is a stated fact still known, by the number of facts that were stated?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.report.figures import layout, score_lines, style

_SHOWN = 3  # of the static sparsities of states, the largest

Series = tuple[str, style.Look, pd.DataFrame]
Panels = dict[str, list[Series]]


@style.styled
def draw(recall: pd.DataFrame) -> Figure:
    """Accuracy by the number of facts, dense and under every kind of setting; a row per model.

    Args:
        recall: What `comparisons.recall_table` returned; rows over all distances are shown.

    Returns:
        The figure: columns are FFN settings, static states at their three largest sparsities,
        and states held for a window, each with dense in black; Wilson's intervals; the dotted
        line is chance. Hollow marks are specimens.

    Raises:
        KeepsetError: there is no recall task.
    """
    table = recall[recall["distance"] == -1]
    style.need(table, "recall", "task of kind recall")
    tasks = table["task"].nunique()
    names = table["model"] if tasks == 1 else table["model"] + ", " + table["task"]
    table = table.assign(row=names)
    facts = sorted(table["n_facts"].unique())
    by_row = {row: _panels(rows) for (row,), rows in style.split(table, "row")}
    columns = style.in_order(name for panels in by_row.values() for name in panels)
    columns = sorted(columns, key=lambda name: (not name.startswith("FFN"), "held" in name))
    keys = [(row, name) for row, panels in by_row.items() for name in columns if name in panels]
    figure, axes = layout.panels(keys, height=1.35)
    for (row, name), ax in axes.items():
        _draw(ax, by_row[row][name], facts, float(table["chance"].iloc[0]))
        ax.set_title(f"{row}\n{name}")
    figure.supylabel("recall accuracy (exact answer)", fontsize=8)
    figure.supxlabel("facts stated, of which one is asked for", fontsize=8)
    looks = {
        label: look
        for panels in by_row.values()
        for series in panels.values()
        for label, look, _ in series
    }
    handles = [style.handle(label, *look, markersize=3) for label, look in looks.items()]
    style.legend(figure, handles, table)
    return figure


def _panels(rows: pd.DataFrame) -> Panels:
    """The columns of one model: each a list of series."""
    panels: Panels = {}
    for (_,), part in style.split(rows, "site"):
        dense = ("dense", (style.BLACK, "o", "-"), part[part["method"] == "dense"])
        for name, series in [*_ffn(part), *_state(part)]:
            panels[name] = [dense, *series]
        if not (part["method"] != "dense").any():
            panels["dense"] = [dense]
    return panels


def _ffn(part: pd.DataFrame) -> Iterator[tuple[str, list[Series]]]:
    rules = style.of_site(part, "ffn")
    for (sparsity,), rows in style.split(rules[rules["method"] != "dense"], "sparsity"):
        series = []
        for (method, window, choice), one in style.split(rows, "method", "window", "choice"):
            colour, marker = style.METHODS[method]
            dash = "--" if choice == "causal" else "-"
            label = method if method != "windowed" else f"W = {window}, {choice}"
            series.append((label, (colour, marker, dash), one))
        yield f"FFN, {style.percent(sparsity)}", series


def _state(part: pd.DataFrame) -> Iterator[tuple[str, list[Series]]]:
    rules = style.of_site(part, "state")
    static, looks = rules[rules["method"] == "static"], score_lines.looks("state")
    for sparsity in sorted(static["sparsity"].unique())[-_SHOWN:]:
        rows = static[static["sparsity"] == sparsity]
        yield (
            f"state cut, {style.percent(sparsity)}",
            [(score, looks[score], one) for (score,), one in style.split(rows, "score")],
        )
    held = rules[rules["method"].isin(["dynamic", "windowed"])]
    for (sparsity,), rows in style.split(held, "sparsity"):
        keys = ("access", "window", "choice")
        series = [
            _held(access, window, choice, one)
            for (access, window, choice), one in style.split(rows, *keys)
        ]
        yield f"state held, {style.percent(sparsity)}", series


def _held(access: str, window: str, choice: str, rows: pd.DataFrame) -> Series:
    colour = {"read": style.GREEN, "write": style.PURPLE}[access]
    lost = {"read": "not read", "write": "forgotten"}[access]
    dynamic = (window, choice) == ("1", "oracle")
    label = f"{lost}, " + ("dynamic" if dynamic else f"W = {window}, {choice}")
    marker = "o" if window == "1" else "^"
    return label, (colour, marker, "--" if choice == "causal" else "-"), rows


def _draw(ax: Axes, series: list[Series], facts: list[int], chance: float) -> None:
    style.guide(ax, y=chance)
    for _, (colour, marker, dash), rows in series:
        rows = rows.sort_values("n_facts")
        x = [facts.index(n) for n in rows["n_facts"]]
        look: dict[str, Any] = style.marks(style.any_specimen(rows), colour)
        look |= {"marker": marker, "markersize": 3, "linestyle": dash}
        style.interval(ax, x, rows["accuracy"], rows["ci_low"], rows["ci_high"], **look)
    ax.set_xticks(range(len(facts)), [str(n) for n in facts])
    ax.set_ylim(-0.03, 1.03)
