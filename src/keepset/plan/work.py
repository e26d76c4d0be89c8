"""What passes through a model in a job: tokens, by rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from keepset.plan.jobs import Job
from keepset.plan.sizes import Size
from keepset.rules.kinds import KINDS, Evaluation, Kind, evaluations
from keepset.rules.rule import Choice, Rule
from keepset.rules.scores import CHANNEL_SCORES
from keepset.settings import Config, Task
from keepset.settings.grid import (
    length_rules,
    part_rules,
    part_settings,
    state_section,
    task_rules,
    task_settings,
)
from keepset.settings.measuring import MOST_GROUPS

PASSAGE_WORDS = 75
"""Words of a LAMBADA passage (Paperno et al. 2016); taken for items of other files too."""
TOKENS_PER_WORD = 1.35


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
        float32: Whether the model runs in float32 whatever the study's dtype is.
    """

    tokens: int
    length: int
    batch: int
    gradient: bool = False
    masked: bool = False
    stepped: int = 0
    float32: bool = False


def work(config: Config, job: Job, size: Size) -> list[Work]:
    """What passes through the model in a job; nothing for jobs that run none."""
    if job.model is None or not runs_model(job):
        return []
    study = _Study(config, job.model, size)
    count = WORK.get(job.rule) or partial(_evaluation, *_grids()[job.rule])
    return [part for part in count(study, job.wildcards) if part.tokens]


def runs_model(job: Job) -> bool:
    """Whether a job loads the weights of its model to run it."""
    return job.rule in WORK or job.rule in _grids()


def _grids() -> dict[str, tuple[Kind, Evaluation]]:
    return {evaluation.rule: (kind, evaluation) for kind, evaluation in evaluations()}


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
        self.calibration = self._in_blocks(config.text.calibration_tokens)
        self.evaluation = self._in_blocks(config.evaluation_tokens(model))
        self.sameness = self._in_blocks(config.sameness_tokens(model))
        statistics = config.statistics
        again = self._in_blocks(statistics.rounding_tokens or self.evaluation)
        self.rounding = statistics.rounding_draws * min(again, self.evaluation)
        self.model = model

    def _in_blocks(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def run(self, tokens: int, length: int = 0, *, masked: bool = False, stepped: int = 0) -> Work:
        """`tokens` in blocks, or in passages of about `length` tokens, in full batches."""
        length = length or self.block
        batch = max(1, self.config.text.batch_tokens // length) * length
        return Work(tokens, length, batch, masked=masked, stepped=stepped)

    def under(
        self, kind: Kind, rules: Sequence[Rule], tokens: int, length: int = 0, dynamic: int = 0
    ) -> Work:
        """`tokens` under each of the rules of a kind, which are all static, or none is.

        `dynamic` are the tokens of dynamic rules, where not as many.
        """
        each = [(dynamic if rule.method == "dynamic" else 0) or tokens for rule in rules]
        held = [(rule, n) for rule, n in zip(rules, each, strict=True) if rule.method != "static"]
        stepped = sum(kind.steps(rule.access, rule.choice) * n for rule, n in held)
        return self.run(sum(each), length, masked=kind.masks and bool(held), stepped=stepped)

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
    """Single units are left out of one row each; a dense row goes before.

    The text is of whole groups of calibration documents, with as many blocks in each.
    """
    if not study.config.corpora[names["corpus"]].ablation:
        return
    ablation, rows = study.config.ablation, max(1, study.config.text.batch_tokens // study.block)
    most = study.calibration // study.block
    group = math.ceil(most / MOST_GROUPS)
    blocks = min(group * math.ceil(ablation.tokens / study.block / group), most)
    batches = 1 + math.ceil(ablation.units / rows)
    work = study.run(blocks * batches * rows * study.block, masked=True)
    yield replace(work, float32=True)


def _dense(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    yield study.run(study.sameness)


def _evaluation(
    kind: Kind, evaluation: Evaluation, study: _Study, names: Mapping[str, str]
) -> Iterator[Work]:
    """One part of a kind's grid."""
    grid = part_settings(study.config, kind.name, evaluation.part, names["corpus"])
    choice = cast(Choice, names.get("choice", "oracle"))
    rules = part_rules(kind.name, evaluation.part, grid, study.config.seeds(), choice)
    again = study.rounding if evaluation.rounding else 0
    for group in _by_access(rules):
        yield study.under(kind, group, study.evaluation, dynamic=study.sameness + again)
    if choice == "causal" and rules:
        # The text before is scored once for all rules.
        stepped = study.evaluation if kind.steps(rules[0].access, choice) else 0
        yield study.run(study.evaluation, stepped=stepped)


def _by_access(rules: Iterable[Rule]) -> list[list[Rule]]:
    """The rules by what a unit that is left out loses."""
    groups: dict[str, list[Rule]] = {}
    for rule in rules:
        groups.setdefault(rule.access, []).append(rule)
    return list(groups.values())


def _capability(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    config, task = study.config, study.config.tasks[names["task"]]
    tokens, length = item_tokens(task), max(1, item_tokens(task) // task.items)
    yield study.run(tokens, length)
    for kind in config.studied_kinds(study.model, config.capability.corpus):
        rules = task_rules(kind, task_settings(config, kind), config.seeds())
        static = [rule for rule in rules if rule.method == "static"]
        for group in (static, [rule for rule in rules if rule not in static]):
            yield study.under(KINDS[kind], group, tokens, length)


def _score_state(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    """A pass for the sums, one for Taylor, and those in order of layers."""
    grid, size = state_section(study.config).static, study.size
    scores = [CHANNEL_SCORES[name] for name in grid.scores]
    tokens, batch_tokens = study.calibration, study.config.text.batch_tokens
    batch = max(batch_tokens, min(tokens, 16 * batch_tokens))
    # Scores that share a function share its pass.
    passes = len({score.static for score in scores if score.in_order}) * len(grid.sparsities)
    # Text that is more than one batch takes a pass per layer, up to it; a layer is scored once.
    depth = 1.0 if tokens <= batch else (size.state_layers + 1) / 2
    # What a channel does is measured, one at a time, where it is not known from the state.
    measured = size.n_state if size.interacts else 0
    yield Work(tokens, study.block, batch, stepped=tokens * (1 + measured))
    yield Work(round(passes * tokens * depth), study.block, batch, stepped=passes * tokens)
    if any(score.gradients for score in scores):
        yield study.gradients(tokens)
    # What scoring takes in memory is measured on one block and on two.
    small = 3 * study.block
    yield Work(2 * small, study.block, 2 * study.block, stepped=small)
    yield Work(small, study.block, 2 * study.block, gradient=True)


def _score_experts(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    """A pass, and about one more for the experts that are left out one at a time."""
    yield study.run(2 * study.calibration)


def _lengths(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    state = state_section(study.config)
    rules = 1 + len(length_rules("state", state.model_dump(), study.config.seeds()))
    for factor in state.lengths:
        length = factor * study.block
        if not study.size.positions or length <= study.size.positions:
            yield study.run(rules * (study.evaluation // length) * length, length)


def _prune(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    """Dense, masked, and cut."""
    yield study.run(3 * study.evaluation)


WORK = {
    "cache_activations": _activations,
    "correlate_size_impact": _correlation,
    "evaluate_dense": _dense,
    "evaluate_capability": _capability,
    "evaluate_harness": _capability,
    "score_experts": _score_experts,
    "score_state": _score_state,
    "evaluate_state_lengths": _lengths,
    "prune_state": _prune,
    "prune_experts": _prune,
}
