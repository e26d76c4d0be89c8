"""Perplexity and capability under keep rules, as tidy tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from keepset.measure.runner import Runner
from keepset.rules.rule import Rule
from keepset.run.progress import Progress
from keepset.text import Encoded, Passages

_TYPES = {
    **dict.fromkeys(["seed", "block", "n_tokens", "n_words", "n_bytes", "item"], "int64"),
    **dict.fromkeys(["sparsity", "nll", "logprob"], "float64"),
    "correct": "bool",
}

DENSE_COLUMNS: dict[str, Any] = {
    "method": "dense",
    "score": "none",
    "seed": 0,
    "sparsity": 0.0,
    "window": "none",
    "choice": "none",
    "access": "none",
}
_PERPLEXITY = ["site", *DENSE_COLUMNS, "block", "nll", "n_tokens", "n_words", "n_bytes"]
_CAPABILITY = ["site", *DENSE_COLUMNS, "item", "correct", "logprob"]


def perplexity_table(
    runner: Runner,
    blocks: Passages,
    rules: Sequence[Rule | None],
    identity: Mapping[str, Any],
    label: str,
) -> pd.DataFrame:
    """Run every rule on the evaluation blocks: one row per rule and block.

    Args:
        runner: The model.
        blocks: Its blocks.
        rules: The rules; None is dense.
        identity: Leading columns (study, model, origin, corpus).
        label: What the progress line says.

    Returns:
        The `perplexity` table of docs/METHODS.md.
    """
    progress = Progress(label, len(rules) * blocks.evaluation.numel())
    tables = []
    for rule in rules:
        nll = runner.block_nll(blocks.evaluation, rule, blocks.lead_in[:1], progress)
        tables.append(
            pd.DataFrame(
                {
                    **identity,
                    **_setting(rule),
                    "block": range(len(nll)),
                    "nll": nll.numpy(),
                    "n_tokens": blocks.n_tokens.numpy(),
                    "n_words": blocks.n_words.numpy(),
                    "n_bytes": blocks.n_bytes.numpy(),
                }
            )
        )
    progress.close()
    return _joined(tables, [*identity, *_PERPLEXITY])


def capability_table(
    runner: Runner,
    items: Sequence[Encoded],
    rules: Sequence[Rule | None],
    identity: Mapping[str, Any],
    label: str,
) -> pd.DataFrame:
    """Run every rule on the items: one row per rule and item (the `capability` table)."""
    progress = Progress(label, len(rules) * sum(len(item.ids) for item in items))
    tables = []
    for rule in rules:
        result = runner.last_words(items, rule, progress)
        setting = {**identity, **_setting(rule), "item": range(len(items))}
        tables.append(pd.concat([pd.DataFrame(setting), result], axis=1))
    progress.close()
    return _joined(tables, [*identity, *_CAPABILITY])


def _setting(rule: Rule | None) -> dict[str, Any]:
    if rule is None:
        return {"site": "none", **DENSE_COLUMNS}
    return {"site": rule.site, **rule.columns}


def _joined(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """One table, with its columns and their types also where there is no row."""
    if tables:
        return pd.concat(tables, ignore_index=True)
    return pd.DataFrame({name: pd.Series(dtype=_TYPES.get(name, "str")) for name in columns})
