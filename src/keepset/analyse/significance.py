"""Tables of tests: what each setting costs against dense, with intervals and corrections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from keepset.analyse import accuracies, effects, perplexities, stats
from keepset.analyse.bounds import Bounds, Effect
from keepset.analyse.perplexities import Rounding
from keepset.errors import KeepsetError
from keepset.settings import Statistics

TEXT_CELL = ["study", "model", "origin", "corpus", "site"]
TASK_CELL = ["study", "model", "origin", "task", "site"]
SETTING = ["method", "score", "sparsity", "window", "choice", "access"]
DIAL = ["score", "sparsity", "choice", "access"]

RATIO_COLUMNS = [
    *TEXT_CELL, *SETTING, "seeds", "n_blocks", "n_documents", "n_tokens", "ppl_dense", "ppl",
    "word_ppl_dense", "word_ppl", "bits_per_byte_dense", "bits_per_byte", "ratio", "ci_low",
    "ci_high", "ratio_min", "ratio_max", "rounding", "p", "p_holm", "p_equivalence", "equivalent",
]  # fmt: skip
CAPABILITY_COLUMNS = [
    *TASK_CELL, *SETTING, "seed", "n", "accuracy", "ci_low", "ci_high", "mean_logprob",
    "accuracy_dense", "difference", "diff_low", "diff_high", "only_dense", "only_here", "p",
    "p_holm", "p_equivalence", "equivalent", "detectable",
]  # fmt: skip
TREND_COLUMNS = [
    *TEXT_CELL, *DIAL, "windows", "n_blocks", "n_documents", "slope", "ci_low", "ci_high", "p",
    "p_holm", "p_monotone", "p_monotone_holm", "p_fall", "p_fall_holm", "monotone",
]  # fmt: skip

Row = dict[str, Any]


def test_significance(
    perplexity: pd.DataFrame,
    capability: pd.DataFrame,
    statistics: Statistics,
    rounding: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    """Test every setting against dense, and every dial for its order.

    Args:
        perplexity: The `perplexity` table, one row per setting and block.
        capability: The `capability` table, one row per setting and item; may be empty.
        statistics: Levels and margins.
        rounding: The `rounding` table: runs of dynamic rules that differ in the last bit; may be
            empty.

    Returns:
        ratios: perplexity of each setting against dense on the same blocks: t interval and t-test
            over documents (Holm over model x corpus), equivalence within `perplexity_margin`. Seeds
            of the random score are pooled by the mean nll of each block; ratio_min and ratio_max
            are their spread. rounding is the standard deviation of the log ratio over the runs of
            the rounding table, NaN where there is none; interval and tests include it.
        capability: accuracy with Wilson's interval; against dense on the same items: difference
            with Tango's interval, exact McNemar (Holm over model x task), equivalence within
            `accuracy_margin`, the discordant items, and the difference that n items with as many
            discordant ones would detect with power 0.8.
        trend: slope, in nats per token for each doubling of the window, with a t interval over
            documents; p is one-sided, of "it does not rise" (Holm over model x corpus).
            p_monotone is that of "loss does not rise at every step", p_fall that of "it falls at
            no step"; monotone says which of the two is shown after adjustment: yes, no or open.

    Raises:
        KeepsetError: a column or the dense rows are missing, blocks or items of a setting are not
            those of dense, or a value is not finite.
    """
    perplexity, capability = with_access(perplexity), with_access(capability)
    _need(perplexity, "perplexity", [*TEXT_CELL, *SETTING, "seed", "block", "document", "nll"])
    _need(perplexity, "perplexity", ["n_tokens", "n_words", "n_bytes"])
    _need(capability, "capability", [*TASK_CELL, *SETTING, "seed", "item", "correct", "logprob"])
    draws = find_draws(with_access(rounding))
    ratios = adjust(ratio_rows(perplexity, statistics, draws), RATIO_COLUMNS, "corpus")
    trend = adjust(_trends(perplexity, statistics, draws), TREND_COLUMNS, "corpus")
    alpha = 1 - statistics.confidence
    falls, rises = trend["p_fall_holm"] < alpha, trend["p_monotone_holm"] < alpha
    trend["monotone"] = np.select([falls, rises], ["no", "yes"], "open")
    return {
        "ratios": ratios,
        "capability": adjust(_capability(capability, statistics), CAPABILITY_COLUMNS, "task"),
        "trend": trend,
    }


def _need(table: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    if len(table) and (missing := [column for column in columns if column not in table]):
        raise KeepsetError(f"{name} table: missing column {', '.join(missing)}; make it again")


def _need_finite(values: pd.DataFrame | pd.Series, name: str) -> None:
    if not np.isfinite(values.to_numpy(dtype=np.float64)).all():
        raise KeepsetError(f"{name} is not finite; run the model in float32")


def _need_logprobs(answers: pd.DataFrame, everything: pd.DataFrame, name: str) -> None:
    """All of `answers` are finite; or the task has none at all, as in multiple choice."""
    if everything["logprob"].notna().any():
        _need_finite(answers["logprob"], f"{name}: logprob")


def adjust(rows: Iterator[Row], columns: list[str], family: str) -> pd.DataFrame:
    """Rows to a table; each column `..._holm` is Holm's adjustment over each model x `family`."""
    table = pd.DataFrame(list(rows)).reindex(columns=columns)
    # Dense rows have no test: nullable types keep their columns free of objects.
    nullable = {"equivalent": "boolean", "only_dense": "Int64", "only_here": "Int64"}
    table = table.astype({c: kind for c, kind in nullable.items() if c in columns})
    if len(table):
        families = [table[c] for c in ("study", "model", family)]
        for name in (column.removesuffix("_holm") for column in columns if "_holm" in column):
            p = table[name].astype(float)
            table[f"{name}_holm"] = p.groupby(families).transform(stats.holm)
    return table


