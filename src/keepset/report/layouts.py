"""What each result table shows of a study in LaTeX: its rows, its columns, its caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keepset.report.latex import NOTHING, Cells, escape, number, p_value, with_interval
from keepset.report.wording import in_order, percent
from keepset.rules.kinds import is_seeded

_DIAL = ["model", "corpus", "site", "access", "score", "sparsity"]

Shown = tuple[list[str], Cells]
"""The head and the rows of a table."""


class Layout(NamedTuple):
    """How one file is made: from which table, which of its rows, and what LaTeX shows of them."""

    source: str
    cells: Callable[[pd.DataFrame], Shown]
    caption: str
    select: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table


def _ratio(row: Any) -> str:
    mark = "$^{=}$" if row.equivalent else ""
    return with_interval(row.ratio, row.ci_low, row.ci_high, mark)


def _estimate(column: str) -> Callable[[Any], str]:
    """A cell with the value of a column and its interval."""
    return lambda row: with_interval(getattr(row, column), row.ci_low, row.ci_high)


def _text(name: str) -> str:
    return NOTHING if name == "none" else escape(name)


def _shown(column: str, value: Any) -> str:
    """A value of a column, as the tables show it."""
    if column == "ppl_dense":
        return number(value)
    if column == "sparsity":
        return escape(percent(value))
    if column == "rounding":
        return NOTHING if np.isnan(value) else rf"{100 * value:.2g}\%"
    return "all" if column == "distance" and value == -1 else _text(str(value))


def _with_seeds(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The table, in which the scores of `column` that have a seed name it."""
    scored = zip(table[column], table["seed"], strict=True)
    names = [f"{s} ({seed})" if is_seeded(s) and seed >= 0 else s for s, seed in scored]
    return table.assign(**{column: names})


def _records(table: pd.DataFrame) -> Iterator[Any]:
    yield from table.itertuples()


def _names(row: Any, columns: Sequence[str]) -> list[str]:
    return [_shown(column, getattr(row, column)) for column in columns]


def _cross(
    table: pd.DataFrame, keys: Sequence[str], column: str, values: Sequence[Any],
    cell: Callable[[Any], str] = _ratio,
) -> Cells:  # fmt: skip
    """A cross table: a row for the values of `keys`, a cell for each of `values` of a column."""
    rows = []
    names: Any
    for names, group in table.groupby(list(keys), sort=False, dropna=False):
        cells = {getattr(row, column): cell(row) for row in _records(group)}
        rows.append([*map(_shown, keys, names), *(cells.get(v, NOTHING) for v in values)])
    return rows


def _perplexity(table: pd.DataFrame) -> Shown:
    sparsities = sorted(table["sparsity"].unique())
    keys = ["model", "corpus", "ppl_dense", "site", "access", "score", "method"]
    largest = table.groupby(keys, sort=False)["rounding"].transform("max")
    keys = [*keys, "rounding"]
    rows = _cross(table.assign(rounding=largest), keys, "sparsity", sparsities)
    return [*keys[:2], "dense", *keys[3:], *(percent(s) for s in sparsities)], rows


def _dial(table: pd.DataFrame) -> Shown:
    choices = sorted(table["choice"].unique(), reverse=True)  # oracle before causal
    order = table["window"].map(lambda w: np.inf if w == "sequence" else float(w))
    dial = table.groupby(_DIAL, sort=False).ngroup()
    table = table.assign(dial=dial, order=order).sort_values(["dial", "order"], kind="stable")
    return [*_DIAL, "W", *choices], _cross(table, [*_DIAL, "window"], "choice", choices)


def _on_the_dial(ratios: pd.DataFrame) -> pd.DataFrame:
    windowed = ratios.loc[ratios["method"] == "windowed", _DIAL].drop_duplicates()
    return ratios[ratios["method"].isin(["dynamic", "windowed"])].merge(windowed, on=_DIAL)


def _capability(table: pd.DataFrame) -> Shown:
    keys = ["model", "task", "n", "site", "access", "method", "score", "sparsity"]
    accuracy, rows = _estimate("accuracy"), []
    for row in _records(_with_seeds(table, "score")):
        mark = "$^{=}$" if row.equivalent is not pd.NA and row.equivalent else ""
        difference = with_interval(row.difference, row.diff_low, row.diff_high, mark)
        names = _names(row, [*keys, "window", "choice"])
        rows.append([*names, accuracy(row), difference, p_value(row.p_holm)])
    return [*keys, "W", "choice", "accuracy", "difference", "p"], rows


def _trend(table: pd.DataFrame) -> Shown:
    names = [*_DIAL, "choice"]
    slope = _estimate("slope")
    return [*names, "documents", "slope", "p", "p of a rise at every step", "monotone"], [
        [
            *_names(row, names),
            str(row.n_documents),
            slope(row),
            p_value(row.p_holm),
            p_value(row.p_monotone_holm),
            row.monotone,
        ]
        for row in _records(table)
    ]


def _correlations(table: pd.DataFrame) -> Shown:
    impacts = in_order(table["impact"])
    keys = ["model", "corpus", "site", "size"]
    return [*keys, *impacts], _cross(table, keys, "impact", impacts, _estimate("spearman"))


