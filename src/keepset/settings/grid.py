"""The grid of the configuration as lists of keep rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keepset.rules.kinds import is_seeded
from keepset.rules.rule import Choice, Rule
from keepset.settings import (
    Benchmark,
    Capability,
    Dial,
    DynamicGrid,
    State,
    StateDial,
    StateStaticGrid,
    StaticGrid,
)


def _seeds(score: str, seeds: Sequence[int]) -> Sequence[int]:
    return seeds if is_seeded(score) else seeds[:1]


def static_rules(grid: StaticGrid, seeds: Sequence[int]) -> list[Rule]:
    """Every static setting: score x seed x sparsity."""
    return [
        Rule(score, sparsity, "corpus", seed=seed)
        for score in grid.scores
        for seed in _seeds(score, seeds)
        for sparsity in grid.sparsities
    ]


def dynamic_rules(grid: DynamicGrid, seeds: Sequence[int]) -> list[Rule]:
    """Every dynamic setting: score x seed x sparsity, W = 1."""
    return [
        Rule(score, sparsity, 1, seed=seed)
        for score in grid.scores
        for seed in _seeds(score, seeds)
        for sparsity in grid.sparsities
    ]


def windowed_rules(dial: Dial, choice: Choice, seeds: Sequence[int]) -> list[Rule]:
    """Every windowed setting of one choice: score x seed x window x sparsity.

    The oracle at W = 1 is the dynamic rule and is not run twice.
    """
    return [
        Rule(score, sparsity, window, choice, seed)
        for score in dial.scores
        for seed in _seeds(score, seeds)
        for window in dial.windows
        if (window, choice) != (1, "oracle")
        for sparsity in dial.sparsities
    ]


def capability_rules(capability: Capability, choices: Iterable[Choice]) -> list[Rule | None]:
    """Dense, static, dynamic and windowed at one sparsity."""
    score, sparsity = capability.score, capability.sparsity
    held = [Rule(score, sparsity, capability.window, choice) for choice in choices]
    return [None, Rule(score, sparsity, "corpus"), Rule(score, sparsity, 1), *held]


def state_static_rules(grid: StateStaticGrid, seeds: Sequence[int]) -> list[Rule]:
    """Every static setting of recurrent states: score x seed x sparsity."""
    return [
        Rule(score, sparsity, "corpus", seed=seed, site="state", access="both")
        for score in grid.scores
        for seed in _seeds(score, seeds)
        for sparsity in grid.sparsities
    ]


def state_windowed_rules(dial: StateDial, choice: Choice, seeds: Sequence[int]) -> list[Rule]:
    """Every windowed setting of recurrent states of one choice, W = 1 included."""
    return [
        Rule(score, sparsity, window, choice, seed, "state", access)
        for access in dial.access
        for score in dial.scores
        for seed in _seeds(score, seeds)
        for window in dial.windows
        for sparsity in dial.sparsities
    ]


def state_capability_rules(state: State, seeds: Sequence[int]) -> list[Rule]:
    """What tasks are run under: the static settings, and each access dynamic and windowed.

    Windowed rules are run at the largest of the sparsities, with the dial's first score.
    """
    dial, sparsity = state.windowed, max(state.capability.sparsities)
    held = [
        Rule(dial.scores[0], sparsity, window, choice, seeds[0], "state", access)
        for access in dial.access
        for window in dict.fromkeys((1, state.capability_window))
        for choice in dial.choices
        if (window, choice) != (1, "causal")
    ]
    return [*_state_task_rules(state, seeds), *held]


def state_length_rules(state: State, seeds: Sequence[int]) -> list[Rule]:
    """What longer passages are run under: of the tasks' static settings, some sparsities."""
    wanted = state.length_sparsities or state.capability.sparsities
    return [rule for rule in _state_task_rules(state, seeds) if rule.sparsity in wanted]


def _state_task_rules(state: State, seeds: Sequence[int]) -> list[Rule]:
    return state_static_rules(state.capability, seeds[: state.capability.random_seeds])


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