def groups(table: pd.DataFrame, keys: list[str]) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Each group as its keys and its rows, in the order of appearance."""
    if not len(table):
        return
    for values, group in table.groupby(keys, sort=False):
        yield dict(zip(keys, values, strict=True)), group


def name_of(*parts: Row) -> str:
    """What a message calls a setting."""
    return " ".join(str(v) for part in parts for v in part.values() if v != "none")


def with_access(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its column `access`: "none" for FFN rules and for older tables."""
    if not len(table):
        return table
    access = table["access"].fillna("none") if "access" in table else "none"
    return table.assign(access=access)


def cells(
    table: pd.DataFrame, keys: list[str], unit: str
) -> Iterator[tuple[Row, pd.DataFrame, pd.DataFrame]]:
    """Each model, text and site: its name, its dense rows by `unit`, its other rows.

    A model runs dense once: dense rows of the same model and text serve every site, whichever site
    they are stored under.

    Raises:
        KeepsetError: there is no dense row, or one appears twice.
    """
    for shared, group in groups(table, [key for key in keys if key != "site"]):
        runs, rest = group[group["method"] == "dense"], group[group["method"] != "dense"]
        for site in (rest if len(rest) else runs)["site"].unique():
            cell = {key: {**shared, "site": site}[key] for key in keys}
            yield cell, _dense(runs, cell, unit), rest[rest["site"] == site]


def _dense(runs: pd.DataFrame, cell: Row, unit: str) -> pd.DataFrame:
    known = runs["site"].unique()
    site = next((s for s in (cell["site"], "none", *known) if s in known), None)
    dense = runs[runs["site"] == site].set_index(unit).sort_index()
    if not len(dense) or not dense.index.is_unique:
        raise KeepsetError(f"{name_of(cell)}: one dense row per {unit} is needed; run it again")
    if unit == "block":
        _need_finite(dense["nll"], f"{name_of(cell)} dense: nll")
    else:
        _need_logprobs(dense, runs, f"{name_of(cell)} dense")
    return dense


Draws = dict[tuple[Any, ...], pd.DataFrame]
"""Model, text and setting -> nats by block (and its tokens) and draw."""


def find_draws(rounding: pd.DataFrame) -> Draws:
    """The runs of the `rounding` table, by what they are runs of; the mean over seeds.

    Raises:
        KeepsetError: a column is missing, or a value is not finite.
    """
    keys = [*TEXT_CELL, *SETTING]
    _need(rounding, "rounding", [*keys, "seed", "block", "draw", "nll", "n_tokens"])
    if len(rounding):
        _need_finite(rounding["nll"], "rounding table: nll")
    return {
        tuple(values.values()): group.pivot_table("nll", ["block", "n_tokens"], "draw")
        for values, group in groups(rounding, keys)
    }


