"""The settings of every step, as a function of the configuration.

The workflow takes its parameters from here where it can, and a test compares the others: what a
job was given must be what this module says, or `keepset verify` would call good results stale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from keepset.settings import Config, SiteKind, Task, TrainingData

Wildcards = Mapping[str, str]
Settings = dict[str, Any]


def run_settings(config: Config, model: str) -> Settings:
    """How a model is run: device, dtype, implementations, tokens per forward pass."""
    return {
        "device": config.device,
        "dtype": config.all_models()[model].dtype or config.dtype,
        "kernels": config.kernels.model_dump(),
        "batch_tokens": config.text.batch_tokens,
    }


def identity(config: Config, wildcards: Wildcards) -> Settings:
    """The leading columns of a result table."""
    model = wildcards["model"]
    columns = {"study": config.study, "model": model, "origin": config.all_models()[model].origin}
    return columns | {name: wildcards[name] for name in ("corpus", "task") if name in wildcards}


def correlation_settings(config: Config, corpus: str) -> Settings:
    """What size and impact are correlated with."""
    ablation = config.corpora[corpus].ablation
    return {
        "gradients": config.needs_gradients(corpus),
        "seed": config.seed,
        "statistics": config.statistics.model_dump(),
        "ablation": config.ablation.model_dump() if ablation else None,
    }


def capability_settings(config: Config, model: str) -> Settings:
    """What tasks are run under."""
    corpus = config.capability.corpus
    found = {
        "capability": config.capability.model_dump(),
        "choices": config.grid.windowed.choices,
        "gradients": config.needs_gradients(corpus),
    }
    if config.state is not None and config.studies(model, "state", corpus):
        found |= {**state_settings(config), "state": config.state.model_dump()}
    return found


def state_settings(config: Config) -> Settings:
    """What keep sets of states are chosen by."""
    assert config.state is not None
    return {"static": config.state.static.model_dump(), "seeds": config.seeds()}


def corpus_source(config: Config, corpus: str) -> Settings:
    """Where a corpus comes from."""
    return config.corpora[corpus].model_dump(exclude={"grid", "ablation"})


def _model(config: Config, wildcards: Wildcards) -> Settings:
    return {"source": config.all_models()[wildcards["model"]].model_dump(exclude={"sites"})}


def _corpus(config: Config, wildcards: Wildcards) -> Settings:
    return {"corpus": corpus_source(config, wildcards["corpus"]), "seed": config.seed}


def _task(config: Config, wildcards: Wildcards) -> Settings:
    return {"task": config.tasks[wildcards["task"]].model_dump(), "seed": config.seed}


def _blocks(config: Config, wildcards: Wildcards) -> Settings:
    return {
        "lengths": config.text.model_dump(include={"block", "calibration_tokens"}),
        "evaluation_tokens": config.evaluation_tokens(wildcards["model"]),
    }


def _activations(config: Config, wildcards: Wildcards) -> Settings:
    run = run_settings(config, wildcards["model"])
    return {"run": run, "gradients": config.needs_gradients(wildcards["corpus"])}


def _correlation(config: Config, wildcards: Wildcards) -> Settings:
    return {
        "run": run_settings(config, wildcards["model"]),
        "settings": correlation_settings(config, wildcards["corpus"]),
        "identity": identity(config, wildcards),
    }


def _evaluation(config: Config, wildcards: Wildcards) -> Settings:
    run = run_settings(config, wildcards["model"])
    return {"run": run, "identity": identity(config, wildcards)}


def _grid(part: str) -> Callable[[Config, Wildcards], Settings]:
    def settings(config: Config, wildcards: Wildcards) -> Settings:
        grid = getattr(config.corpus_grid(wildcards["corpus"]), part).model_dump()
        found = {**_evaluation(config, wildcards), "grid": grid, "seeds": config.seeds()}
        if part == "static":
            found["gradients"] = config.needs_gradients(wildcards["corpus"])
        return found

    return settings


def _capability(config: Config, wildcards: Wildcards) -> Settings:
    settings = capability_settings(config, wildcards["model"])
    return {**_evaluation(config, wildcards), "settings": settings}


def state_parts(*parts: str) -> Callable[[Config], Settings]:
    """`state_settings`, with parts of the section `state`: state (all of it), dial, prune."""

    def settings(config: Config) -> Settings:
        assert config.state is not None
        whole = {"state": config.state, "dial": config.state.windowed, "prune": config.state.prune}
        return {**state_settings(config), **{part: whole[part].model_dump() for part in parts}}

    return settings


def _states(*parts: str) -> Callable[[Config, Wildcards], Settings]:
    own = state_parts(*parts)
    return lambda config, wildcards: {**_evaluation(config, wildcards), "settings": own(config)}


def _state_correlation(config: Config, wildcards: Wildcards) -> Settings:
    return {**_significance(config, wildcards), "identity": identity(config, wildcards)}


def _gates(config: Config, _: Wildcards) -> Settings:
    assert config.training is not None
    names = list(config.training.specimens)
    return {"names": names, "training": config.training.model_dump()}


def _significance(config: Config, _: Wildcards) -> Settings:
    return {"statistics": config.statistics.model_dump(), "seed": config.seed}


def claims_settings(config: Config) -> Settings:
    """What claims are judged by, and what is known of the models.

    `l1` are the models that were trained with a penalty on |h|. A task that reads the first items
    of another task's source is not among the tasks: it repeats evidence, and has less of it.
    """
    specimens = config.training.specimens if config.training else {}
    penalised = {name for name, specimen in specimens.items() if specimen.l1 > 0}
    return {
        "study": config.study,
        **_significance(config, {}),
        "tasks": {
            name: task.kind for name, task in config.tasks.items() if not _is_part(config, task)
        },
        "l1": [name for name in config.active_models() if name in penalised],
    }


def _is_part(config: Config, task: Task) -> bool:
    return task.source is not None and any(
        (other.kind, other.source) == (task.kind, task.source) and other.items > task.items
        for other in config.tasks.values()
    )


def training_data(config: Config) -> Settings:
    """What specimens are trained on."""
    if config.training is None:
        return {"training": {}, "corpora": {}}
    whole = config.training.model_dump()
    return {
        "training": {key: whole[key] for key in TrainingData.model_fields},
        "corpora": {name: corpus_source(config, name) for name in whole["corpora"]},
    }


def specimen_settings(config: Config, specimen: str) -> Settings:
    """How one specimen is trained."""
    assert config.training is not None
    whole = config.training.model_dump()
    return {**whole, "specimens": {specimen: whole["specimens"][specimen]}}


def _specimen(config: Config, wildcards: Wildcards) -> Settings:
    training = specimen_settings(config, wildcards["specimen"])
    return {"training": training, "device": config.device, "dtype": config.dtype}


def benchmark_settings(config: Config) -> Settings:
    """What is timed; empty without the section `benchmark`."""
    return config.benchmark.model_dump(mode="json") if config.benchmark else {}


def benchmark_run(config: Config, model: str) -> Settings:
    """How a model that is timed is run, and whether its static sets need gradients."""
    run = run_settings(config, model)
    gradients = config.benchmark is not None and config.needs_gradients(config.benchmark.corpus)
    kept = {key: run[key] for key in ("device", "dtype", "kernels")}
    return {**kept, "gradients": gradients}


def _timing(config: Config, _: Wildcards) -> Settings:
    return {
        "study": config.study,
        "settings": benchmark_settings(config),
        "device": config.device,
        "kernels": config.kernels.model_dump(),
    }


def _timing_model(config: Config, wildcards: Wildcards) -> Settings:
    return {
        "run": benchmark_run(config, wildcards["model"]),
        "settings": benchmark_settings(config),
        "identity": {"study": config.study, "model": wildcards["model"]},
    }


_STEPS: dict[str, Callable[[Config, Wildcards], Settings]] = {
    "prepare_model": _model,
    "prepare_corpus": _corpus,
    "prepare_task": _task,
    "tokenize_corpus": _blocks,
    "cache_activations": _activations,
    "correlate_size_impact": _correlation,
    "evaluate_dense": _evaluation,
    "evaluate_static": _grid("static"),
    "evaluate_dynamic": _grid("dynamic"),
    "evaluate_windowed": _grid("windowed"),
    "evaluate_capability": _capability,
    "score_state": _states(),
    "evaluate_state": _states(),
    "evaluate_state_windowed": _states("dial"),
    "evaluate_state_lengths": _states("state"),
    "correlate_state": _state_correlation,
    "prune_state": _states("prune"),
    "measure_specimens": _gates,
    "join_perplexity": lambda *_: {},
    "join_correlations": lambda *_: {},
    "test_significance": _significance,
    "compare_settings": _significance,
    "sort_channels": lambda *_: {},
    "judge_claims": lambda config, _: {"settings": claims_settings(config)},
    "write_tables": lambda config, _: {"confidence": config.statistics.confidence},
    "prepare_training": lambda config, _: training_data(config),
    "train_specimen": _specimen,
    "benchmark_kernels": _timing,
    "benchmark_model": _timing_model,
    "join_benchmarks": lambda *_: {},
}


def step_settings(config: Config, rule: str, wildcards: Wildcards) -> Settings | None:
    """The settings that `rule` gets under `config`; None for a rule that is not known here.

    Raises:
        KeyError: a wildcard names what the configuration does not have.
    """
    if rule.startswith("draw_losses_"):
        return {}
    if rule.startswith("draw_"):
        return {"figure": rule.removeprefix("draw_")}
    step = _STEPS.get(rule)
    return None if step is None else step(config, wildcards)


def perplexity_parts(config: Config, model: str, corpus: str) -> list[str]:
    """The tables that a model's perplexity table is joined from, without folder and ending."""
    parts = ["dense"]
    if config.studies(model, "ffn", corpus):
        choices = config.corpus_grid(corpus).windowed.choices
        parts += ["static", "dynamic", *(f"windowed-{choice}" for choice in choices)]
    if config.state is not None and config.studies(model, "state", corpus):
        choices = config.state.windowed.choices
        parts += ["state-static", *(f"state-windowed-{choice}" for choice in choices)]
    return parts


