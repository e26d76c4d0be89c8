"""Perplexity and capability under keep rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from keepset import text
from keepset.files import store
from keepset.measure import tables
from keepset.rules.rule import Rule
from keepset.settings import Capability, State
from keepset.settings.grid import capability_rules, state_capability_rules
from keepset.steps.common import PathLike, Run, load, static_sets


def evaluate_rules(
    model: PathLike,
    blocks: PathLike,
    cache: PathLike | None,
    run: Run,
    rules: Sequence[Rule | None],
    gradients: bool,
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Perplexity per block under every rule; `cache` is for static rules."""
    tokens = text.load_blocks(blocks)
    files = {} if cache is None else {"ffn": cache}
    keep_sets = static_sets(files, model, tokens, run, {"gradients": gradients})
    loaded = load(model, run, keep_sets)
    label = f"{identity['model']} {identity['corpus']} {Path(output).stem}"
    possible = [rule for rule in rules if rule is None or loaded.runner.sites_of(rule.site)]
    table = tables.perplexity_table(loaded.runner, tokens, possible, identity, label)
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})


def evaluate_capability(
    model: PathLike,
    items: PathLike,
    blocks: PathLike,
    chosen: Mapping[str, PathLike],
    run: Run,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Accuracy in a task: dense against static, dynamic and windowed, FFN and state.

    Args:
        model: What `prepare_model` wrote.
        items: What `prepare_task` wrote.
        blocks: Text of the corpus whose calibration chose the static sets.
        chosen: cache, the activation cache, and sets, the keep sets of states; each where the
            model's sites of that kind are studied.
        run: How the model is run.
        settings: capability, choices, gradients; state, static and seeds where states are studied.
        identity: Leading columns.
        output: The table.
    """
    tokens = text.load_blocks(blocks)
    rules: list[Rule | None] = [None]
    files = {{"cache": "ffn", "sets": "state"}[name]: path for name, path in chosen.items()}
    loaded = load(model, run, static_sets(files, model, tokens, run, settings))
    runner = loaded.runner
    if "cache" in chosen and runner.sites_of("ffn"):
        capability = Capability.model_validate(settings["capability"])
        rules += capability_rules(capability, settings["choices"])[1:]
    if "sets" in chosen and runner.sites_of("state"):
        rules += state_capability_rules(State.model_validate(settings["state"]), settings["seeds"])
    asked = text.read_items(items)
    encoded = text.encode_items(asked, loaded.tokenizer)
    label = f"{identity['model']} {identity['task']} capability"
    table = tables.capability_table(runner, encoded, rules, identity, label)
    kinds = pd.DataFrame(
        [(item.n_facts, item.distance) for item in asked], columns=["n_facts", "distance"]
    ).astype("Int64")
    table = table.join(kinds, on="item")
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})
