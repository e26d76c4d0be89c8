"""The tables and figures that a study has, and what they are made from."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

from keepset.rules.kinds import KINDS, evaluations
from keepset.settings import Choice, Config


def choices(config: Config, kind: str, corpus: str) -> list[Choice]:
    """How windowed keep sets of a kind of site are chosen on a corpus: a job for each."""
    section = config.section(kind, corpus)
    return section.windowed.choices if section else []


def perplexity_parts(config: Config, model: str, corpus: str) -> list[str]:
    """The tables that a model's perplexity table is joined from, without folder and ending."""
    allotted = ["budgets"] if config.allots(model, corpus) else []
    return ["dense", *allotted] + [
        evaluation.table.format(choice=choice)
        for kind in config.studied_kinds(model, corpus)
        for evaluation in KINDS[kind].evaluations
        for choice in (choices(config, kind, corpus) if evaluation.part == "windowed" else [""])
    ]


def static_sets(config: Config, model: str) -> list[str]:
    """The files that tasks take static keep sets from: one for each kind that is studied."""
    corpus = config.capability.corpus
    kinds = config.studied_kinds(model, corpus)
    return [f"{model}/{corpus}/{KINDS[kind].sets}" for kind in kinds]


def per_corpus(config: Config, name: str, kind: str | None = None) -> list[str]:
    """`name` in the folder of every model and corpus (on which a kind of site is studied)."""
    return [
        f"{model}/{corpus}/{name}"
        for model in config.active_models()
        for corpus in config.corpora
        if (config.covers(model, corpus) if kind is None else config.studies(model, kind, corpus))
    ]


def correlations(config: Config) -> list[str]:
    """The tables of size against impact, model by model."""
    return [
        f"{model}/{corpus}/{kind.correlation}.parquet"
        for model in config.active_models()
        for corpus in config.corpora
        for kind in KINDS.values()
        if kind.correlation and config.studies(model, kind.name, corpus)
    ]


def roundings(config: Config) -> list[str]:
    """The tables of dynamic rules that were run again with noise in the last bit."""
    return [
        table
        for kind, evaluation in evaluations()
        if evaluation.rounding
        for table in per_corpus(config, f"{evaluation.rounding}.parquet", kind.name)
    ]


def capabilities(config: Config) -> list[str]:
    """The tables of tasks."""
    models = config.active_models()
    return [f"{model}/{task}/capability.parquet" for model in models for task in config.tasks]


def allotments(config: Config) -> list[str]:
    """The names of the recipes of a model's budgets, at every level, without ending."""
    if config.budget is None:
        return []
    shares = product(config.budget.levels, config.budget.allotments)
    return [f"budgets-{allotment}-{level:g}" for level, allotment in shares]


def recipes(config: Config, model: str, corpus: str) -> list[str]:
    """The recipes of a model's budgets on a corpus."""
    if not config.allots(model, corpus):
        return []
    return [f"{model}/{corpus}/{name}.yaml" for name in allotments(config)]


def slim_models(config: Config) -> list[str]:
    """The models that `snakemake slim` makes slimmer: those with sites of linear maps."""
    if config.slim is None:
        return []
    models = [name for name, model in config.active_models().items() if "input" in model.sites]
    return [model for model in models if config.covers(model, config.slim.corpus)]


def slim_folders(config: Config, model: str) -> list[str]:
    """The folders that `snakemake slim` writes of a model, one for every budget."""
    if config.slim is None:
        return []
    return [f"{model}/{config.slim.corpus}/slim-{budget:g}" for budget in config.slim.budgets]


def fast_folders(config: Config, model: str) -> list[str]:
    """Those of `slim_folders` whose recipes save time."""
    saves_time = config.slim is not None and config.slim.save == "speed"
    return slim_folders(config, model) if saves_time else []


def slimmed(config: Config) -> list[str]:
    """What `snakemake slim` says of every model that it makes slimmer, for every budget."""
    return [
        f"{folder}.json" for model in slim_models(config) for folder in slim_folders(config, model)
    ]


def tables(config: Config) -> list[str]:
    """The tables of measurements that a finished study has, relative to its folder."""
    return [*per_corpus(config, "perplexity.parquet"), *correlations(config), *capabilities(config)]


SIGNIFICANCE: dict[str, tuple[str, ...]] = {
    "test_significance": ("ratios", "capability", "trend"),
    "join_correlations": ("correlation",),
    "compare_settings": ("recall", "state_pairs", "side_by_side", "lengths"),
    "sort_channels": ("channels", "quadrants"),
    "judge_claims": ("claims",),
}
"""Rule -> the tables that it writes to significance/."""


def printed_tables(config: Config) -> dict[str, str]:
    """Table for readers -> the table in significance/ that it is made from."""
    sources = {
        "perplexity": "ratios",
        "dial": "ratios",
        "capability": "capability",
        "trend": "trend",
        "correlations": "correlation",
    }
    if config.has_task("recall"):
        sources["recall"] = "recall"
    if config.has_kind("state"):
        sources |= {name: name for name in ("state_pairs", "side_by_side", "lengths")}
    return sources


def shipped_losses(config: Config) -> list[str]:
    """The loss curves that the study's specimens came with."""
    specimens = (m for m in config.active_models().values() if m.origin == "specimen" and m.path)
    curves = (Path(str(specimen.path)) / "losses.parquet" for specimen in specimens)
    return [str(curve) for curve in curves if curve.is_file()]


def joined(config: Config, rule: str, wildcards: Mapping[str, str]) -> set[str] | None:
    """The tables that a joining rule must have read; None for the other rules."""
    if rule == "join_perplexity":
        parts = perplexity_parts(config, wildcards["model"], wildcards["corpus"])
        return {f"{wildcards['model']}/{wildcards['corpus']}/{part}.parquet" for part in parts}
    if rule == "join_correlations":
        return set(correlations(config))
    if rule == "test_significance":
        return {
            *per_corpus(config, "perplexity.parquet"),
            *capabilities(config),
            *roundings(config),
        }
    return None
