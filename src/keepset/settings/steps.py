"""The registry of steps: for each rule of the workflow, what runs and what it is told.

The workflow's parameters, `keepset plan` and `keepset verify` are all taken from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from keepset.errors import ConfigError
from keepset.rules.kinds import CACHE, KINDS, Evaluation, Kind, evaluations
from keepset.settings import Config, Task, Training, TrainingData
from keepset.settings.figures import FIGURES, Figure
from keepset.settings.grid import chosen_by, part_settings, state_section, task_settings

Wildcards = Mapping[str, str]
Settings = dict[str, Any]


def _nothing(*_: Any) -> Settings:
    return {}


Given = Callable[[Config, Wildcards], Settings]


@dataclass(frozen=True)
class Step:
    """What a rule of the workflow runs.

    Attributes:
        run: The function, "module:name". It gets the rule's files, and what `given` says, as
            keyword arguments (`keepset.run.step`).
        given: (configuration, wildcards) -> settings, as plain data.
        code: The module whose code reruns the rule when it changes; None where none does.
        network: Whether it may reach the model hub.
        beside: Files or folders, next to its first output, that it may write without naming them.
    """

    run: str
    given: Given = _nothing
    code: str | None = None
    network: bool = False
    beside: tuple[str, ...] = ()


def _run(config: Config, model: str) -> Settings:
    """How a model is run: device, dtype, implementations, tokens per forward pass."""
    return {
        "device": config.device,
        "dtype": config.all_models()[model].dtype or config.dtype,
        "kernels": config.kernels.model_dump(),
        "batch_tokens": config.text.batch_tokens,
    }


def _identity(config: Config, wildcards: Wildcards) -> Settings:
    """The leading columns of a result table."""
    model = wildcards["model"]
    columns = {"study": config.study, "model": model, "origin": config.all_models()[model].origin}
    names = {name: wildcards[name] for name in ("corpus", "task") if name in wildcards}
    return {"identity": columns | names}


def _model_run(config: Config, wildcards: Wildcards) -> Settings:
    return {"run": _run(config, wildcards["model"]), **_identity(config, wildcards)}


def _levels(config: Config, _: Wildcards) -> Settings:
    """Levels and margins; what dynamic rules are run again on concerns their tables alone."""
    runs = {"rounding_draws", "rounding_tokens"}
    return {"statistics": config.statistics.model_dump(exclude=runs)}


def _model(config: Config, wildcards: Wildcards) -> Settings:
    name = wildcards["model"]
    return {"name": name, "source": config.all_models()[name].model_dump(exclude={"sites"})}


def _source(config: Config, corpus: str) -> Settings:
    """Where a corpus comes from."""
    return config.corpora[corpus].model_dump(exclude={"grid", "ablation", "sampling"})


def _corpus(config: Config, wildcards: Wildcards) -> Settings:
    name = wildcards["corpus"]
    return {"name": name, "source": _source(config, name), "seed": config.seed}


def _task(config: Config, wildcards: Wildcards) -> Settings:
    name = wildcards["task"]
    return {"name": name, "task": config.tasks[name].model_dump(), "seed": config.seed}


def _harness_task(config: Config, wildcards: Wildcards) -> Settings:
    """What the harness is told of a task: none of it is drawn by the study's seed."""
    keys = ("kind", "items", "name", "path", "metric", "shots")
    return {"task": config.tasks[wildcards["task"]].model_dump(include=set(keys))}


def _harness_data(config: Config, wildcards: Wildcards) -> Settings:
    return {"name": wildcards["task"], **_harness_task(config, wildcards)}


def _blocks(config: Config, wildcards: Wildcards) -> Settings:
    model, corpus = wildcards["model"], wildcards["corpus"]
    longer = config.studies(model, "state", corpus)
    return {
        "name": corpus,
        "lengths": {
            **config.text.model_dump(include={"block", "calibration_tokens"}),
            "evaluation_tokens": config.evaluation_tokens(model),
        },
        "cutting": {
            "sampling": config.corpora[corpus].sampling,
            "sameness_tokens": config.sameness_tokens(model),
            "factors": state_section(config).lengths if longer else [],
            "seed": config.seed,
        },
    }


