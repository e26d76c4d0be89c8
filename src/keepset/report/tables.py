"""Result tables as files: CSV with every digit for machines, LaTeX with intervals for readers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keepset.errors import KeepsetError
from keepset.files.store import replacing
from keepset.rules.kinds import is_seeded

_SPECIAL = {character: "\\" + character for character in "&%$#_{}"}
_SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_NOTHING = "--"

Cells = list[list[str]]


class _Layout(NamedTuple):
    """How one file is made: which table, which of its rows, and what LaTeX shows of them."""

    source: str
    select: Callable[[pd.DataFrame], pd.DataFrame]
    cells: Callable[[pd.DataFrame], tuple[list[str], Cells]]
    caption: str


def write_tables(
    tables: dict[str, pd.DataFrame], folder: str | Path, confidence: float | None = None
) -> list[Path]:
    """Write every table that the given ones hold, each as .csv and .tex.

    Args:
        tables: Any of `ratios`, `capability` and `trend` (what `analyse.significance` returns),
            `correlation`, and `recall`, `state_pairs`, `side_by_side` and `lengths` (what
            keepset.analyse.comparisons returns). A table without rows gives files with a head only.
        folder: Where the files go.
        confidence: Level of the intervals, for the captions.

    Returns:
        The paths written.

    Raises:
        KeepsetError: a table of another name, or one that lacks a column.
    """
    known = {layout.source for layout in _LAYOUTS.values()}
    if unknown := set(tables) - known:
        raise KeepsetError(
            f"tables: cannot write {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    level = "" if confidence is None else _percent(confidence).replace("%", r"\%") + " "
    paths = []
    for name, layout in _LAYOUTS.items():
        if layout.source not in tables:
            continue
        table = tables[layout.source]
        try:
            rows = layout.select(table) if len(table) else table
            head, cells = layout.cells(rows) if len(rows) else ([], [])
        except KeyError as error:
            raise KeepsetError(f"table {layout.source}: missing column {error}") from None
        text = latex(head, cells, layout.caption.format(level=level), f"tab:{name}")
        paths += [_write(rows.to_csv(index=False, lineterminator="\n"), folder, f"{name}.csv")]
        paths += [_write(text, folder, f"{name}.tex")]
    return paths


def _write(text: str, folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def number(value: float) -> str:
    """Four significant digits, three decimals at most, as LaTeX; `--` for what is not known."""
    if math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    power = int(f"{value:.3e}".partition("e")[2])
    if power >= 5:
        return rf"${value / 10**power:.2f} \times 10^{{{power}}}$"
    digits = 3 - min(max(power, 0), 3)
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "$-$")


def p_value(value: float) -> str:
    """Three decimals, or that it is smaller."""
    if math.isnan(value):
        return _NOTHING
    return "$<$ 0.001" if value < 0.001 else f"{value:.3f}"


def latex(head: Sequence[str], cells: Cells, caption: str, label: str) -> str:
    """A longtable in the manner of booktabs.

    Args:
        head: Column names, plain text.
        cells: Rows of LaTeX.
        caption: LaTeX.
        label: For cross references.

    Returns:
        The source of the table.
    """
    columns = "l" * max(1, len(head))
    title = " & ".join(escape(name) for name in head) + r" \\"
    body = [" & ".join(row) + r" \\" for row in cells] or [r"no measurements \\"]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,longtable}",
            rf"\begin{{longtable}}{{{columns}}}",
            rf"\caption{{{caption}}} \label{{{label}}} \\",
            r"\toprule",
            *([title, r"\midrule"] if head else []),
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *body,
            r"\end{longtable}",
            "",
        ]
    )


def _with_interval(value: float, low: float, high: float, mark: str = "") -> str:
    if math.isnan(low):
        return number(value) + mark
    interval = rf"{{\scriptsize [{number(low)}, {number(high)}]}}"
    return rf"\shortstack{{{number(value)}{mark}\\{interval}}}"


def _ratio(row: Any) -> str:
    return _with_interval(row.ratio, row.ci_low, row.ci_high, "$^{=}$" if row.equivalent else "")


def _text(name: str) -> str:
    return _NOTHING if name == "none" else escape(name)


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:g}%"


def _records(table: pd.DataFrame) -> Iterator[Any]:
    yield from table.itertuples()


def _in_order(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _wide(
    table: pd.DataFrame, rows: Sequence[str], column: str, names: Sequence[Any]
) -> tuple[list[list[Any]], Cells]:
    """Ratios as a cross table: the values of `rows`, and a cell for each of `names`."""
    heads: list[list[Any]] = []
    cells: Cells = []
    for values, group in table.groupby(list(rows), sort=False):
        found = {getattr(row, column): _ratio(row) for row in _records(group)}
        heads.append(list(values))
        cells.append([found.get(name, _NOTHING) for name in names])
    return heads, cells


def _perplexity(table: pd.DataFrame) -> tuple[list[str], Cells]:
    sparsities = sorted(table["sparsity"].unique())
    keys = ["model", "corpus", "ppl_dense", "site", "access", "score", "method"]
    heads, cells = _wide(table, keys, "sparsity", sparsities)
    rows = [
        [_text(model), _text(corpus), number(dense), *map(_text, rest), *own]
        for (model, corpus, dense, *rest), own in zip(heads, cells, strict=True)
    ]
    head = ["model", "corpus", "dense", *keys[3:]]
    return [*head, *(_percent(s) for s in sparsities)], rows


def _dial(table: pd.DataFrame) -> tuple[list[str], Cells]:
    choices = _in_order(sorted(table["choice"], reverse=True))  # oracle before causal
    keys = ["model", "corpus", "site", "access", "score", "sparsity", "window"]
    order = table["window"].map(lambda w: np.inf if w == "sequence" else float(w))
    dial = table.groupby(keys[:-1], sort=False).ngroup()
    table = table.assign(dial=dial, order=order).sort_values(["dial", "order"], kind="stable")
    heads, cells = _wide(table, keys, "choice", choices)
    rows = [
        [*map(_text, (*names, _percent(sparsity), window)), *own]
        for (*names, sparsity, window), own in zip(heads, cells, strict=True)
    ]
    return [*keys[:-1], "W", *choices], rows


def _on_the_dial(ratios: pd.DataFrame) -> pd.DataFrame:
    keys = ["model", "corpus", "site", "access", "score", "sparsity"]
    windowed = ratios.loc[ratios["method"] == "windowed", keys].drop_duplicates()
    return ratios[ratios["method"].isin(["dynamic", "windowed"])].merge(windowed, on=keys)


def _capability(table: pd.DataFrame) -> tuple[list[str], Cells]:
    head = ["model", "task", "n", "site", "access", "method", "score", "sparsity", "W", "choice"]
    rows = []
    for row in _records(table):
        accuracy = _with_interval(row.accuracy, row.ci_low, row.ci_high)
        same = row.equivalent is not pd.NA and bool(row.equivalent)
        mark = "$^{=}$" if same else ""
        difference = _with_interval(row.difference, row.diff_low, row.diff_high, mark)
        score = f"{row.score} ({row.seed})" if is_seeded(row.score) else row.score
        names = (row.model, row.task, str(row.n), row.site, row.access, row.method, score)
        own = [*names, _percent(row.sparsity), row.window, row.choice]
        rows.append([*map(_text, own), accuracy, difference, p_value(row.p_holm)])
    return [*head, "accuracy", "difference", "p"], rows


def _trend(table: pd.DataFrame) -> tuple[list[str], Cells]:
    names = ["model", "corpus", "site", "access", "score"]
    return [*names, "sparsity", "choice", "blocks", "L", "p", "monotone"], [
        [
            *(_text(getattr(row, name)) for name in names),
            *map(_text, (_percent(row.sparsity), row.choice)),
            str(row.n_blocks),
            number(row.statistic),
            p_value(row.p_holm),
            "yes" if row.monotone else "no",
        ]
        for row in _records(table)
    ]


def _correlations(table: pd.DataFrame) -> tuple[list[str], Cells]:
    impacts = _in_order(table["impact"])
    rows = []
    keys = ["model", "corpus", "site", "size"]
    names: Any
    for names, group in table.groupby(keys, sort=False):
        found = {
            row.impact: _with_interval(row.spearman, row.ci_low, row.ci_high)
            for row in _records(group)
        }
        rows.append([*map(_text, names), *(found.get(i, _NOTHING) for i in impacts)])
    return [*keys, *impacts], rows


def _recall(table: pd.DataFrame) -> tuple[list[str], Cells]:
    facts = sorted(table["n_facts"].unique())
    keys = ["model", "task", "site", "access", "method", "score", "sparsity", "window", "choice"]
    cells = []
    values: Any
    for values, group in table.groupby([*keys, "distance"], sort=False):
        found = {
            row.n_facts: _with_interval(row.accuracy, row.ci_low, row.ci_high)
            for row in _records(group)
        }
        *names, distance = (_percent(v) if isinstance(v, float) else v for v in values)
        place = "all" if distance == -1 else str(distance)
        cells.append([*map(_text, names), place, *(found.get(n, _NOTHING) for n in facts)])
    return [*keys[:7], "W", "choice", "distance", *(f"{n} facts" for n in facts)], cells


def _state_pairs(table: pd.DataFrame) -> tuple[list[str], Cells]:
    head = ["model", "text", "measure", "sparsity", "score", "rival"]
    rows = []
    for row in _records(table):
        rival = f"{row.rival} ({row.seed})" if is_seeded(row.rival) and row.seed >= 0 else row.rival
        names = (row.model, row.text, row.measure, _percent(row.sparsity), row.score, rival)
        effect = _with_interval(row.effect, row.ci_low, row.ci_high)
        values = (number(row.value), number(row.value_rival), effect, p_value(row.p_holm))
        rows.append([*map(_text, names), *values, row.verdict])
    return [*head, "value", "rival's", "effect", "p", "verdict"], rows


def _side_by_side(table: pd.DataFrame) -> tuple[list[str], Cells]:
    table = table.assign(place=table["persistence"] + " " + table["access"])
    places = {
        ("static both", "static none"): "static",
        ("dynamic read", "dynamic none"): "dynamic",
        ("dynamic write",): "dynamic, forgotten",
    }
    names = {place: name for own, name in places.items() for place in own}
    table = table.assign(place=table["place"].map(names))
    keys = ["model", "corpus", "sparsity", "part", "by"]
    heads, cells = _wide(table.sort_values("sparsity", kind="stable"), keys, "place",
                         list(places.values()))  # fmt: skip
    rows = [
        [*map(_text, (model, corpus, _percent(sparsity), *rest)), *own]
        for (model, corpus, sparsity, *rest), own in zip(heads, cells, strict=True)
    ]
    return [*keys, *places.values()], rows


def _lengths(table: pd.DataFrame) -> tuple[list[str], Cells]:
    lengths = sorted(table["length"].unique())
    keys = ["model", "corpus", "score", "sparsity"]
    heads, cells = _wide(table.assign(equivalent=False), keys, "length", lengths)
    rows = [
        [*map(_text, (*names, _percent(sparsity))), *own]
        for (*names, sparsity), own in zip(heads, cells, strict=True)
    ]
    return [*keys, *(f"{n} tokens" for n in lengths)], rows


_SAME = "$^{{=}}$: equivalent to dense within the study's margin."

_LAYOUTS = {
    "perplexity": _Layout(
        "ratios",
        lambda t: t[t["method"].isin(["static", "dynamic"])],
        _perplexity,
        "Token perplexity relative to dense, by sparsity, with {level}intervals of a paired"
        " bootstrap (BCa) over blocks. The column ``dense'' is the dense perplexity. " + _SAME,
    ),
    "dial": _Layout(
        "ratios",
        _on_the_dial,
        _dial,
        "Token perplexity relative to dense when one keep set is held for $W$ tokens, with"
        " {level}intervals of a paired bootstrap (BCa) over blocks. " + _SAME,
    ),
    "capability": _Layout(
        "capability",
        lambda t: t,
        _capability,
        "Accuracy in each task with Wilson's {level}intervals; its difference from dense on the"
        " same items with Tango's; $p$: exact McNemar, Holm over model and task. " + _SAME,
    ),
    "trend": _Layout(
        "trend",
        lambda t: t,
        _trend,
        "Page's test that perplexity rises with the window, blocks as subjects; $p$: Holm over"
        " model and corpus; monotone: perplexity over all blocks rises at every step.",
    ),
    "correlations": _Layout(
        "correlation",
        lambda t: t[t["layer"] == -1],
        _correlations,
        "Spearman's correlation of size with each notion of impact: mean over layers, with"
        " {level}intervals of a two-stage bootstrap over layers and units. Size of a neuron"
        " (ffn): mean $|h|$; of a state channel: magnitude, the product of its weights' norms,"
        " or controllability, the root mean square of the state.",
    ),
    "recall": _Layout(
        "recall",
        lambda t: t,
        _recall,
        "Recall: share of answers that are right, by the number of facts stated and the distance"
        " in words between facts and question, with Wilson's {level}intervals. The random score"
        " is the mean over its seeds.",
    ),
    "state_pairs": _Layout(
        "state_pairs",
        lambda t: t,
        _state_pairs,
        "Scores of state channels against each other, static, on the same blocks or items, with"
        " {level}intervals. Perplexity: ratio to the rival's (BCa bootstrap over blocks), paired"
        " $t$-test. Accuracy: difference (Tango), exact McNemar test, a row per seed of a random"
        " rival. $p$: Holm over model and text.",
    ),
    "side_by_side": _Layout(
        "side_by_side",
        lambda t: t,
        _side_by_side,
        "Memory (recurrent state) and scratch (FFN neurons) of one model: token perplexity"
        " relative to dense, with {level}intervals of a paired bootstrap (BCa) over blocks. Size"
        " and impact of a state: $\\Vert W_B\\Vert\\,\\Vert W_C\\Vert$ and GHOST when static, $H^2$"
        " and $H^2 C^2$ when dynamic; dynamic channels are not read, or (last column) forgotten. "
        + _SAME,
    ),
    "lengths": _Layout(
        "lengths",
        lambda t: t,
        _lengths,
        "Token perplexity relative to dense of static states, by the length of the passages"
        " evaluated; channels are chosen on passages of one block. {level}intervals of a paired"
        " bootstrap (BCa) over passages.",
    ),
}
