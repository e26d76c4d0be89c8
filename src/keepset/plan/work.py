"""What passes through a model in a job: tokens, by rule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from keepset.plan.jobs import Job
from keepset.plan.sizes import Size
from keepset.settings import Config, Dial, DynamicGrid, State, StateStaticGrid, StaticGrid, Task

PASSAGE_WORDS = 75
"""Words of a LAMBADA passage (Paperno et al. 2016); of items of kind jsonl, for want of better."""
TOKENS_PER_WORD = 1.35
_IN_ORDER = {"ghost": "ghost", "ghost-uniform": "ghost", "ghost-separate": "separate"}
"""State scores that are taken again after every layer, by what they take: two share one pass."""


@dataclass(frozen=True)
class Work:
    """Tokens that pass through a model in one way.

    Attributes:
        tokens: How many, over all settings.
        length: Tokens per passage, which attention spans.
        batch: Tokens per forward pass.
        gradient: Whether the loss is differentiated.
        masked: Whether neurons are scored and masked at every token.
        stepped: Tokens that recurrent states are run over one by one, over all settings.
    """

    tokens: int
    length: int
    batch: int
    gradient: bool = False
    masked: bool = False
    stepped: int = 0


def work(config: Config, job: Job, size: Size) -> list[Work]:
    """What passes through the model in a job; nothing for jobs that run none."""
    if job.model is None or job.rule not in WORK:
        return []
    found = WORK[job.rule](_Study(config, job.model, size), job.wildcards)
    return [part for part in found if part.tokens]


def n_static(grid: StaticGrid | DynamicGrid | StateStaticGrid, seeds: int) -> int:
    """Settings of one kind: score x seed x sparsity; only `random` has seeds."""
    return _n_scores(grid.scores, seeds) * len(grid.sparsities)


def n_windowed(dial: Dial, choice: str, seeds: int, *, dynamic: bool = False) -> int:
    """Settings of a dial under one choice.

    Args:
        dial: The dial.
        choice: oracle or causal.
        seeds: Seeds of the random score.
        dynamic: Whether the oracle at W = 1 is among them; for neurons it is the dynamic rule.
    """
    windows = [w for w in dial.windows if dynamic or (w, choice) != (1, "oracle")]
    return _n_scores(dial.scores, seeds) * len(windows) * len(dial.sparsities)


def _n_scores(scores: Sequence[str], seeds: int) -> int:
    return sum(seeds if score == "random" else 1 for score in scores)


def item_tokens(task: Task) -> int:
    """Tokens of a task's items, about."""
    words: float = PASSAGE_WORDS
    if task.kind == "built":
        words = (task.min_words + task.max_words) / 2
    elif task.kind == "recall":
        facts, distances = task.facts, task.distances
        words = 3 + 2 * sum(facts) / len(facts) + sum(distances) / len(distances)
    return round(task.items * words * TOKENS_PER_WORD)


