"""Perplexity and capability under keep rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import text
from keepset.calibrate.sets import load_sets
from keepset.files import store
from keepset.measure import tables
from keepset.rules.rule import Rule
from keepset.settings.grid import part_rules, task_rules
from keepset.steps.common import Loaded, PathLike, Run, load, load_moments, sets_identity


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
        model: What `prepare_model` wrote.
        blocks: What `tokenize_corpus` wrote.
        run: How the model is run (`Run`).
        identity: Leading columns.
        output: The table.
        rules: The arguments of `part_rules`; dense where there are none.
        sets: What static keep sets are read from (`Kind.sets`).
        chosen: What they must have been chosen by.
    """
    tokens = text.load_blocks(blocks)
    kinds = {} if sets is None or rules is None else {rules["kind"]: (sets, chosen or {})}
    loaded = _load_with_sets(model, tokens, Run(**run), kinds)
    label = f"{identity['model']} {identity['corpus']} {Path(output).stem}"
    held: list[Rule | None] = [None] if rules is None else [*part_rules(**rules)]
    held = [rule for rule in held if rule is None or _has(loaded, rule.site)]
    table = tables.perplexity_table(loaded.runner, tokens, held, identity, label)
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})


def evaluate_capability(
    model: PathLike,
    passages: PathLike,
    blocks: PathLike,
    sets: Sequence[PathLike],
    run: Mapping[str, Any],
    kinds: Mapping[str, Mapping[str, Any]],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Accuracy in a task: dense, and under the rules of every kind of site that is studied.

    Args:
        model: What `prepare_model` wrote.
        passages: What `prepare_task` wrote.
        blocks: Text of the corpus whose calibration chose the static sets.
        sets: What static sets are read from, in the order of `kinds`.
        run: How the model is run (`Run`).
        kinds: Kind -> tasks, what `task_rules` makes rules of, seeds, and chosen, what its static
            sets must have been chosen by.
        identity: Leading columns.
        output: The table.
    """
    tokens = text.load_blocks(blocks)
    files = {kind: (path, kinds[kind]["chosen"]) for kind, path in zip(kinds, sets, strict=True)}
    loaded = _load_with_sets(model, tokens, Run(**run), files)
    rules: list[Rule | None] = [None]
    for kind, settings in kinds.items():
        if _has(loaded, kind):
            rules += task_rules(kind, settings["tasks"], settings["seeds"])
    items = text.read_items(passages)
    encoded = text.encode_items(items, loaded.tokenizer)
    label = f"{identity['model']} {identity['task']} capability"
    table = tables.capability_table(loaded.runner, encoded, rules, identity, label)
    difficulty = pd.DataFrame(
        [(item.n_facts, item.distance) for item in items], columns=["n_facts", "distance"]
    ).astype("Int64")
    table = table.join(difficulty, on="item")
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})


def _load_with_sets(
    model: PathLike,
    tokens: text.Blocks,
    run: Run,
    kinds: Mapping[str, tuple[PathLike, Mapping[str, Any]]],
) -> Loaded:
    moments = None
    if "ffn" in kinds:
        cache, chosen = kinds["ffn"]
        moments = load_moments(cache, model, tokens, run, chosen["gradients"])
    loaded = load(model, run, moments)
    if "state" in kinds and loaded.runner.states:
        sets, chosen = kinds["state"]
        loaded.runner.state_sets = load_sets(sets, sets_identity(loaded, tokens, chosen))
    return loaded


def _has(loaded: Loaded, kind: str) -> bool:
    return bool(loaded.runner.states if kind == "state" else loaded.runner.sites)