def _activations(config: Config, wildcards: Wildcards) -> Settings:
    """Of all kinds whose static keep sets are ranked from the cache."""
    model, corpus = wildcards["model"], wildcards["corpus"]
    kinds = [kind for kind in config.studied_kinds(model, corpus) if KINDS[kind].sets == CACHE]
    gradients = config.needs_gradients(corpus)
    return {**_model_run(config, wildcards), "kinds": kinds, "gradients": gradients}


def _correlation(config: Config, wildcards: Wildcards) -> Settings:
    corpus = wildcards["corpus"]
    ablation = config.ablation.model_dump() if config.corpora[corpus].ablation else None
    units = {"kind": "ffn", "gradients": config.needs_gradients(corpus)}
    settings = {**units, **_levels(config, wildcards), "seed": config.seed, "ablation": ablation}
    return {**_model_run(config, wildcards), "settings": settings}


def _evaluation(
    kind: Kind, evaluation: Evaluation, config: Config, wildcards: Wildcards
) -> Settings:
    """One part of a kind's grid; static keep sets must be those that are asked for."""
    corpus, part = wildcards["corpus"], evaluation.part
    grid = part_settings(config, kind.name, part, corpus)
    rules = {"kind": kind.name, "part": part, "grid": grid, "seeds": config.seeds()}
    if part == "windowed":
        rules["choice"] = wildcards["choice"]
    settings = {**_model_run(config, wildcards), "rules": rules}
    if part == "static":
        settings["chosen"] = chosen_by(config, kind.name, corpus)
    if part == "dynamic":
        draws, tokens = config.statistics.rounding_draws, config.statistics.rounding_tokens
        settings["noise"] = {"draws": draws, "tokens": tokens, "seed": config.seed}
    return settings


def _budgets(config: Config, wildcards: Wildcards) -> Settings:
    if config.budget is None:
        raise ConfigError("budget: this section is missing; shares of sites are allotted by it")
    budget = config.budget.model_dump(exclude={"corpora"})
    return {**_model_run(config, wildcards), "budget": budget}


def _slimming(config: Config, wildcards: Wildcards) -> Settings:
    if config.slim is None:
        raise ConfigError("slim: this section is missing; slimmer models are made by it")
    settings = config.slim.model_dump(exclude={"budgets", "corpus", "threads", "within", "dtype"})
    return {
        **_model_run(config, wildcards),
        "settings": {**settings, "budget": float(wildcards["budget"])},
    }


def _recipe_timing(config: Config, wildcards: Wildcards) -> Settings:
    if config.slim is None:
        raise ConfigError("slim: this section is missing; recipes are timed by it")
    settings = config.slim.model_dump(include={"tokens", "within"})
    names = {**wildcards, "corpus": config.slim.corpus}
    given = _model_run(config, names)
    run = {**given["run"], "dtype": config.slim.dtype}
    return {**given, "run": run, "settings": settings}


def _capability(config: Config, wildcards: Wildcards) -> Settings:
    corpus = config.capability.corpus
    kinds = {
        kind: {
            "tasks": task_settings(config, kind),
            "seeds": config.seeds(),
            "chosen": chosen_by(config, kind, corpus),
        }
        for kind in config.studied_kinds(wildcards["model"], corpus)
    }
    settings = {**_model_run(config, wildcards), "kinds": kinds}
    if config.capability.skilled_only:
        levels = config.statistics
        settings["skill"] = {"confidence": levels.confidence, "margin": levels.accuracy_margin}
    return settings


def _harness(config: Config, wildcards: Wildcards) -> Settings:
    return {**_capability(config, wildcards), **_harness_task(config, wildcards)}


