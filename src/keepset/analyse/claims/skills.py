"""Rules about what a task keeps of its accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Found
from keepset.analyse.claims.evidence import Evidence, describe, same_items
from keepset.analyse.claims.feedforward import ffn, specimens
from keepset.analyse.claims.runs import Setting

DYNAMIC = ffn("dynamic", "magnitude", 0.9)
STATE = {"site": "state", "method": "static", "score": "ghost", "access": "both"}

Answers = tuple[str, NDArray[np.float64], NDArray[np.float64]]


def _answered(evidence: Evidence, model: str, setting: Setting) -> list[Answers | str]:
    """(task, under the setting, dense) of each task that the model does at all."""
    found: list[Answers | str] = []
    for task in evidence.tasks_of(model):
        here, dense = evidence.answers(model, task, setting), evidence.answers(model, task, None)
        if here is None or dense is None:
            found.append(f"{describe(setting)} was not run for {model} on {task}")
            continue
        same_items(here, dense, f"{model} {task}: {describe(setting)} and dense")
        right = dense.values["correct"]
        if not evidence.does(right):
            share = f"{100 * right.mean():.0f}% of {task} right dense"
            found.append(f"{model} gets {share}: too few to lose")
        else:
            found.append((task, here.values["correct"], right))
    return found or [f"a task that {model} was run on"]


def _against_dense(
    evidence: Evidence, model: str, origin: str, setting: Setting, bounds: Bounds
) -> Found:
    site = str(setting["site"])
    for found in _answered(evidence, model, setting):
        if isinstance(found, str):
            yield found
            continue
        task, here, dense = found
        effect = effects.accuracy_difference(here, dense, evidence.statistics.confidence)
        words = f"accuracy: {describe(setting)} less dense"
        yield Case(model, origin, site, task, words, "difference", effect, bounds)


def relu_keeps(evidence: Evidence) -> Found:
    """C7: dynamic at 90% within the margin of dense; in a specimen, loses less than SwiGLU."""
    margin = evidence.statistics.accuracy_margin
    kind = {"architecture": "transformer", "ffn": "relu"}
    for model, origin in evidence.which(**kind, origin="pretrained"):
        yield from _against_dense(evidence, model, origin, DYNAMIC, Bounds(-margin, margin))
    for model, _ in evidence.which(**kind, origin="specimen"):
        rivals = specimens(evidence, ffn="swiglu")
        if not rivals:
            yield f"a SwiGLU specimen to compare {model} with"
        for rival in rivals:
            yield from _loses_less(evidence, model, rival)


def _loses_less(evidence: Evidence, model: str, rival: str) -> Found:
    own = _answered(evidence, model, DYNAMIC)
    yield from (found for found in own if isinstance(found, str))
    others = {f[0]: f for f in _answered(evidence, rival, DYNAMIC) if not isinstance(f, str)}
    for found in own:
        if isinstance(found, str):
            continue
        task, here, dense = found
        if task not in others:
            yield f"{rival} on {task}"
            continue
        _, there, there_dense = others[task]
        effect = effects.mean_difference(
            here - dense,
            there - there_dense,
            "item",
            evidence.statistics.confidence,
        )
        words = f"accuracy lost to {describe(DYNAMIC)}: {model} less {rival}"
        case = ("specimen", "ffn", task, words, "difference")
        yield Case(model, *case, effect, Bounds(low=0.0))  # type: ignore[arg-type]


def swiglu_loses(evidence: Evidence) -> Found:
    """C8: dynamic at 90% loses more than the margin; in a specimen, loses."""
    margin = evidence.statistics.accuracy_margin
    for model, origin in evidence.which(architecture="transformer", ffn="swiglu"):
        bounds = Bounds(high=0.0 if origin == "specimen" else -margin)
        yield from _against_dense(evidence, model, origin, DYNAMIC, bounds)


def recall_pays(evidence: Evidence) -> Found:
    """C15: GHOST at 50% costs accuracy; in a specimen at 90%, on recall tasks."""
    for model, origin in evidence.which(architecture=["recurrent", "hybrid"]):
        specimen = origin == "specimen"
        setting = {**STATE, "sparsity": 0.9 if specimen else 0.5}
        for found in _against_dense(evidence, model, origin, setting, Bounds(high=0.0)):
            other = isinstance(found, Case) and evidence.tasks.get(found.where) != "recall"
            if not (specimen and other):
                yield found
