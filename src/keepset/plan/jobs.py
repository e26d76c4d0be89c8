"""The jobs of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from keepset.rules.kinds import KINDS
from keepset.settings import Config, outputs
from keepset.settings.figures import drawn


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    rule: str
    wildcards: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """The model it runs; None for jobs that join, test and draw."""
        return self.wildcards.get("model")


def jobs(config: Config) -> list[Job]:
    """Every job of a study that starts from nothing, without targets that run on request only."""
    models = list(config.active_models())
    texts = {
        corpus for model in models for corpus in config.corpora if config.covers(model, corpus)
    }
    texts |= {corpus for task in config.tasks.values() for corpus in task.corpora or ()}
    planned = [Job("prepare_model", {"model": model}) for model in models]
    planned += [Job("prepare_corpus", {"corpus": name}) for name in config.corpora if name in texts]
    harness = dict.fromkeys(config.tasks_of("harness"), "harness")
    planned += [Job(f"prepare_{harness.get(t, 'task')}", {"task": t}) for t in config.tasks]
    for model in models:
        for corpus in config.corpora:
            if config.covers(model, corpus):
                planned += _text_jobs(config, model, corpus)
        planned += [
            Job(f"evaluate_{harness.get(task, 'capability')}", {"model": model, "task": task})
            for task in config.tasks
        ]
    return planned + [Job(rule) for rule in _last_rules(config)]


def _text_jobs(config: Config, model: str, corpus: str) -> Iterator[Job]:
    """The jobs of one model and corpus."""
    names = {"model": model, "corpus": corpus}
    rules = ["tokenize_corpus", "evaluate_dense", "join_perplexity"]
    windowed = []
    for kind in map(KINDS.__getitem__, config.studied_kinds(model, corpus)):
        once = [one.rule for one in kind.evaluations if one.part != "windowed"]
        # Kinds may share a rule: one cache serves all that are chosen by it.
        rules += [rule for rule in (*kind.before, *once, *kind.after) if rule not in rules]
        windowed += [
            Job(one.rule, {**names, "choice": choice})
            for one in kind.evaluations
            if one.part == "windowed"
            for choice in outputs.choices(config, kind.name, corpus)
        ]
    yield from (Job(rule, names) for rule in rules)
    yield from windowed


def _last_rules(config: Config) -> Iterator[str]:
    """The rules that join, test, judge and draw: one job each."""
    figures = drawn(config)
    tables = {f"significance/{table}" for table in outputs.printed_tables(config).values()}
    tables.update(*(figure.tables for figure in figures))
    for rule, written in outputs.SIGNIFICANCE.items():
        if tables & {f"significance/{table}" for table in written}:
            yield rule
    yield "write_tables"
    yield from (f"draw_{figure.name}" for figure in figures)
    if outputs.shipped_losses(config):
        yield "draw_losses_figures"