def _lengths(config: Config, wildcards: Wildcards) -> Settings:
    state, kind = state_section(config).model_dump(), "state"
    return {
        **_model_run(config, wildcards),
        "rules": {"kind": kind, "state": state, "seeds": config.seeds()},
        "chosen": chosen_by(config, kind, wildcards["corpus"]),
    }


def _states(config: Config, wildcards: Wildcards) -> Settings:
    chosen = chosen_by(config, "state", wildcards["corpus"])
    return {**_model_run(config, wildcards), "chosen": chosen}


def _pruning(config: Config, wildcards: Wildcards) -> Settings:
    return {**_states(config, wildcards), "prune": state_section(config).prune.model_dump()}


def _expert_pruning(config: Config, wildcards: Wildcards) -> Settings:
    expert = config.expert
    if expert is None:
        raise ConfigError("expert: this section is missing; routed experts are cut by it")
    seed = config.seeds()[0]
    return {**_model_run(config, wildcards), "prune": {**expert.prune.model_dump(), "seed": seed}}


def _channels(config: Config, wildcards: Wildcards) -> Settings:
    return {**_levels(config, wildcards), **_identity(config, wildcards)}


def _claims(config: Config, wildcards: Wildcards) -> Settings:
    """What claims are judged by, and what is known of the models.

    `l1` are the models that were trained with a penalty on |h|, `induction` those whose training
    started near a hand-made circuit. A task that reads the first items of another task's source is
    not among the tasks: it repeats evidence, and has less of it.
    """
    trained = config.training.specimens if config.training else {}
    specimens = [name for name in config.active_models() if name in trained]
    tasks = {name: task.kind for name, task in config.tasks.items() if not _is_part(config, task)}
    settings = {
        "study": config.study,
        **_levels(config, wildcards),
        "tasks": tasks,
        "l1": [name for name in specimens if trained[name].l1 > 0],
        "induction": [name for name in specimens if trained[name].induction],
    }
    return {"settings": settings}


def _is_part(config: Config, task: Task) -> bool:
    return task.source is not None and any(
        (other.kind, other.source) == (task.kind, task.source) and other.items > task.items
        for other in config.tasks.values()
    )


def _training(config: Config) -> Training:
    """The section `training`.

    Raises:
        ConfigError: the configuration has none.
    """
    if config.training is None:
        raise ConfigError("training: this section is missing; specimens are trained by it")
    return config.training


def _training_data(config: Config, _: Wildcards) -> Settings:
    training = _training(config).model_dump(include=set(TrainingData.model_fields))
    return {
        "training": training,
        "sources": {name: _source(config, name) for name in training["corpora"]},
    }


def _specimen(config: Config, wildcards: Wildcards) -> Settings:
    name, training = wildcards["specimen"], _training(config).model_dump()
    training["specimens"] = {name: training["specimens"][name]}
    return {"name": name, "training": training, "device": config.device, "dtype": config.dtype}


def _gates(config: Config, _: Wildcards) -> Settings:
    training = _training(config).model_dump()
    return {"names": list(training["specimens"]), "training": training}


def _timing(config: Config) -> Settings:
    return {"settings": config.benchmark.model_dump(mode="json") if config.benchmark else {}}


def _block_timing(config: Config, _: Wildcards) -> Settings:
    run = {"device": config.device, "kernels": config.kernels.model_dump()}
    return {"study": config.study, **_timing(config), **run}


def _model_timing(config: Config, wildcards: Wildcards) -> Settings:
    model = wildcards["model"]
    run = _run(config, model)
    del run["batch_tokens"]
    run["gradients"] = bool(config.benchmark and config.needs_gradients(config.benchmark.corpus))
    identity = {"study": config.study, "model": model}
    return {"run": run, **_timing(config), "identity": identity}


