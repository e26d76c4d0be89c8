"""What recipes, budgets and rules gain while a model decodes, where they cost little perplexity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from keepset import text
from keepset.decode.choice import recipe_of
from keepset.files import store
from keepset.files.store import PathLike
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.recipes import read_recipe
from keepset.sites.ffn import Site
from keepset.slim import candidates, savings
from keepset.speed.decoding import decode_both
from keepset.speed.timing import device_name, summary
from keepset.steps.common import Run, load

GAINS = [
    "study", "model", "origin", "corpus", "way", "site", "score", "sparsity", "bytes_left_out",
    "ratio", "ci_low", "ci_high", "rounds", "ms_p20", "ms_p50", "ms_p80", "dense_ms_p50",
    "speedup_p20", "speedup_p50", "speedup_p80", "device", "threads",
]  # fmt: skip
"""Columns of the `gains` table."""
_PROMPT = 32
"""Tokens before those that are timed."""
_BOUNDS = {"ratio": "", "ci_low": "_low", "ci_high": "_high"}


def time_recipes(
    inputs: Mapping[str, Any],
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
    output: PathLike,
) -> None:
    """Time what costs little perplexity while a model decodes: rules, budgets and slim recipes.

    All are timed in one process, each against the dense model as it is, token by token in turn.

    Args:
        inputs: model and blocks; ratios, the table of keepset.analyse.significance; recipes, the
            files of `evaluate_budgets`; slim, the folders that `slim_model` wrote to save speed.
        settings: tokens, decoded for each; within, the rise of perplexity up to which rules and
            budgets are timed.
        output: The `gains` table of docs/METHODS.md.
    """
    tokens, loaded = text.load_blocks(inputs["blocks"]), load(inputs["model"], Run(**run))
    network, bos = loaded.runner.model, loaded.runner.bos
    linear = candidates.speed_sites(loaded.runner.sites)
    ratios = pd.read_parquet(inputs["ratios"])
    of_pair = (ratios[["model", "corpus"]] == [identity["model"], identity["corpus"]]).all(axis=1)
    little = of_pair & (ratios["method"] == "dynamic") & (ratios["ratio"] <= 1 + settings["within"])
    ways = [*_rules(ratios[little], linear, [read_recipe(one) for one in inputs["recipes"]], bos)]
    ways += [_slimmer(read_recipe(folder)) for folder in inputs["slim"]]
    prompt = tokens.evaluation[:1, :_PROMPT].to(next(network.parameters()).device)
    sites = {site.key: site for site in linear}
    everything = savings.total(network, loaded.runner.sites, "speed")
    place = {"device": device_name(network.device), "threads": torch.get_num_threads()}
    rows = []
    for facts, recipe in ways if linear else ():
        dense, sparse = decode_both(
            network, prompt, recipe, settings["tokens"], kernels=loaded.runner.selection, bos=bos
        )
        left_out = savings.saved(sites, recipe, {}, "speed") / everything
        times = summary(sparse.steps_s.numpy(), dense.steps_s.numpy())
        rows.append({"bytes_left_out": left_out, **identity, **facts, **times, **place})
    table = pd.DataFrame(rows).reindex(columns=GAINS)
    store.write_table(table, output, {**loaded.provenance, "text": tokens.fingerprint, **place})


def _rules(
    ratios: pd.DataFrame, sites: Sequence[Site], recipes: Sequence[Recipe], bos: int | None
) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """An empty recipe, and what is in `ratios`: rules, and allotments that are among `recipes`."""
    kept = ["ratio", "ci_low", "ci_high"]
    dense = {"site": "none", "score": "none", "sparsity": 0.0, **dict.fromkeys(kept, 1.0)}
    yield {"way": "kernels", **dense}, Recipe({}, bos=bos)
    of_allotment = {(one.found["score"], one.found["sparsity"]): one for one in recipes}
    for row in ratios[ratios["site"].isin(["all", "ffn", "input"])].to_dict("records"):
        facts = {name: row[name] for name in ("site", "score", "sparsity", *kept)}
        if row["site"] == "all":
            yield {"way": "budget", **facts}, of_allotment[row["score"], row["sparsity"]]
        elif row["score"] in ("magnitude", "impact"):
            rule = Rule(row["score"], row["sparsity"], 1, site=row["site"])
            yield {"way": "rule", **facts}, recipe_of(rule, sites, None, bos)


def _slimmer(recipe: Recipe) -> tuple[dict[str, Any], Recipe]:
    """What `keepset slim` found; its interval is that of the two one-sided bounds."""
    found = recipe.found
    facts = {name: found["quality"][f"ratio{end}"] for name, end in _BOUNDS.items()}
    facts |= {"score": found["candidate"], "sparsity": found["level"]}
    # What a threshold leaves out is measured.
    return {"way": "slim", "site": "all", "bytes_left_out": found["saved"], **facts}, recipe