def _recall(table: pd.DataFrame) -> Shown:
    facts = sorted(table["n_facts"].unique())
    keys = ["model", "task", "site", "access", "method", "score", "sparsity"]
    by = [*keys, "window", "choice", "distance"]
    cells = _cross(table, by, "n_facts", facts, _estimate("accuracy"))
    return [*keys, "W", "choice", "distance", *(f"{n} facts" for n in facts)], cells


def _state_pairs(table: pd.DataFrame) -> Shown:
    keys = ["model", "text", "measure", "sparsity", "score", "rival"]
    effect, rows = _estimate("effect"), []
    for row in _records(_with_seeds(table, "rival")):
        values = (number(row.value), number(row.value_rival), effect(row), p_value(row.p_holm))
        rows.append([*_names(row, keys), *values, row.verdict])
    return [*keys, "value", "rival's", "effect", "p", "verdict"], rows


_PLACES = {
    "static both": "static",
    "static none": "static",
    "dynamic read": "dynamic",
    "dynamic none": "dynamic",
    "dynamic write": "dynamic, forgotten",
}


def _side_by_side(table: pd.DataFrame) -> Shown:
    places = in_order(_PLACES.values())
    place = (table["persistence"] + " " + table["access"]).map(_PLACES)
    table = table.assign(place=place).sort_values("sparsity", kind="stable")
    keys = ["model", "corpus", "sparsity", "part", "by"]
    return [*keys, *places], _cross(table, keys, "place", places)


def _lengths(table: pd.DataFrame) -> Shown:
    lengths = sorted(table["length"].unique())
    keys = ["model", "corpus", "score", "sparsity"]
    cells = _cross(table.assign(equivalent=False), keys, "length", lengths)
    return [*keys, *(f"{n} tokens" for n in lengths)], cells


_OVER_DOCUMENTS = "{level}$t$ intervals over documents, model and calibration text fixed."
_SAME = "$^{{=}}$: equivalent to dense within the study's margin."

LAYOUTS = {
    "perplexity": Layout(
        "ratios",
        _perplexity,
        "Token perplexity relative to dense, by sparsity, with " + _OVER_DOCUMENTS + " The column"
        " ``dense'' is the dense perplexity; ``rounding'' is the largest standard deviation over"
        " runs of a dynamic rule that differ in the last bit, which intervals and tests include. "
        + _SAME,
        lambda t: t[t["method"].isin(["static", "dynamic"])],
    ),
    "dial": Layout(
        "ratios",
        _dial,
        "Token perplexity relative to dense when one keep set is held for $W$ tokens, with "
        + _OVER_DOCUMENTS
        + " "
        + _SAME,
        _on_the_dial,
    ),
    "capability": Layout(
        "capability",
        _capability,
        "Accuracy in each task with Wilson's {level}intervals; its difference from dense on the"
        " same items with Tango's; $p$: exact McNemar, Holm over model and task. " + _SAME,
    ),
    "trend": Layout(
        "trend",
        _trend,
        "Slope of the loss on the window: nats per token for each doubling, with {level}intervals"
        " over documents; $p$: one-sided $t$-test over documents; monotone: the loss rises at every"
        " step (yes), falls at one (no), or neither is shown (open). Holm over model and corpus.",
    ),
    "correlations": Layout(
        "correlation",
        _correlations,
        "Spearman's correlation of size with each notion of impact: mean over layers, which are"
        " fixed, with {level}jackknife intervals over groups of calibration documents. Size of a"
        " neuron (ffn): mean $|h|$; of a state channel: magnitude, the product of its weights'"
        " norms, or controllability, the root mean square of the state. Loss: every score of the"
        " neurons that were ablated, on the text of the ablation or on other text; intervals over"
        " these neurons, with the text fixed.",
        lambda t: t[(t["layer"] == -1) & (t["left_out"] == -1)],
    ),
    "recall": Layout(
        "recall",
        _recall,
        "Recall: share of answers that are right, by the number of facts stated and the distance"
        " in words between facts and question, with Wilson's {level}intervals. The random score"
        " is the mean over its seeds.",
    ),
    "state_pairs": Layout(
        "state_pairs",
        _state_pairs,
        "Scores of state channels against each other, static, on the same blocks or items, with"
        " {level}intervals. Perplexity: ratio to the rival's, $t$ interval and $t$-test over"
        " documents. Accuracy: difference (Tango), exact McNemar test, a row per seed of a random"
        " rival. $p$: Holm over model and text.",
    ),
    "side_by_side": Layout(
        "side_by_side",
        _side_by_side,
        "Memory (recurrent state) and scratch (FFN neurons) of one model: token perplexity"
        " relative to dense, with "
        + _OVER_DOCUMENTS
        + " Size and impact of a state: $\\Vert W_B\\Vert\\,\\Vert W_C\\Vert$ and GHOST when"
        " static, $H^2$ and $H^2 C^2$ when dynamic; dynamic channels are not read, or (last column)"
        " forgotten. " + _SAME,
    ),
    "lengths": Layout(
        "lengths",
        _lengths,
        "Token perplexity relative to dense of static states, by the length of the passages"
        " evaluated, with " + _OVER_DOCUMENTS + " Channels are chosen on passages of one block.",
    ),
}