def tables(config: Config) -> list[str]:
    """The tables of measurements that a finished study has, relative to its folder."""
    found = []
    for model in config.active_models():
        for corpus in filter(partial(config.covers, model), config.corpora):
            kinds = [
                name for kind, name in _CORRELATIONS.items() if config.studies(model, kind, corpus)
            ]
            found += [f"{model}/{corpus}/{name}.parquet" for name in ("perplexity", *kinds)]
        found += [f"{model}/{task}/capability.parquet" for task in config.tasks]
    return found


SIGNIFICANCE: dict[str, tuple[str, ...]] = {
    "test_significance": ("ratios", "capability", "trend"),
    "join_correlations": ("correlation",),
    "compare_settings": ("recall", "state_pairs", "side_by_side", "lengths"),
    "sort_channels": ("channels", "quadrants"),
    "judge_claims": ("claims",),
}
"""Rule -> the tables that it writes to significance/."""


def _has(config: Config, kind: SiteKind) -> bool:
    return any(
        config.studies(model, kind, corpus)
        for model in config.active_models()
        for corpus in config.corpora
    )


def _has_recall(config: Config) -> bool:
    return any(task.kind == "recall" for task in config.tasks.values())


def figure_tables(config: Config) -> dict[str, list[str]]:
    """Figure -> the tables it is drawn from, in the order of its function's arguments."""
    found = {"decoupling": ["correlation"], "claims": ["claims"]}
    if _has(config, "ffn"):
        found |= {figure: ["ratios"] for figure in ("static_dynamic", "scores", "dial")}
        if config.tasks:
            found["capability"] = ["capability"]
    if _has(config, "state"):
        found |= {
            "state_sweep": ["ratios"],
            "phantom": ["channels", "quadrants"],
            "memory_dial": ["ratios"],
            "state_length": ["lengths"],
        }
        if _has(config, "ffn"):
            found["side_by_side"] = ["side_by_side"]
    if _has_recall(config):
        found["recall"] = ["recall"]
    return found