class _Study:
    """The lengths of one model's texts, and the work of its jobs."""

    def __init__(self, config: Config, model: str, size: Size) -> None:
        self.config, self.size = config, size
        self.block = config.text.block
        self.calibration = self._whole(config.text.calibration_tokens)
        self.evaluation = self._whole(config.evaluation_tokens(model))
        self.model = model
        self.seeds = config.random_seeds

    def _whole(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def run(self, tokens: int, length: int = 0, *, masked: bool = False, stepped: int = 0) -> Work:
        """`tokens` in blocks, or in passages of about `length` tokens, in full batches."""
        length = length or self.block
        batch = max(1, self.config.text.batch_tokens // length) * length
        return Work(tokens, length, batch, masked=masked, stepped=stepped)

    def gradients(self, tokens: int) -> Work:
        """The same with the loss differentiated, a quarter of a batch at a time."""
        batch = max(1, self.config.text.batch_tokens // 4 // self.block) * self.block
        return Work(tokens, self.block, batch, gradient=True)


def _activations(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    if study.config.needs_gradients(names["corpus"]):
        yield study.gradients(study.calibration)
    else:
        yield study.run(study.calibration)


def _correlation(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    """Single units are left out of one row each; a dense row goes before."""
    if not study.config.corpora[names["corpus"]].ablation:
        return
    ablation, rows = study.config.ablation, max(1, study.config.text.batch_tokens // study.block)
    blocks = min(-(-ablation.tokens // study.block), study.calibration // study.block)
    batches = 1 + math.ceil(ablation.units / rows)
    yield study.run(blocks * batches * rows * study.block, masked=True)


def _dense(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    yield study.run(study.evaluation)


def _static(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    grid = study.config.corpus_grid(names["corpus"]).static
    yield study.run(n_static(grid, study.seeds) * study.evaluation)


def _dynamic(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    grid = study.config.corpus_grid(names["corpus"]).dynamic
    yield study.run(n_static(grid, study.seeds) * study.evaluation, masked=True)


def _windowed(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    dial, choice = study.config.corpus_grid(names["corpus"]).windowed, names["choice"]
    yield study.run(n_windowed(dial, choice, study.seeds) * study.evaluation, masked=True)
    if choice == "causal":
        yield study.run(_n_scores(dial.scores, study.seeds) * study.block)


def _capability(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    config, corpus = study.config, study.config.capability.corpus
    task = config.tasks[names["task"]]
    tokens, length = item_tokens(task), max(1, item_tokens(task) // task.items)
    yield study.run(tokens, length)
    if config.studies(study.model, "ffn", corpus):
        choices = len(config.corpus_grid(corpus).windowed.choices)
        yield study.run(tokens * (2 + choices), length, masked=True)
    if config.state is not None and config.studies(study.model, "state", corpus):
        yield study.run(tokens * n_static(config.state.capability, _task_seeds(study)), length)
        dial = config.state.windowed
        steps = [
            _steps(access, choice)
            for access in dial.access
            for choice in dial.choices
            for window in dict.fromkeys((1, config.state.capability_window))
            if (window, choice) != (1, "causal")
        ]
        yield study.run(tokens * len(steps), length, stepped=tokens * sum(steps))


def _task_seeds(study: _Study) -> int:
    """Seeds of the random score in what tasks are run under, for states."""
    return min(study.seeds, _state(study).capability.random_seeds or study.seeds)


def _steps(access: str, choice: str) -> int:
    """How often a windowed rule runs a state token by token (`keepset.hold.state`)."""
    return 1 if access == "read" else 2 + (choice == "causal")


def _score_state(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    """A pass for the sums, one for Taylor, and those in order of layers."""
    state, size = study.config.state, study.size
    assert state is not None
    tokens, batch_tokens = study.calibration, study.config.text.batch_tokens
    batch = max(batch_tokens, min(tokens, 16 * batch_tokens))
    passes = len({_IN_ORDER[s] for s in state.static.scores if s in _IN_ORDER})
    passes *= len(state.static.sparsities)
    # Text that is more than one batch takes a pass per layer, up to it; a layer is scored once.
    depth = 1.0 if tokens <= batch else (size.state_layers + 1) / 2
    yield Work(tokens, study.block, batch, stepped=tokens)
    yield Work(round(passes * tokens * depth), study.block, batch, stepped=passes * tokens)
    if "taylor" in state.static.scores:
        yield study.gradients(tokens)
    # What scoring takes in memory is measured on one block and on two.
    small = 3 * study.block
    yield Work(2 * small, study.block, 2 * study.block, stepped=small)
    yield Work(small, study.block, 2 * study.block, gradient=True)


def _evaluate_state(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    state = _state(study)
    yield study.run(n_static(state.static, study.seeds) * study.evaluation)


def _state_windowed(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    dial, choice = _state(study).windowed, names["choice"]
    rules = n_windowed(dial, choice, study.seeds, dynamic=True)
    for access in dial.access:
        tokens, lead_ins = rules * study.evaluation, rules * study.block
        yield study.run(tokens, stepped=tokens * _steps(access, choice))
        if choice == "causal":
            yield study.run(lead_ins, stepped=lead_ins)


def _lengths(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    state = _state(study)
    wanted = state.length_sparsities or state.capability.sparsities
    rules = 1 + _n_scores(state.capability.scores, _task_seeds(study)) * len(wanted)
    for factor in state.lengths:
        length = factor * study.block
        if not study.size.positions or length <= study.size.positions:
            yield study.run(rules * (study.evaluation // length) * length, length)


def _prune(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    """Dense, masked, and cut."""
    yield study.run(3 * study.evaluation)


def _state(study: _Study) -> State:
    assert study.config.state is not None
    return study.config.state


WORK = {
    "cache_activations": _activations,
    "correlate_size_impact": _correlation,
    "evaluate_dense": _dense,
    "evaluate_static": _static,
    "evaluate_dynamic": _dynamic,
    "evaluate_windowed": _windowed,
    "evaluate_capability": _capability,
    "score_state": _score_state,
    "evaluate_state": _evaluate_state,
    "evaluate_state_windowed": _state_windowed,
    "evaluate_state_lengths": _lengths,
    "prune_state": _prune,
}
