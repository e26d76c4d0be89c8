"""Perplexity and capability under keep rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import models, text
from keepset.errors import ConfigError, ModelError
from keepset.files import store
from keepset.measure import tables
from keepset.measure.skill import does_task
from keepset.models import still_to_do
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.grid import length_rules, part_rules, task_rules
from keepset.settings.recipes import read_recipe, recipe_name
from keepset.steps.common import Loaded, PathLike, Run, give_centres, load, static_sets


def evaluate_rules(
    model: PathLike,
    blocks: PathLike,
    run: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
    rules: Mapping[str, Any] | None = None,
    sets: PathLike | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> None:
    """Perplexity per block under every rule of one part of a grid, or dense.

    Args:
        rules: The arguments of `part_rules`; dense where there are none.
        sets: What static keep sets are read from (`Kind.sets`).
        chosen: What they must have been chosen with.
    """
    tokens, setup = text.load_blocks(blocks), Run(**run)
    kind = rules["kind"] if rules else ""
    files = {} if sets is None else {kind: sets}
    loaded = load(model, setup, static_sets(files, model, tokens, setup, {kind: chosen or {}}))
    keep_rules = [None] if rules is None else _rules(loaded, rules)
    give_centres(loaded, tokens, keep_rules)
    label = _label(identity, output)
    table = tables.perplexity_table(loaded.runner, tokens, keep_rules, identity, label)
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})


def evaluate_dynamic(
    model: PathLike,
    blocks: PathLike,
    run: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
    rounding: PathLike,
    rules: Mapping[str, Any],
    noise: Mapping[str, Any],
) -> None:
    """Perplexity per block under dynamic rules, and how much of it is rounding.

    Args:
        rounding: Where the table of `rounding_table` goes.
        rules: The arguments of `part_rules`.
        noise: draws, seed and tokens, as in `rounding_table`.
    """
    tokens = text.load_blocks(blocks)
    loaded = load(model, Run(**run))
    keep_rules, label = _rules(loaded, rules), _label(identity, output)
    give_centres(loaded, tokens, keep_rules)
    facts = {**loaded.provenance, "text": tokens.fingerprint}
    table = tables.perplexity_table(loaded.runner, tokens, keep_rules, identity, label)
    again = tables.rounding_table(loaded.runner, tokens, keep_rules, identity, label, **noise)
    store.write_table(table, output, facts)
    store.write_table(again, rounding, facts)


def _rules(loaded: Loaded, rules: Mapping[str, Any]) -> list[Rule]:
    """One part of a grid; no rules where the model has no such sites."""
    return part_rules(**rules) if loaded.runner.sites_of(rules["kind"]) else []


def _label(identity: Mapping[str, Any], output: PathLike) -> str:
    return f"{identity['model']} {identity['corpus']} {Path(output).stem}"


def evaluate_lengths(
    model: PathLike,
    blocks: PathLike,
    sets: PathLike,
    run: Mapping[str, Any],
    rules: Mapping[str, Any],
    chosen: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Perplexity on longer passages than the units were chosen on.

    Lengths that the model's positions, or the text, do not reach are left out.
    The arguments are those of `evaluate_rules`; `rules` are those of `length_rules`.
    """
    tokens, setup, kind = text.load_blocks(blocks), Run(**run), rules["kind"]
    keep_sets = static_sets({kind: sets}, model, tokens, setup, {kind: chosen})
    loaded = load(model, setup, keep_sets)
    keep_rules = length_rules(**rules) if loaded.runner.sites_of(kind) else []
    parts = []
    for factor in rules["state"]["lengths"] if keep_rules else ():
        longer = tokens.longer.get(factor)
        if longer is None:
            continue
        length = longer.evaluation.shape[1]
        if not models.fits(loaded.runner.model, length + int(tokens.bos is not None)):
            continue
        label = f"{identity['model']} {identity['corpus']} lengths {length}"
        table = tables.perplexity_table(loaded.runner, longer, [None, *keep_rules], identity, label)
        parts.append(table.drop(columns=["n_words", "n_bytes"]).assign(length=length))
    table = pd.concat(parts) if parts else pd.DataFrame()
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})


