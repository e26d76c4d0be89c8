"""Keep rules from the configuration: the parts of a kind's grid, tasks, lengths, what is timed.

Grids come as plain data: what a step is given, and what a job's record holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from keepset.errors import ConfigError
from keepset.rules.kinds import KINDS, Part
from keepset.rules.rule import Choice, Rule, Window
from keepset.settings import Benchmark, Config, State

Settings = dict[str, Any]
_Section = TypeVar("_Section")
Seeds = Sequence[int]


def part_rules(
    kind: str, part: Part, grid: Mapping[str, Any], seeds: Seeds, choice: Choice = "oracle"
) -> list[Rule]:
    """Every rule of one part of a grid: access x score x seed x window x sparsity.

    Args:
        kind: The kind of site, a key of `KINDS`.
        part: static, dynamic or windowed.
        grid: scores and sparsities; of a dial also windows, and access where it restricts it.
        seeds: Of seeded scores; the others take the first.
        choice: Of windows. The oracle at W = 1 is left out where the kind has a dynamic part.
    """
    site = KINDS[kind]
    has_dynamic = any(evaluation.part == "dynamic" for evaluation in site.evaluations)
    windows: Sequence[Window]
    accesses: Sequence[str]
    if part == "static":
        windows, accesses = ["corpus"], [site.static_access]
    elif part == "dynamic":
        windows, accesses = [1], site.access[:1]
    else:
        covered = (1, "oracle") if has_dynamic else None
        windows = [window for window in grid["windows"] if (window, choice) != covered]
        accesses = grid.get("access", site.access)
    return [
        Rule(score, sparsity, window, choice, seed, kind, access)
        for access in accesses
        for score in grid["scores"]
        for seed in (seeds if site.scores[score].seeded else seeds[:1])
        for window in windows
        for sparsity in grid["sparsities"]
    ]


def _tasks_of_grid(kind: str, settings: Mapping[str, Any], _: Seeds) -> list[Rule]:
    """Static, dynamic and windowed at one sparsity."""
    capability, site = settings["capability"], KINDS[kind]
    score, sparsity = capability["score"], capability["sparsity"]
    held: list[tuple[Window, Choice]] = [(1, "oracle")]
    held += [(capability["window"], choice) for choice in settings["choices"]]
    return [
        Rule(score, sparsity, "corpus", site=kind, access=site.static_access),
        *(
            Rule(score, sparsity, window, choice, site=kind, access=access)
            for access in site.access
            for window, choice in held
        ),
    ]


def _tasks_of_state(kind: str, settings: Mapping[str, Any], seeds: Seeds) -> list[Rule]:
    """The static settings, and each access dynamic and windowed.

    Windowed rules are run at the largest of the sparsities, with the dial's first score.
    """
    state = settings["state"]
    dial, sparsity = state["windowed"], max(state["capability"]["sparsities"])
    held = [
        Rule(dial["scores"][0], sparsity, window, choice, seeds[0], kind, access)
        for access in dial["access"]
        for window in dict.fromkeys((1, state["capability_window"]))
        for choice in dial["choices"]
        if (window, choice) != (1, "causal")
    ]
    return [*_static_tasks(kind, state, seeds), *held]


def _static_tasks(kind: str, state: Mapping[str, Any], seeds: Seeds) -> list[Rule]:
    capability = state["capability"]
    return part_rules(kind, "static", capability, seeds[: capability["random_seeds"]])


def _tasks_of_inputs(kind: str, settings: Mapping[str, Any], _: Seeds) -> list[Rule]:
    """Static and at every token, by the first score, at the dial's largest sparsity."""
    grid, site = settings["input"], KINDS[kind]
    sparsity = max(grid["windowed"]["sparsities"])
    score = grid["windowed"]["scores"][0]
    windows: list[Window] = [1, "corpus"]
    return [Rule(score, sparsity, w, site=kind, access=site.static_access) for w in windows]


def _tasks_of_experts(kind: str, settings: Mapping[str, Any], seeds: Seeds) -> list[Rule]:
    """Static and at every token, at the largest sparsity of both; seeded scores are left out."""
    expert, site = settings["expert"], KINDS[kind]
    grids = {part: expert[part] for part in ("static", "windowed")}
    common = set.intersection(*(set(grid["sparsities"]) for grid in grids.values()))
    rules = [
        rule
        for part, grid in grids.items()
        for rule in part_rules(kind, part, {**grid, "windows": [1]}, seeds)  # type: ignore[arg-type]
        if not site.scores[rule.score].seeded
    ]
    return [rule for rule in rules if common and rule.sparsity == max(common)]


