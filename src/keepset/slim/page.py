"""The report of `keepset slim`: one page of HTML with its figure inside, and the figure as PNG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from keepset.files import store
from keepset.report.figures import style
from keepset.rules.recipe import Recipe

_NAMES = {"speed": "weights read per token", "memory": "state", "size": "checkpoint"}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 0.6em 0; } img { max-width: 100%; }
th, td { padding: 0.15em 0.7em; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } tr.chosen { font-weight: bold; }
"""


@style.styled
def draw(rows: pd.DataFrame, shares: pd.DataFrame, save: str, budget: float | None) -> Figure:
    """The frontier that was chosen from, and what the chosen recipe leaves out where.

    Args:
        rows: candidate, saved, ratio, ratio_low, ratio_high, chosen.
        shares: part, layer, share.
        save: speed, memory or size.
        budget: The allowed rise of perplexity, drawn as a line; None draws none.
    """
    figure = Figure(figsize=(style.WIDTH, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _frontier(left, rows, save, budget)
    looks = zip(style.CYCLE * 3, style.MARKERS * 3, strict=False)
    parts = shares.groupby("part", sort=False)
    for (part, group), (colour, marker) in zip(parts, looks, strict=False):
        right.plot(
            group["layer"], 100 * group["share"], color=colour, marker=marker, markersize=3,
            linewidth=0.8, label=str(part),
        )  # fmt: skip
    right.set_xlabel("layer")
    right.set_ylabel("left out (%)")
    right.set_ylim(0, None)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_title("the recipe, site by site")
    _legend_below(right)
    return figure


def _frontier(ax: Axes, rows: pd.DataFrame, save: str, budget: float | None) -> None:
    # A mark of its own also for those that repeat a colour.
    looks = zip(style.CYCLE * 2, style.MARKERS + style.MARKERS[3:] + style.MARKERS, strict=False)
    for (name, group), (colour, marker) in zip(
        rows.groupby("candidate", sort=False), looks, strict=False
    ):
        group = group.sort_values("saved")
        low, high = group["ratio"] - group["ratio_low"], group["ratio_high"] - group["ratio"]
        ax.errorbar(
            100 * group["saved"], group["ratio"], yerr=[low, high], color=colour, marker=marker,
            markersize=4, linewidth=0.8, capsize=1.5, label=str(name),
        )  # fmt: skip
    chosen = rows[rows["chosen"]]
    ax.plot(
        100 * chosen["saved"], chosen["ratio"], "o", markersize=10, markerfacecolor="none",
        markeredgecolor=style.BLACK, label="chosen",
    )  # fmt: skip
    if budget is not None:
        ax.axhline(1 + budget, color=style.GREY, linestyle=":", linewidth=1)
        # Rivals far above the budget would hide what happens around it.
        ax.set_ylim(None, max(1 + 4 * budget, 1.02 * float(chosen["ratio_high"].max())))
    ax.set_xlabel(f"{_NAMES[save]} saved (%)")
    ax.set_ylabel("perplexity / dense")
    ax.set_title("the frontier, on held-out text")
    _legend_below(ax)


def _legend_below(ax: Axes) -> None:
    ax.legend(fontsize=6, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def shares_by_part(recipe: Recipe, sites: Mapping[str, Any]) -> pd.DataFrame:
    """Columns part, layer, share: what a recipe leaves out of each site; 0 where it has no rule."""
    kinds = {rule.site for rule in recipe.rules.values()}
    rows = []
    for key, site in sites.items():
        if site.kind in kinds:
            part = ".".join(key.split(".")[2:])
            rule = recipe.rules.get(key)
            share = 0.0 if rule is None else rule.sparsity
            rows.append((f"{site.kind} {part}".strip(), site.layer, share))
    return pd.DataFrame(rows, columns=["part", "layer", "share"])


def write(
    folder: Path,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    rows: pd.DataFrame,
    figure: Figure,
) -> None:
    """Write report.html and report.png.

    Args:
        folder: Where they go.
        facts: What is said first: name and value.
        notes: Sentences below.
        rows: The frontier's rows (`keepset.slim.search.as_rows`), as a table.
        figure: What `draw` gave.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=200)
    with store.replacing(folder / "report.png") as temporary:
        temporary.write_bytes(image.getvalue())
    text = base64.b64encode(image.getvalue()).decode()
    title = html.escape(facts[0][1])
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        "<table>",
        *(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts[1:]),
        "</table>",
        f'<img alt="frontier and shares" src="data:image/png;base64,{text}">',
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        "<table><tr><th>way</th><th>level</th><th>saved</th><th>perplexity / dense</th>"
        "<th>one-sided bounds</th><th>points lost</th></tr>",
        *(_row(row) for row in rows.itertuples()),
        "</table></body></html>",
    ]
    with store.replacing(folder / "report.html") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(row: Any) -> str:
    lost = "" if pd.isna(row.lost) else f"{row.lost:.1f} (at most {row.lost_high:.1f})"
    cells = (
        html.escape(row.candidate),
        f"{100 * row.level:g}%",
        f"{100 * row.saved:.1f}%",
        f"{row.ratio:.4f}",
        f"{row.ratio_low:.4f} to {row.ratio_high:.4f}",
        lost,
    )
    mark = ' class="chosen"' if row.chosen else ""
    return f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
