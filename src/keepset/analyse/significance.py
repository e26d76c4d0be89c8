"""Tables of tests: what each setting costs against dense, with intervals and corrections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from keepset.analyse import accuracies, perplexities, stats
from keepset.analyse.stats import Sampling
from keepset.errors import KeepsetError
from keepset.settings import Statistics

TEXT_CELL = ["study", "model", "origin", "corpus", "site"]
TASK_CELL = ["study", "model", "origin", "task", "site"]
SETTING = ["method", "score", "sparsity", "window", "choice", "access"]
DIAL = ["score", "sparsity", "choice", "access"]

RATIO_COLUMNS = [
    *TEXT_CELL, *SETTING, "seeds", "n_blocks", "n_tokens", "ppl_dense", "ppl", "word_ppl_dense",
    "word_ppl", "bits_per_byte_dense", "bits_per_byte", "ratio", "ci_low", "ci_high", "ratio_min",
    "ratio_max", "p", "p_holm", "p_equivalence", "equivalent",
]  # fmt: skip
CAPABILITY_COLUMNS = [
    *TASK_CELL, *SETTING, "seed", "n", "accuracy", "ci_low", "ci_high", "mean_logprob",
    "accuracy_dense", "difference", "diff_low", "diff_high", "only_dense", "only_here", "p",
    "p_holm", "p_equivalence", "equivalent", "detectable",
]  # fmt: skip
TREND_COLUMNS = [
    *TEXT_CELL, *DIAL, "windows", "n_blocks", "statistic", "p", "p_holm", "monotone",
]  # fmt: skip

Row = dict[str, Any]


def test_significance(
    perplexity: pd.DataFrame, capability: pd.DataFrame, statistics: Statistics, seed: int
) -> dict[str, pd.DataFrame]:
    """Test every setting against dense, and every dial for its order.

    Args:
        perplexity: The `perplexity` table, one row per setting and block.
        capability: The `capability` table, one row per setting and item; may be empty.
        statistics: Levels, margins and resamples.
        seed: Seed of the bootstrap.

    Returns:
        ratios: perplexity of each setting against dense on the same blocks: BCa interval, paired
            t-test (Holm over model x corpus), equivalence within `perplexity_margin`. Seeds of the
            random score are pooled by the mean nll of each block; ratio_min and ratio_max are
            their spread.
        capability: accuracy with Wilson's interval; against dense on the same items: difference
            with Tango's interval, exact McNemar (Holm over model x task), equivalence within
            `accuracy_margin`, the discordant items, and the difference that n items with as many
            discordant ones would detect with power 0.8.
        trend: Page's test that perplexity rises with the window, blocks as subjects (Holm over
            model x corpus); monotone says whether perplexity over all blocks rises at every step.

    Raises:
        KeepsetError: a column or the dense rows are missing, blocks or items of a setting are not
            those of dense, or a value is not finite.
    """
    perplexity, capability = with_access(perplexity), with_access(capability)
    _need(perplexity, "perplexity", [*TEXT_CELL, *SETTING, "seed", "block", "nll", "n_tokens"])
    _need(perplexity, "perplexity", ["n_words", "n_bytes"])
    _need(capability, "capability", [*TASK_CELL, *SETTING, "seed", "item", "correct", "logprob"])
    return {
        "ratios": adjust(ratio_rows(perplexity, statistics, seed), RATIO_COLUMNS, "corpus"),
        "capability": adjust(_capability(capability, statistics), CAPABILITY_COLUMNS, "task"),
        "trend": adjust(_trends(perplexity), TREND_COLUMNS, "corpus"),
    }


def _need(table: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    if len(table) and (missing := [column for column in columns if column not in table]):
        raise KeepsetError(f"{name} table: missing column {', '.join(missing)}; make it again")


def adjust(rows: Iterator[Row], columns: list[str], family: str) -> pd.DataFrame:
    """Rows to a table, with `p_holm` over each model x `family`."""
    table = pd.DataFrame(list(rows)).reindex(columns=columns)
    # Dense rows have no test: nullable types keep their columns free of objects.
    nullable = {"equivalent": "boolean", "only_dense": "Int64", "only_here": "Int64"}
    table = table.astype({c: kind for c, kind in nullable.items() if c in columns})
    if len(table):
        p = table["p"].astype(float)
        table["p_holm"] = p.groupby([table[c] for c in ("study", "model", family)]).transform(
            stats.holm
        )
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
    return dense


def ratio_rows(perplexity: pd.DataFrame, statistics: Statistics, seed: int) -> Iterator[Row]:
    """The rows of `ratios`, without their adjusted p; words and bytes may be unknown."""
    sampling = Sampling(statistics.confidence, statistics.resamples, seed)
    for cell, dense, table in cells(perplexity, TEXT_CELL, "block"):
        for setting, group in groups(table, SETTING):
            nll = by_seed(group, dense, name_of(cell, setting))
            yield {**cell, **setting, **_ratio(nll, dense, statistics, sampling)}


def by_seed(group: pd.DataFrame, dense: pd.DataFrame, name: str) -> pd.DataFrame:
    """Summed nats of one setting: blocks as rows, seeds as columns, on dense's blocks.

    Raises:
        KeepsetError: the blocks are not dense's, or a value is not finite.
    """
    if group.duplicated(["seed", "block"]).any():
        raise KeepsetError(f"{name}: a block appears twice; evaluate it again")
    nll = group.pivot(index="block", columns="seed", values="nll").sort_index()
    tokens = group.groupby("block")["n_tokens"].agg(["min", "max"])
    same = nll.index.equals(dense.index) and not nll.isna().any(axis=None)
    if not same or not tokens.eq(dense["n_tokens"], axis=0).all(axis=None):
        raise KeepsetError(f"{name}: its blocks are not those of dense; evaluate both again")
    if not np.isfinite(nll.to_numpy()).all():
        raise KeepsetError(f"{name}: nll is not finite; run the model in float32")
    return nll


def _ratio(
    nll: pd.DataFrame, dense: pd.DataFrame, statistics: Statistics, sampling: Sampling
) -> Row:
    pooled, tokens = nll.mean(axis=1), dense["n_tokens"]
    paired = (pooled, dense["nll"], tokens)
    ratio = perplexities.paired_ratio(*paired, sampling)
    p_equivalence = perplexities.tost_ratio(*paired, statistics.perplexity_margin)
    per_seed = np.exp((nll.sum() - dense["nll"].sum()) / tokens.sum())
    return {
        "seeds": nll.shape[1],
        "n_blocks": len(dense),
        "n_tokens": int(tokens.sum()),
        **{f"{name}_dense": value for name, value in _levels(dense["nll"], dense).items()},
        **_levels(pooled, dense),
        "ratio": ratio.ratio,
        "ci_low": ratio.low,
        "ci_high": ratio.high,
        "ratio_min": per_seed.min(),
        "ratio_max": per_seed.max(),
        "p": ratio.p,
        "p_equivalence": p_equivalence,
        "equivalent": p_equivalence < 1 - statistics.confidence,
    }


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


def _trends(perplexity: pd.DataFrame) -> Iterator[Row]:
    for cell, table in groups(perplexity, TEXT_CELL):
        dial = table[table["method"].isin(["dynamic", "windowed"])]
        for setting, group in groups(dial, DIAL):
            if not (group["method"] == "windowed").any():
                continue
            per_token = (group["nll"] / group["n_tokens"]).rename("loss")
            seeds_pooled = per_token.groupby([group["block"], group["window"]]).mean().unstack()
            loss = seeds_pooled[sorted(seeds_pooled, key=_window_order)]
            if loss.isna().any(axis=None):
                raise KeepsetError(
                    f"{name_of(cell, setting)}: windows have different blocks; evaluate them again"
                )
            trend = stats.page_trend(loss)
            total = group.groupby("window")["nll"].sum()[loss.columns]
            yield {
                **cell,
                **setting,
                "windows": ",".join(loss.columns),
                "n_blocks": len(loss),
                "statistic": trend.statistic,
                "p": trend.p,
                "monotone": bool((np.diff(total) > 0).all()),
            }


def _window_order(window: Any) -> float:
    return np.inf if window == "sequence" else float(window)