def rounding_of(draws: Draws, setting: Row, blocks: pd.DataFrame, name: str) -> list[Rounding]:
    """What rounding does to a setting on some blocks: nothing where it was not measured.

    Raises:
        KeepsetError: there is one draw only, or a draw lacks a block.
    """
    runs = draws.get(tuple(setting[key] for key in (*TEXT_CELL, *SETTING)))
    if runs is None:
        return []
    if runs.isna().any(axis=None):
        raise KeepsetError(f"{name}: a draw of rounding lacks a block; evaluate it again")
    tokens, total = runs.index.get_level_values("n_tokens"), float(blocks["n_tokens"].sum())
    return [perplexities.rounding(runs.to_numpy().T, tokens, total)]


def ratio_rows(
    perplexity: pd.DataFrame, statistics: Statistics, draws: Draws | None = None
) -> Iterator[Row]:
    """The rows of `ratios`, without their adjusted p; words and bytes may be unknown."""
    for cell, dense, table in cells(perplexity, TEXT_CELL, "block"):
        for setting, group in groups(table, SETTING):
            name = name_of(cell, setting)
            nll = by_seed(group, dense, name)
            blocks = dense.loc[nll.index]
            rounding = rounding_of(draws or {}, {**cell, **setting}, blocks, name)
            yield {**cell, **setting, **_ratio(nll, blocks, rounding, statistics)}


def by_seed(group: pd.DataFrame, dense: pd.DataFrame, name: str) -> pd.DataFrame:
    """Summed nats of one setting: blocks as rows, seeds as columns.

    A setting is run on all of dense's blocks, or on the first of them.

    Raises:
        KeepsetError: the blocks are not dense's, or a value is not finite.
    """
    if group.duplicated(["seed", "block"]).any():
        raise KeepsetError(f"{name}: a block appears twice; evaluate it again")
    nll = group.pivot(index="block", columns="seed", values="nll").sort_index()
    first, columns = dense.iloc[: len(nll)], ["n_tokens", "document"]
    same = nll.index.equals(first.index) and not nll.isna().any(axis=None)
    if same:
        same = np.array_equal(group[columns], first.loc[group["block"], columns])
    if not same:
        raise KeepsetError(f"{name}: its blocks are not those of dense; evaluate both again")
    _need_finite(nll, f"{name}: nll")
    return nll


def _ratio(
    nll: pd.DataFrame, dense: pd.DataFrame, rounding: list[Rounding], statistics: Statistics
) -> Row:
    pooled, tokens = nll.mean(axis=1), dense["n_tokens"]
    effect = effects.log_ratio(
        pooled, dense["nll"], tokens, dense["document"], statistics.confidence, rounding
    )
    margin = float(np.log1p(statistics.perplexity_margin))
    p_equivalence = Bounds(-margin, margin).p_for(effect)
    per_seed = np.exp((nll.sum() - dense["nll"].sum()) / tokens.sum())
    return {
        "seeds": nll.shape[1],
        "n_blocks": len(dense),
        "n_documents": effect.n,
        "n_tokens": int(tokens.sum()),
        **{f"{name}_dense": value for name, value in _levels(dense["nll"], dense).items()},
        **_levels(pooled, dense),
        **ratio_interval(effect),
        "ratio_min": per_seed.min(),
        "ratio_max": per_seed.max(),
        "rounding": effect.floor if rounding else np.nan,
        "p": effects.two_sided(effect),
        "p_equivalence": p_equivalence,
        "equivalent": p_equivalence < 1 - statistics.confidence,
    }


def ratio_interval(effect: Effect, name: str = "ratio") -> Row:
    """A log ratio as columns: the ratio and the ends of its interval."""
    with np.errstate(over="ignore"):
        ratio, low, high = np.exp([effect.estimate, effect.low, effect.high])
    return {name: ratio, "ci_low": low, "ci_high": high}


def _levels(nll: pd.Series, dense: pd.DataFrame) -> dict[str, float]:
    """Perplexity by token and by word, and bits per byte, as far as those are counted."""
    total = nll.sum()
    levels = {"ppl": perplexities.perplexity(total, dense["n_tokens"].sum())}
    if "n_words" in dense:
        levels["word_ppl"] = perplexities.perplexity(total, dense["n_words"].sum())
    if "n_bytes" in dense:
        levels["bits_per_byte"] = float(total / np.log(2) / dense["n_bytes"].sum())
    return levels


