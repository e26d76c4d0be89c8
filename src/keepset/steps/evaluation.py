"""Perplexity and capability under keep rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keepset import evaluate, store, text
from keepset.grid import capability_rules
from keepset.keep import Rule
from keepset.settings import Capability
from keepset.steps.common import PathLike, Run, load, load_moments


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
    moments = None if cache is None else load_moments(cache, model, tokens, run, gradients)
    loaded = load(model, run, moments)
    label = f"{identity['model']} {identity['corpus']} {Path(output).stem}"
    table = evaluate.perplexity_table(loaded.runner, tokens, rules, identity, label)
    found = {**loaded.provenance, "text": tokens.fingerprint}
    store.write_table(table, output, found)


def evaluate_capability(
    model: PathLike,
    items: PathLike,
    blocks: PathLike,
    cache: PathLike,
    run: Run,
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Last-word accuracy: dense against static, dynamic and windowed.

    `settings`: capability, choices, gradients.
    """
    tokens = text.load_blocks(blocks)
    moments = load_moments(cache, model, tokens, run, settings["gradients"])
    loaded = load(model, run, moments)
    rules = capability_rules(Capability.model_validate(settings["capability"]), settings["choices"])
    encoded = text.encode_items(text.read_items(items), loaded.tokenizer)
    label = f"{identity['model']} {identity['task']} capability"
    table = evaluate.capability_table(loaded.runner, encoded, rules, identity, label)
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})