def evaluate_capability(
    passages: PathLike,
    identity: Mapping[str, Any],
    output: PathLike,
    skill: Mapping[str, float] | None = None,
    **model: Any,
) -> None:
    """Accuracy in a task: dense, and under the rules of every kind of site that is studied.

    Args:
        passages: What `prepare_task` wrote.
        skill: confidence and margin of `does_task`: a model that does not do the task is run dense
            alone. Every model is run under all rules if left out.
        model: The arguments of `load_for_tasks`.
    """
    loaded, keep_rules = load_for_tasks(**model)
    items = text.read_items(passages)
    encoded = text.encode_items(items, loaded.tokenizer, loaded.info["bos"])
    label = f"{identity['model']} {identity['task']} capability"
    is_done = partial(does_task, **skill) if skill else None
    table = tables.capability_table(loaded.runner, encoded, keep_rules, identity, label, is_done)
    difficulty = [(item.n_facts, item.distance) for item in items]
    store.write_table(with_difficulty(table, difficulty), output, loaded.provenance)


def load_for_tasks(
    model: PathLike,
    blocks: PathLike,
    sets: Sequence[PathLike],
    run: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]],
    recipes: Sequence[PathLike] = (),
) -> tuple[Loaded, list[Rule | Recipe | None]]:
    """A model with its static sets, and what it does tasks under: dense, all kinds' rules, recipes.

    Args:
        model: The prepared model.
        blocks: Text of the corpus whose calibration chose the static sets.
        sets: What static sets are read from, in the order of `kinds`.
        run: The arguments of `Run`.
        kinds: Kind -> tasks and seeds, the arguments of `task_rules`; and chosen, what its static
            sets must have been chosen with.
        recipes: Recipes of the model, or folders that hold one.

    Raises:
        ModelError: a recipe is of another model.
        ConfigError: a recipe was made with another BOS token.
    """
    tokens, setup = text.load_blocks(blocks), Run(**run)
    files = dict(zip(kinds, sets, strict=True))
    chosen = {kind: settings["chosen"] for kind, settings in kinds.items()}
    loaded = load(model, setup, static_sets(files, model, tokens, setup, chosen))
    keep_rules: list[Rule | Recipe | None] = [None]
    for kind, settings in kinds.items():
        if loaded.runner.sites_of(kind):
            keep_rules += task_rules(kind, settings["tasks"], settings["seeds"])
    give_centres(loaded, tokens, keep_rules)
    keep_rules += [_named(read_recipe(path), path, loaded) for path in recipes]
    facts = {**loaded.provenance, "text": tokens.fingerprint}
    return replace(loaded, provenance=facts), keep_rules


def _named(recipe: Recipe, path: PathLike, loaded: Loaded) -> Recipe:
    """A recipe for `loaded`, with the name of its file, and the level that it was made for."""
    try:
        held = still_to_do(loaded.runner.model, recipe)
    except ModelError as error:
        raise ModelError(f"capability.recipes: {path}: {error}") from None
    if recipe.bos != loaded.info["bos"]:
        raise ConfigError(
            f"capability.recipes: {path}: it was made with the BOS token {recipe.bos} before texts,"
            f" and here it is {loaded.info['bos']}; set models.{loaded.info['name']}.bos as it was"
        )
    level = recipe.found.get("sparsity", recipe.found.get("level", 0.0))
    return replace(held, found={"name": recipe_name(path), "sparsity": float(level)})


def with_difficulty(
    table: pd.DataFrame, difficulty: Sequence[tuple[int | None, int | None]]
) -> pd.DataFrame:
    """A table of answers, with the numbers of facts and the distance of each item."""
    columns = pd.DataFrame(difficulty, columns=["n_facts", "distance"])
    return table.join(columns.astype("Int64"), on="item")