def _capability(capability: pd.DataFrame, statistics: Statistics) -> Iterator[Row]:
    for cell, dense, table in cells(capability, TASK_CELL, "item"):
        everything = pd.concat([dense.reset_index(), table])
        for setting, group in groups(everything, [*SETTING, "seed"]):
            answers = group.set_index("item").sort_index()
            if not answers.index.equals(dense.index):
                raise KeepsetError(
                    f"{name_of(cell, setting)}: its items are not those of dense; run both again"
                )
            _need_logprobs(answers, everything, name_of(cell, setting))
            row = {**cell, **setting, **_accuracy(answers, statistics)}
            if setting["method"] != "dense":
                row |= _against_dense(answers["correct"], dense["correct"], statistics)
            yield row


def _accuracy(answers: pd.DataFrame, statistics: Statistics) -> Row:
    right, n = int(answers["correct"].sum()), len(answers)
    low, high = accuracies.wilson(right, n, statistics.confidence)
    return {
        "n": n,
        "accuracy": right / n,
        "ci_low": low,
        "ci_high": high,
        "mean_logprob": answers["logprob"].mean(),
    }


def _against_dense(correct: pd.Series, dense: pd.Series, statistics: Statistics) -> Row:
    low, high = accuracies.paired_difference(correct, dense, statistics.confidence)
    test = accuracies.mcnemar_exact(correct, dense)
    p_equivalence = accuracies.tost_accuracy(correct, dense, statistics.accuracy_margin)
    alpha, n = 1 - statistics.confidence, len(dense)
    discordant = (test.only_a + test.only_b) / n
    return {
        "accuracy_dense": dense.mean(),
        "difference": (test.only_a - test.only_b) / n,
        "diff_low": low,
        "diff_high": high,
        "only_here": test.only_a,
        "only_dense": test.only_b,
        "p": test.p,
        "p_equivalence": p_equivalence,
        "equivalent": p_equivalence < alpha,
        "detectable": accuracies.minimum_detectable_difference(n, discordant, alpha),
    }


def _trends(perplexity: pd.DataFrame, statistics: Statistics, draws: Draws) -> Iterator[Row]:
    for cell, dense, table in cells(perplexity, TEXT_CELL, "block"):
        dial = table[table["method"].isin(["dynamic", "windowed"])]
        for setting, group in groups(dial, DIAL):
            if not (group["method"] == "windowed").any():
                continue
            runs = {str(rule["window"]): (rule, run) for rule, run in groups(group, SETTING)}
            windows = sorted(runs, key=_window_order)
            if len(windows) > 1:
                dial_runs = [runs[window] for window in windows]
                yield {**cell, **setting, **_trend(cell, dial_runs, dense, statistics, draws)}


def _trend(
    cell: Row,
    runs: list[tuple[Row, pd.DataFrame]],
    dense: pd.DataFrame,
    statistics: Statistics,
    draws: Draws,
) -> Row:
    """The slope of one dial, and its steps; `runs` are in the order of their windows."""
    nll = [by_seed(run, dense, name_of(cell, rule)).mean(axis=1) for rule, run in runs]
    # Dynamic rules may have been run on more blocks than windows: those of all are compared.
    blocks = dense.iloc[: min(map(len, nll))]
    table = np.stack([column.loc[blocks.index] for column in nll], axis=1)
    tokens, document, level = blocks["n_tokens"], blocks["document"], statistics.confidence
    windows = [str(rule["window"]) for rule, _ in runs]
    # A whole block is as long as the tokens that it predicts.
    lengths = [min(_window_order(window), float(tokens.max())) for window in windows]
    slope = effects.slope(table, np.log2(lengths), tokens, document, level)
    roundings = [
        rounding_of(draws, {**cell, **rule}, blocks, name_of(cell, rule)) for rule, _ in runs
    ]
    steps = [
        effects.log_ratio(table[:, at + 1], table[:, at], tokens, document, level, rounding)
        for at, rounding in enumerate(map(list.__add__, roundings, roundings[1:]))
    ]
    rising = effects.rising(steps, slope)
    return {
        "windows": ",".join(windows),
        "n_blocks": len(blocks),
        "n_documents": slope.n,
        "slope": slope.estimate,
        "ci_low": slope.low,
        "ci_high": slope.high,
        "p": slope.greater(0.0),
        "p_monotone": rising.greater(0.0),
        "p_fall": rising.less(0.0),
    }


def _window_order(window: Any) -> float:
    return np.inf if window == "sequence" else float(window)
