"""Perplexity and capability under keep rules, as tidy tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from keepset.errors import ModelError
from keepset.measure.runner import Runner
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.rules.scores import site_seed
from keepset.run.progress import Progress
from keepset.text import Encoded, Passages

logger = logging.getLogger("keepset")

IsDone = Callable[[NDArray[np.bool_]], bool]
"""Whether a model does a task at all: of whether each of its dense answers is correct, (n,)."""

_TYPES = {
    **dict.fromkeys(["seed", "block", "document", "draw", "item"], "int64"),
    **dict.fromkeys(["n_tokens", "n_words", "n_bytes"], "int64"),
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
RECIPE_COLUMNS: dict[str, Any] = {
    "site": "all",
    **DENSE_COLUMNS,
    **{"method": "dynamic", "window": "1", "choice": "oracle"},
}
"""Of a recipe; its score is its name, and its sparsity the level that it was made for."""
_COUNTS = ["n_tokens", "n_words", "n_bytes"]
_PERPLEXITY = ["site", *DENSE_COLUMNS, "block", "document", "nll", *_COUNTS]
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
        blocks: Its blocks. Dense and dynamic rules run on all of them, the others on the first
            `n_core`.
        rules: The rules; None is dense.
        identity: Leading columns (study, model, origin, corpus).
        label: What the progress line says.

    Returns:
        The `perplexity` table of docs/METHODS.md.

    Raises:
        ModelError: the predicted tokens of the blocks were counted with a BOS token that the model
            does not get, or without one that it gets.
    """
    sizes = [_n_blocks(blocks, rule) for rule in rules]
    parts = _perplexities(runner, blocks, rules, sizes, identity, label)
    return _joined(parts, [*identity, *_PERPLEXITY])


