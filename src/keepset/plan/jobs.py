"""The jobs of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from keepset.settings import Config, steps


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
    """Every job of a study that starts from nothing, but for targets that run on request only."""
    models = list(config.active_models())
    texts = {
        corpus for model in models for corpus in config.corpora if config.covers(model, corpus)
    }
    texts |= {corpus for task in config.tasks.values() for corpus in task.corpora or ()}
    found = [Job("prepare_model", {"model": model}) for model in models]
    found += [Job("prepare_corpus", {"corpus": name}) for name in config.corpora if name in texts]
    found += [Job("prepare_task", {"task": task}) for task in config.tasks]
    for model in models:
        for corpus in config.corpora:
            if config.covers(model, corpus):
                found += _text_jobs(config, model, corpus)
        found += [Job("evaluate_capability", {"model": model, "task": t}) for t in config.tasks]
    return found + [Job(rule) for rule in _last_rules(config)]


def _text_jobs(config: Config, model: str, corpus: str) -> Iterator[Job]:
    """The jobs of one model and corpus."""
    names = {"model": model, "corpus": corpus}
    rules = ["tokenize_corpus", "evaluate_dense", "join_perplexity"]
    dials: dict[str, Sequence[str]] = {}
    if config.studies(model, "ffn", corpus):
        rules += ["cache_activations", "correlate_size_impact"]
        rules += ["evaluate_static", "evaluate_dynamic"]
        dials["evaluate_windowed"] = config.corpus_grid(corpus).windowed.choices
    if config.state is not None and config.studies(model, "state", corpus):
        rules += ["score_state", "evaluate_state", "evaluate_state_lengths", "correlate_state"]
        dials["evaluate_state_windowed"] = config.state.windowed.choices
    yield from (Job(rule, names) for rule in rules)
    for rule, choices in dials.items():
        yield from (Job(rule, {**names, "choice": choice}) for choice in choices)


def _last_rules(config: Config) -> Iterator[str]:
    """The rules that join, test, judge and draw: one job each."""
    drawn = steps.figure_tables(config)
    tables = {*steps.printed_tables(config).values()}
    tables.update(*drawn.values())
    for rule, made in steps.SIGNIFICANCE.items():
        if tables & set(made):
            yield rule
    yield "write_tables"
    yield from (f"draw_{figure}" for figure in drawn)
    if steps.shipped_losses(config):
        yield "draw_losses_figures"
