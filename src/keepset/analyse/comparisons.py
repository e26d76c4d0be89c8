"""Tables that compare settings: score against score, memory against scratch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from keepset.analyse import accuracies, effects, perplexities
from keepset.analyse.significance import (
    SETTING,
    TASK_CELL,
    TEXT_CELL,
    Row,
    adjust,
    by_seed,
    cells,
    groups,
    name_of,
    ratio_interval,
    ratio_rows,
    with_access,
)
from keepset.errors import KeepsetError
from keepset.settings import Statistics

RIVALS = ("magnitude", "taylor", "random")
"""What GHOST is compared with."""

POOLED = -1
"""The distance of rows over all distances, as layer -1 is for correlations."""

RECALL_COLUMNS = [
    *TASK_CELL, *SETTING, "seeds", "n_facts", "distance", "n", "accuracy", "ci_low", "ci_high",
    "accuracy_min", "accuracy_max", "chance",
]  # fmt: skip
PAIR_COLUMNS = [
    "study", "model", "origin", "measure", "text", "score", "rival", "seed", "sparsity", "n",
    "value", "value_rival", "effect", "ci_low", "ci_high", "p", "p_holm", "verdict",
]  # fmt: skip
LENGTH_COLUMNS = [
    *TEXT_CELL, *SETTING, "length", "seeds", "n_blocks", "n_documents", "n_tokens", "ppl_dense",
    "ppl", "ratio", "ci_low", "ci_high", "ratio_min", "ratio_max", "p", "p_holm",
]  # fmt: skip
CELL_COLUMNS = [
    *TEXT_CELL, "part", "persistence", "by", *SETTING, "ppl_dense", "ppl", "ratio", "ci_low",
    "ci_high", "p_holm", "equivalent",
]  # fmt: skip


def recall_table(capability: pd.DataFrame, statistics: Statistics, chance: float) -> pd.DataFrame:
    """Accuracy in recall by number of facts and distance, under every setting.

    Args:
        capability: The `capability` table; tasks without numbers of facts are ignored.
        statistics: The level of the intervals.
        chance: Accuracy without knowing the facts.

    Returns:
        One row per setting, number of facts and distance in words (-1: all distances), with
        Wilson's interval. Seeds of the random score are pooled by their mean accuracy, which has
        the interval of as many items as one seed answers; accuracy_min and accuracy_max are
        their spread.

    Raises:
        KeepsetError: dense rows are missing.
    """
    if not len(capability) or "n_facts" not in capability:
        return pd.DataFrame(columns=RECALL_COLUMNS)
    asked = with_access(capability[capability["n_facts"].notna()])
    rows = []
    for cell, dense, table in cells(asked, TASK_CELL, "item"):
        everything = pd.concat([dense.reset_index(), table])
        for setting, group in groups(everything, SETTING):
            for accuracy in _by_facts(group, statistics):
                rows.append({**cell, **setting, **accuracy, "chance": chance})
    return pd.DataFrame(rows, columns=RECALL_COLUMNS)


def _by_facts(items: pd.DataFrame, statistics: Statistics) -> Iterator[Row]:
    """Accuracy of one setting at each number of facts: over all distances, then at each."""
    pooled_too = pd.concat([items.assign(distance=POOLED), items])
    keys = ["n_facts", "distance"]
    seeds = pooled_too.groupby([*keys, "seed"])["correct"].agg(["mean", "size"])
    by_facts = seeds.groupby(keys).agg(
        seeds=("mean", "size"),
        n=("size", "first"),
        accuracy=("mean", "mean"),
        accuracy_min=("mean", "min"),
        accuracy_max=("mean", "max"),
    )
    for row in by_facts.reset_index().to_dict("records"):
        low, high = accuracies.wilson(row["accuracy"] * row["n"], row["n"], statistics.confidence)
        yield {**{str(key): value for key, value in row.items()}, "ci_low": low, "ci_high": high}


def state_pairs(
    perplexity: pd.DataFrame,
    capability: pd.DataFrame,
    statistics: Statistics,
    score: str = "ghost",
) -> pd.DataFrame:
    """One static score of states against its rivals at every sparsity, paired.

    Args:
        perplexity: The `perplexity` table.
        capability: The `capability` table; may be empty.
        statistics: The level.
        score: The score that is compared with the others.

    Returns:
        One row per model, text, rival and sparsity. Perplexity: value and value_rival are
        perplexities, effect is their ratio with a t interval over n documents, p the t-test; a
        random rival is the mean over its seeds of each block's nll. Accuracy: effect is the
        difference with Tango's interval, p the exact McNemar test on the same n items, and a random
        rival has a row for each `seed`. p_holm is over one model and text. verdict: better or
        worse than the rival at the study's level, else "not told apart".

    Raises:
        KeepsetError: blocks or items of two settings differ.
    """
    rows = [
        *_perplexity_pairs(with_access(perplexity), statistics, score),
        *_accuracy_pairs(with_access(capability), statistics, score),
    ]
    table = adjust(iter(rows), PAIR_COLUMNS, "text")
    if len(table):
        table["verdict"] = [_verdict(row, 1 - statistics.confidence) for row in table.itertuples()]
    return table


def _verdict(row: Any, alpha: float) -> str:
    if not row.p_holm < alpha:
        return "not told apart"
    good = row.effect < 1 if row.measure == "perplexity" else row.effect > 0
    return "better" if good else "worse"


def _rivals(table: pd.DataFrame, score: str) -> Iterator[tuple[Row, pd.DataFrame, pd.DataFrame]]:
    """At each sparsity the rows of `score` and those of each rival, of static states."""
    static = table[(table["site"] == "state") & (table["method"] == "static")]
    for share, group in static.groupby("sparsity"):
        scored = group[group["score"] == score]
        for rival in RIVALS:
            rivals = group[group["score"] == rival]
            if len(scored) and len(rivals):
                yield {"score": score, "rival": rival, "sparsity": share}, scored, rivals


def _head(cell: Row, measure: str, text: str) -> Row:
    return {**cell, "measure": measure, "text": cell[text]}


def _perplexity_pairs(
    perplexity: pd.DataFrame, statistics: Statistics, score: str
) -> Iterator[Row]:
    for cell, dense, table in cells(perplexity, TEXT_CELL, "block"):
        for pair, *runs in _rivals(table, score):
            nll, nll_rival = (by_seed(run, dense, name_of(cell, pair)) for run in runs)
            a, b, blocks = nll.mean(axis=1), nll_rival.mean(axis=1), dense.loc[nll.index]
            tokens = blocks["n_tokens"]
            effect = effects.log_ratio(a, b, tokens, blocks["document"], statistics.confidence)
            yield {
                **_head(cell, "perplexity", "corpus"),
                **pair,
                "seed": POOLED if nll_rival.shape[1] > 1 else int(nll_rival.columns[0]),
                "n": effect.n,
                "value": perplexities.perplexity(a.sum(), tokens.sum()),
                "value_rival": perplexities.perplexity(b.sum(), tokens.sum()),
                **ratio_interval(effect, "effect"),
                "p": effects.two_sided(effect),
            }


def _accuracy_pairs(capability: pd.DataFrame, statistics: Statistics, score: str) -> Iterator[Row]:
    for cell, _, table in cells(capability, TASK_CELL, "item"):
        for pair, scored, rivals in _rivals(table, score):
            a = scored.set_index("item")["correct"].sort_index()
            for seed, part in rivals.groupby("seed"):
                b = part.set_index("item")["correct"].sort_index()
                if not b.index.equals(a.index):
                    name = name_of(cell, pair)
                    raise KeepsetError(f"{name}: the items of two scores differ; run both again")
                low, high = accuracies.paired_difference(a, b, statistics.confidence)
                yield {
                    **_head(cell, "accuracy", "task"),
                    **pair,
                    "seed": seed,
                    "n": len(a),
                    "value": a.mean(),
                    "value_rival": b.mean(),
                    "effect": a.mean() - b.mean(),
                    "ci_low": low,
                    "ci_high": high,
                    "p": accuracies.mcnemar_exact(a, b).p,
                }


def length_ratios(lengths: pd.DataFrame, statistics: Statistics) -> pd.DataFrame:
    """Perplexity relative to dense by the length of the passages evaluated.

    Args:
        lengths: Joined `length` tables; may be empty.
        statistics: Level and margin.

    Returns:
        Rows as in the `ratios` table, one per setting and length in tokens; each is compared with
        dense at its own length. p_holm is over one model and corpus, all lengths together.
    """
    rows = (
        {**row, **length}
        for length, part in groups(lengths, ["length"])
        for row in ratio_rows(with_access(part), statistics)
    )
    return adjust(rows, LENGTH_COLUMNS, "corpus")


PARTS = {"state": "memory", "ffn": "scratch", "input": "scratch"}
"""What each kind of site is to a model: what it remembers, what it computes again."""

_CELLS = {
    # (site, method): by size, by impact
    ("state", "static"): ("magnitude", "ghost"),
    ("state", "dynamic"): ("magnitude", "impact"),
    ("ffn", "static"): ("magnitude", "impact"),
    ("ffn", "dynamic"): ("magnitude", "impact"),
    ("input", "static"): ("magnitude", "impact"),
    ("input", "dynamic"): ("magnitude", "impact"),
}


def side_by_side(ratios: pd.DataFrame) -> pd.DataFrame:
    """The eight cells (memory | scratch) x (static | dynamic) x (size | impact).

    Args:
        ratios: The `ratios` table of keepset.analyse.significance.

    Returns:
        The rows of models and corpora on which both parts were run, with part, persistence and by.
        The scratch is the neurons of the FFN, and in a model without an FFN the inputs of its
        projections. Rows are at the sparsities that every part and persistence there has, or at
        all where none is shared. A dynamic state has a row for each access: read and write. A
        state's size is ||W_B|| ||W_C|| when static and H^2 when dynamic; its impact is H^2 C^2,
        whose static form is GHOST.
    """
    parts = [
        ratios[
            (ratios["site"] == site) & (ratios["method"] == method) & (ratios["score"] == score)
        ].assign(part=PARTS[site], persistence=method, by=by)
        for (site, method), scores in _CELLS.items()
        for by, score in zip(("size", "impact"), scores, strict=True)
    ]
    rows = pd.concat(parts, ignore_index=True)
    texts = [_one_scratch(text) for _, text in rows.groupby(["model", "corpus"], sort=False)]
    both = [_at_shared_sparsities(text) for text in texts if text["part"].nunique() == 2]
    table = pd.concat(both) if both else rows.iloc[:0]
    return table.reindex(columns=CELL_COLUMNS).reset_index(drop=True)


def _one_scratch(rows: pd.DataFrame) -> pd.DataFrame:
    """Without inputs of projections where there are neurons."""
    return rows[rows["site"] != "input"] if (rows["site"] == "ffn").any() else rows


def _at_shared_sparsities(rows: pd.DataFrame) -> pd.DataFrame:
    every = [set(part["sparsity"]) for _, part in rows.groupby(["part", "persistence"])]
    shared = set.intersection(*every)
    return rows[rows["sparsity"].isin(shared)] if shared else rows
