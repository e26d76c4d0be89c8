"""Rules about what a task keeps of its accuracy."""

from __future__ import annotations

from itertools import product

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import FALL, MAMBA, RISE, specimens
from keepset.analyse.claims.evidence import Evidence
from keepset.analyse.claims.runs import Setting, ffn, setting_name, state
from keepset.analyse.stats import Floats

DYNAMIC = ffn("dynamic", "magnitude", 0.9)

Answers = dict[str, tuple[Floats, Floats]]
"""Task -> correct by item: under a setting, and dense."""


def _answers(evidence: Evidence, model: str, setting: Setting) -> tuple[Answers, list[str]]:
    """The answers in each task that the model does at all, and what is missing."""
    answers: Answers = {}
    missing: list[str] = []
    for task in evidence.tasks_of(model):
        correct = evidence.answers(model, task, setting)
        if correct is None:
            missing.append(f"{setting_name(setting)} was not run for {model} on {task}")
        elif evidence.does_task(correct[1]):
            answers[task] = correct
        else:
            share = f"{100 * correct[1].mean():.0f}% of {task} right dense"
            missing.append(f"{model} gets {share}: too few to lose")
    return answers, missing if answers or missing else [f"a task that {model} was run on"]


def _against_dense(
    evidence: Evidence, model: str, origin: str, setting: Setting, bounds: Bounds
) -> Findings:
    answers, missing = _answers(evidence, model, setting)
    yield from missing
    compared = f"accuracy: {setting_name(setting)} less dense"
    for task, (correct, dense) in answers.items():
        effect = effects.accuracy_difference(correct, dense, evidence.statistics.confidence)
        yield Case(model, origin, setting["site"], task, compared, "difference", effect, bounds)


def relu_keeps(evidence: Evidence) -> Findings:
    """C7: dynamic at 90% within the margin of dense, in a specimen too."""
    margin = evidence.statistics.accuracy_margin
    for model, origin in evidence.models_with(architecture="transformer", ffn="relu"):
        yield from _against_dense(evidence, model, origin, DYNAMIC, Bounds(-margin, margin))


def relu_keeps_more(evidence: Evidence) -> Findings:
    """D8: dynamic at 90% leaves a ReLU specimen more of its accuracy than a SwiGLU specimen."""
    models = specimens(evidence, ffn="relu", l1=False)
    rivals = specimens(evidence, ffn="swiglu")
    if models and not rivals:
        yield "a SwiGLU specimen to compare with"
    for model, rival in product(models, rivals):
        yield from _keeps_more(evidence, model, rival)


def _keeps_more(evidence: Evidence, model: str, rival: str) -> Findings:
    answers, missing = _answers(evidence, model, DYNAMIC)
    yield from missing
    answers_of_rival, _ = _answers(evidence, rival, DYNAMIC)
    compared = f"accuracy kept under {setting_name(DYNAMIC)}: {model} less {rival}"
    for task, (correct, dense) in answers.items():
        if task not in answers_of_rival:
            yield f"{rival} on {task}"
            continue
        other, other_dense = answers_of_rival[task]
        costs = ((correct, dense), (other, other_dense))
        effect = effects.lost_accuracy(costs, evidence.statistics.confidence)
        yield Case(model, "specimen", "ffn", task, compared, "difference", effect, RISE)


def swiglu_loses(evidence: Evidence) -> Findings:
    """C8: dynamic at 90% loses more than the margin; in a specimen, loses."""
    value = Bounds(high=-evidence.statistics.accuracy_margin)
    for model, origin in evidence.models_with(architecture="transformer", ffn="swiglu"):
        bounds = FALL if origin == "specimen" else value
        yield from _against_dense(evidence, model, origin, DYNAMIC, bounds)


def recall_pays(evidence: Evidence) -> Findings:
    """C15: GHOST at 50% costs accuracy; in a specimen at 90%, on recall tasks."""
    for model, origin in evidence.models_with(state=MAMBA):
        specimen = origin == "specimen"
        setting = state("static", "ghost", 0.9 if specimen else 0.5)
        for finding in _against_dense(evidence, model, origin, setting, FALL):
            recall = isinstance(finding, str) or evidence.tasks.get(finding.where) == "recall"
            if recall or not specimen:
                yield finding