def length_rules(kind: str, state: Mapping[str, Any], seeds: Seeds) -> list[Rule]:
    """What longer passages are run under: of the tasks' static settings, some sparsities.

    `state` is the section of that name, as plain data.
    """
    sparsities = state["length_sparsities"] or state["capability"]["sparsities"]
    return [rule for rule in _static_tasks(kind, state, seeds) if rule.sparsity in sparsities]


def part_settings(config: Config, kind: str, part: Part, corpus: str) -> Settings:
    """One part of a kind's grid on a corpus, as plain data.

    Raises:
        ConfigError: the configuration has no section for this kind.
    """
    settings: Settings = getattr(_present(config.section(kind, corpus), kind), part).model_dump()
    return settings


def state_section(config: Config) -> State:
    """The section `state`.

    Raises:
        ConfigError: the configuration has none.
    """
    return _present(config.state, "state")


def _present(section: _Section | None, kind: str) -> _Section:
    if section is None:
        site = KINDS[kind]
        raise ConfigError(
            f"{site.section}: this section is missing; {site.units} are studied by it"
        )
    return section


@dataclass(frozen=True)
class Section:
    """What the section of the configuration that a kind's grid stands in says beside its parts.

    Attributes:
        chosen: (configuration, corpus) -> what static keep sets are chosen by.
        tasks: (configuration) -> what the rules of tasks are made from, as plain data.
        task_rules: (kind, that, seeds) -> the rules that tasks are run under.
    """

    chosen: Callable[[Config, str], Settings]
    tasks: Callable[[Config], Settings]
    task_rules: Callable[[str, Mapping[str, Any], Seeds], list[Rule]]


SECTIONS = {
    "grid": Section(
        chosen=lambda config, corpus: {"gradients": config.needs_gradients(corpus)},
        tasks=lambda config: {
            "capability": config.capability.model_dump(),
            "choices": config.grid.windowed.choices,
        },
        task_rules=_tasks_of_grid,
    ),
    "input": Section(
        chosen=lambda config, corpus: {"gradients": config.needs_gradients(corpus)},
        tasks=lambda config: {"input": _present(config.input, "input").model_dump()},
        task_rules=_tasks_of_inputs,
    ),
    "expert": Section(
        chosen=lambda *_: {},
        tasks=lambda config: {"expert": _present(config.expert, "expert").model_dump()},
        task_rules=_tasks_of_experts,
    ),
    "state": Section(
        chosen=lambda config, _: {
            "static": state_section(config).static.model_dump(),
            "seeds": config.seeds(),
        },
        tasks=lambda config: {"state": state_section(config).model_dump()},
        task_rules=_tasks_of_state,
    ),
}
"""By the key `Kind.section`; a kind without a section of its own runs under `grid`."""


def chosen_by(config: Config, kind: str, corpus: str) -> Settings:
    """What the static keep sets of a kind are chosen by on a corpus."""
    return SECTIONS[KINDS[kind].section].chosen(config, corpus)


def task_settings(config: Config, kind: str) -> Settings:
    """What `task_rules` of a kind are made from, as plain data."""
    return SECTIONS[KINDS[kind].section].tasks(config)


def task_rules(kind: str, settings: Mapping[str, Any], seeds: Seeds) -> list[Rule]:
    """The rules that tasks are run under; `settings` are what `task_settings` gives."""
    return SECTIONS[KINDS[kind].section].task_rules(kind, settings, seeds)


def benchmark_rules(benchmark: Benchmark) -> list[Rule]:
    """What a whole model is timed under: dynamic and static at every sparsity, windows at one.

    The oracle at W = 1 is the dynamic rule.
    """
    score, sparsity = benchmark.score, benchmark.sparsity
    choices: tuple[Choice, ...] = ("causal", "oracle")
    return [
        *(Rule(score, kappa, 1) for kappa in benchmark.sparsities),
        *(Rule(score, kappa, "corpus") for kappa in benchmark.sparsities),
        *(
            Rule(score, sparsity, window, choice)
            for choice in choices
            for window in benchmark.windows
            if (window, choice) != (1, "oracle")
        ),
    ]