def _step(function: str, given: Given = _nothing, code: str | None = "", **options: Any) -> Step:
    """A step of `keepset.steps`, "module:function"; its code is that module's where not said."""
    run = f"keepset.steps.{function}"
    return Step(run, given, run.partition(":")[0] if code == "" else code, **options)


_STEPS = {
    "prepare_model": _step(
        "prepare:prepare_model", _model, "keepset.models", network=True, beside=("checkpoint",)
    ),
    "prepare_corpus": _step("texts:prepare_corpus", _corpus, network=True),
    "prepare_task": _step("texts:prepare_task", _task, network=True),
    "prepare_harness": _step("harness:prepare_harness", _harness_data, network=True),
    "tokenize_corpus": _step("prepare:tokenize_corpus", _blocks),
    "cache_activations": _step("activations:cache_activations", _activations),
    "correlate_size_impact": _step("correlation:correlate_size_impact", _correlation),
    "evaluate_dense": _step("evaluation:evaluate_rules", _model_run),
    "evaluate_budgets": _step("budgets:evaluate_budgets", _budgets),
    "time_recipes": _step("gains:time_recipes", _recipe_timing, "keepset.speed.decoding"),
    "join_gains": _step("benchmark:join_benchmarks"),
    "slim_model": _step("budgets:slim_model", _slimming, "keepset.slim.slimming"),
    "evaluate_capability": _step("evaluation:evaluate_capability", _capability),
    "evaluate_harness": _step("harness:evaluate_harness", _harness),
    "score_experts": _step("experts:score_experts", _model_run),
    "prune_experts": _step("experts:prune_experts", _expert_pruning),
    "score_state": _step("states:score_state", _states),
    "evaluate_state_lengths": _step("evaluation:evaluate_lengths", _lengths),
    "correlate_state": _step(
        "significance:correlate_state", _channels, "keepset.analyse.correlation"
    ),
    "prune_state": _step("states:prune_state", _pruning),
    "join_perplexity": _step("tables:join_tables"),
    "join_correlations": _step("tables:join_tables"),
    "test_significance": _step("significance:test_significance", _levels),
    "compare_settings": _step("comparison:compare_settings", _levels),
    "sort_channels": _step("comparison:sort_channels"),
    "judge_claims": _step("claims:judge_claims", _claims),
    "write_tables": _step(
        "publish:write_tables", lambda config, _: {"confidence": config.statistics.confidence}
    ),
    # Training all specimens takes an hour or two: a change of code does not repeat it.
    "prepare_training": _step("training:prepare_training", _training_data, None, network=True),
    "train_specimen": _step("training:train_specimen", _specimen, None),
    "measure_specimens": _step("shipping:measure_specimens", _gates),
    "benchmark_kernels": _step("benchmark:benchmark_shapes", _block_timing, "keepset.speed.blocks"),
    "benchmark_model": _step("benchmark:benchmark_model", _model_timing, "keepset.speed.decoding"),
    "join_benchmarks": _step("benchmark:join_benchmarks"),
}


def all_steps() -> dict[str, Step]:
    """Rule of the workflow -> its step, those of kinds of sites and of figures among them."""
    grids = {
        evaluation.rule: _step(
            f"evaluation:{'evaluate_dynamic' if evaluation.rounding else 'evaluate_rules'}",
            partial(_evaluation, kind, evaluation),
        )
        for kind, evaluation in evaluations()
    }
    drawn = {f"draw_{name}": _drawing(figure) for name, figure in FIGURES.items()}
    losses = dict.fromkeys(
        ("draw_losses_training", "draw_losses_figures"), drawn["draw_loss_curve"]
    )
    return {**_STEPS, **grids, **drawn, **losses}


def _drawing(figure: Figure) -> Step:
    settings = {"figure": figure.name, "absent": figure.absent, "site": figure.site}
    return _step("drawing:draw", lambda *_: settings, f"keepset.report.figures.{figure.name}")