def printed_tables(config: Config) -> dict[str, str]:
    """Table for readers -> the table in significance/ that it is made from."""
    found = {
        "perplexity": "ratios",
        "dial": "ratios",
        "capability": "capability",
        "trend": "trend",
        "correlations": "correlation",
    }
    if _has_recall(config):
        found["recall"] = "recall"
    if _has(config, "state"):
        found |= {name: name for name in ("state_pairs", "side_by_side", "lengths")}
    return found


def shipped_losses(config: Config) -> list[str]:
    """The loss curves that the study's specimens came with."""
    return [
        str(Path(model.path) / "losses.parquet")
        for model in config.active_models().values()
        if model.origin == "specimen"
        and model.path
        and (Path(model.path) / "losses.parquet").is_file()
    ]


_CORRELATIONS: dict[SiteKind, str] = {"ffn": "correlation", "state": "correlation-state"}


def joined(config: Config, rule: str, wildcards: Wildcards) -> set[str] | None:
    """The tables that a joining rule must have read; None for the other rules."""
    correlations = {name for name in tables(config) if "/correlation" in name}
    if rule == "join_perplexity":
        parts = perplexity_parts(config, wildcards["model"], wildcards["corpus"])
        return {f"{wildcards['model']}/{wildcards['corpus']}/{part}.parquet" for part in parts}
    if rule == "join_correlations":
        return correlations
    if rule == "test_significance":
        return set(tables(config)) - correlations
    return None
