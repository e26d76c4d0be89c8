"""Budgets: shares of sites that are allotted in different ways, and slimmer models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from keepset import text
from keepset.files import store
from keepset.files.store import PathLike
from keepset.measure.tables import recipe_table
from keepset.models import owner_of
from keepset.rules.recipe import Recipe
from keepset.settings.recipes import write_recipe
from keepset.slim import candidates
from keepset.slim.quality import Part
from keepset.slim.settings import Budget
from keepset.slim.slimming import Model, slim
from keepset.slim.texts import Texts
from keepset.steps.common import Run, load

_NAMES = {"equal": "equal shares", "loss": "loss", "layer": "layer error (TEAL)"}
"""Of an allotment -> of the candidate of `keepset slim` that allots so."""


def evaluate_budgets(
    model: PathLike,
    blocks: PathLike,
    run: Mapping[str, Any],
    identity: Mapping[str, Any],
    budget: Mapping[str, Any],
    output: PathLike,
    recipes: Sequence[PathLike],
) -> None:
    """Perplexity per block where a share of the bytes of all linear maps is left out per token.

    The rows are of the site `all`, dynamic, their score is the allotment and their sparsity the
    share of the bytes; units of a site are chosen by magnitude. No rows where the model has no map
    that could be read in part.

    Args:
        budget: allotments and levels.
        recipes: Where the recipe of every level and, within it, of every allotment goes; empty
            recipes where there are no rows.
    """
    tokens, loaded = text.load_blocks(blocks), load(model, Run(**run))
    runner = loaded.runner
    settings = [
        {"score": allotment, "sparsity": level}
        for level in budget["levels"]
        for allotment in budget["allotments"]
    ]
    found, rows = [Recipe({}) for _ in settings], []
    if candidates.speed_sites(runner.sites):
        ways = candidates.per_token(runner.model, runner.sites, tokens.calibration, runner.bos)
        by_name = {way.name: way for way in ways}
        found = [by_name[_NAMES[one["score"]]].recipe(one["sparsity"]) for one in settings]
        rows = list(zip(settings, found, strict=True))
    label = f"{identity['model']} {identity['corpus']} budgets"
    table = recipe_table(runner, tokens, rows, identity, label)
    owner = owner_of(runner.model, str(identity["model"]), loaded.info.get("revision"))
    for path, setting, recipe in zip(recipes, settings, found, strict=True):
        write_recipe(replace(recipe, model=owner, bos=runner.bos, found=setting), path)
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint})


def slim_model(
    model: PathLike,
    blocks: PathLike,
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """`keepset slim` on a model and corpus of a study: a folder, and what was found as JSON.

    Args:
        settings: budget (a rise of perplexity), save, confidence and tokens.
        output: The folder; the JSON file stands beside it.
    """
    tokens, loaded = text.load_blocks(blocks), load(model, Run(**run))
    place = torch.arange(len(tokens.evaluation))
    search, report = (
        Part(name, tokens.evaluation[chosen], tokens.document[chosen])
        for name, chosen in (("search", place % 3 == 0), ("report", place % 3 != 0))
    )
    folder = Path(output)
    outcome = slim(
        Model(
            loaded.runner.model,
            loaded.tokenizer,
            str(identity["model"]),
            loaded.info["bos"],
            loaded.info.get("revision"),
        ),
        Texts(tokens.calibration, search, report, f"{identity['corpus']} of {identity['study']}"),
        Budget(settings["budget"], None, settings["confidence"], settings["save"]),
        folder,
        tokens=settings["tokens"],
        batch_tokens=run["batch_tokens"],
    )
    facts = {**loaded.provenance, **identity, "found": dict(outcome.recipe.found)}
    store.write_json(facts, f"{folder}.json")