def rounding_table(
    runner: Runner,
    blocks: Passages,
    rules: Sequence[Rule],
    identity: Mapping[str, Any],
    label: str,
    draws: int,
    seed: int,
    tokens: int | None = None,
) -> pd.DataFrame:
    """Run dynamic rules again and again, each time with other noise in the last bit of every h.

    Which units are the largest depends on the last bits, and other kernels round these otherwise.
    Blocks are run by themselves, so what rounding does to some of them tells what it does to more.

    Args:
        runner, blocks, rules, identity, label: As in `perplexity_table`; all rules are dynamic.
        draws: How often.
        seed: Decides the noise, together with the number of the draw.
        tokens: The first blocks that hold as many are run, `n_core` at most, or if left out.

    Returns:
        The columns of `perplexity_table`, and `draw`, from 1.
    """
    size = blocks.n_core
    if tokens is not None:
        size = min(size, -(-tokens // blocks.evaluation.shape[1]))
    tables = []
    for draw in range(1, draws + 1):
        noise = site_seed(seed, f"rounding.{draw}")
        said = f"{label} rounding {draw}"
        sizes = [size] * len(rules)
        parts = _perplexities(runner, blocks, rules, sizes, identity, said, noise)
        tables += [part.assign(draw=draw) for part in parts]
    return _joined(tables, [*identity, *_PERPLEXITY, "draw"])


def _perplexities(
    runner: Runner,
    blocks: Passages,
    rules: Sequence[Rule | None],
    sizes: Sequence[int],
    identity: Mapping[str, Any],
    label: str,
    noise: int | None = None,
) -> list[pd.DataFrame]:
    """A table for each rule, of as many of the first blocks as `sizes` says."""
    if int(blocks.n_tokens.sum()) != runner.n_predicted(blocks.evaluation):
        raise ModelError(
            f"{label}: the blocks' predicted tokens were not counted for a model with"
            f" {'a' if runner.bos is not None else 'no'} BOS token; make the blocks again"
        )
    progress = Progress(label, sum(sizes) * blocks.evaluation.shape[1])
    tables = []
    for place, (rule, size) in enumerate(zip(rules, sizes, strict=True)):
        ids, lead_in = blocks.evaluation[:size], blocks.lead_in[:size]
        coming = rules[place + 1 :]
        nll = runner.block_nll(ids, rule, lead_in, progress, noise=noise, coming=coming)
        tables.append(_of_blocks({**identity, **_setting(rule)}, nll, blocks))
    progress.close()
    return tables


def recipe_table(
    runner: Runner,
    blocks: Passages,
    recipes: Sequence[tuple[Mapping[str, Any], Recipe]],
    identity: Mapping[str, Any],
    label: str,
) -> pd.DataFrame:
    """Run recipes on the first `n_core` evaluation blocks: one row per recipe and block.

    Args:
        runner, blocks, identity, label: As in `perplexity_table`.
        recipes: Recipes, each with the columns that name it beside `site`, which is `all`.
    """
    ids = blocks.evaluation[: blocks.n_core]
    progress = Progress(label, len(recipes) * ids.numel())
    parts = [
        _of_blocks(
            {**identity, **RECIPE_COLUMNS, **columns},
            runner.block_nll(ids, recipe, None, progress),
            blocks,
        )
        for columns, recipe in recipes
    ]
    progress.close()
    return _joined(parts, [*identity, *_PERPLEXITY])


def _of_blocks(head: Mapping[str, Any], nll: Tensor, blocks: Passages) -> pd.DataFrame:
    """The losses of the first blocks, with what is known of these; `head` are leading columns."""
    size = len(nll)
    return pd.DataFrame(
        {
            **head,
            "block": range(size),
            "document": blocks.document[:size].numpy(),
            "nll": nll.numpy(),
            **{name: getattr(blocks, name)[:size].numpy() for name in _COUNTS},
        }
    )


def _n_blocks(blocks: Passages, rule: Rule | None) -> int:
    """Claims of sameness, which need the most text, are about dynamic rules."""
    everywhere = rule is None or rule.method == "dynamic"
    return len(blocks.evaluation) if everywhere else blocks.n_core


def capability_table(
    runner: Runner,
    items: Sequence[Encoded],
    rules: Sequence[Rule | Recipe | None],
    identity: Mapping[str, Any],
    label: str,
    is_done: IsDone | None = None,
) -> pd.DataFrame:
    """Run the rules on the items: one row per rule and item (the `capability` table).

    Args:
        runner: The model.
        items: The items.
        rules, identity, is_done: As in `answers_table`.
        label: What the progress line says.
    """
    progress = Progress(label, len(rules) * sum(len(item.ids) for item in items))

    def answers(rule: Rule | Recipe | None) -> pd.DataFrame:
        return runner.last_words(items, rule, progress)

    table = answers_table(answers, rules, identity, is_done)
    progress.close()
    return table


def answers_table(
    answers: Callable[[Rule | Recipe | None], pd.DataFrame],
    rules: Sequence[Rule | Recipe | None],
    identity: Mapping[str, Any],
    is_done: IsDone | None = None,
) -> pd.DataFrame:
    """The `capability` table of what `answers` gives for each rule.

    Args:
        answers: Rule -> correct and logprob of every item, in the same order for all rules.
        rules: The rules, and recipes that `named_recipe` gave names to; None, which is dense,
            comes first.
        identity: Leading columns (study, model, origin, task).
        is_done: Whether the model does the task, by its dense answers. One that does not has too
            little to lose, and is run under no rule. Without it every model is run under all.
    """
    tables = []
    for rule in rules:
        result = answers(rule)
        setting = {**identity, **_setting(rule), "item": range(len(result))}
        tables.append(pd.concat([pd.DataFrame(setting), result], axis=1))
        if rule is None and is_done and not is_done(result["correct"].to_numpy()):
            share = f"{100 * result['correct'].mean():.0f}%"
            logger.info("%s of the answers are right dense: too few to lose", share)
            break
    return _joined(tables, [*identity, *_CAPABILITY])


def _setting(rule: Rule | Recipe | None) -> dict[str, Any]:
    if rule is None:
        return {"site": "none", **DENSE_COLUMNS}
    if isinstance(rule, Recipe):
        return {**RECIPE_COLUMNS, "score": rule.found["name"], "sparsity": rule.found["sparsity"]}
    return {"site": rule.site, **rule.columns}


def _joined(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """One table, with its columns and their types also where there is no row."""
    if tables:
        return pd.concat(tables, ignore_index=True)
    return pd.DataFrame({name: pd.Series(dtype=_TYPES.get(name, "str")) for name in columns})
