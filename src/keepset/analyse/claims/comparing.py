"""How cases are made: what several rules share.

`traits` are columns of `Evidence.models` with the values that a claim speaks about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, Literal

from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Findings, NoEvidence
from keepset.analyse.claims.evidence import Evidence
from keepset.analyse.claims.runs import Setting, ffn, setting_name, state

RISE = Bounds(low=0.0)
FALL = Bounds(high=0.0)
WITH_FFN = ["transformer", "hybrid"]
MAMBA = "mamba2"
"""The kind of state that GHOST's claims, the study's, and ours about the same, speak about."""
NEARLY_ALL = 0.9
"""Leaving out this share of an FFN or state, or more, shows whether it does anything."""
IDLE = math.log(1.05)
"""A part is idle where that costs less than this, in nats per token."""


def ratio_cases(
    evidence: Evidence,
    a: Setting,
    b: Setting | None,
    value: Bounds,
    direction: Bounds | None = None,
    **traits: Any,
) -> Findings:
    """A case per model and corpus: the perplexity of setting `a` over that of `b`.

    `b` None is dense. `value` is where the claim says that the ratio lies (as a log), `direction`
    the same for specimens, where it differs.
    """
    site, name, other = a["site"], setting_name(a), setting_name(b)
    missing = f"{name} or {other} was not run on the {site} of"
    if b is None:
        missing = f"{name} was not run for"
    for model, origin in evidence.models_with(**traits):
        for corpus in evidence.corpora(model):
            effect = evidence.ratio(model, corpus, a, b)
            if effect is None:
                yield f"{missing} {model}"
                continue
            bounds = direction if direction and origin == "specimen" else value
            yield Case(model, origin, site, corpus, f"{name} / {other}", "ratio", effect, bounds)


def cheaper_cases(
    evidence: Evidence, setting: Setting, models: list[str], rivals: list[str], rival: str
) -> Findings:
    """A case per two specimens and corpus: what a setting costs one over what it costs the other.

    Both read the same text, so their costs are paired block by block.

    Args:
        setting: What is paid for.
        models: The specimens that should pay less.
        rivals: The specimens to compare with.
        rival: What a rival is, for the sentence that says that there is none.
    """
    if models and not rivals:
        yield f"{rival} to compare with"
    for model, other in product(models, rivals):
        for corpus in evidence.corpora(model):
            effect = evidence.cost_ratio(model, other, corpus, setting)
            if effect is None:
                yield f"{setting_name(setting)} was not run for {model} and {other}"
                continue
            compared = f"cost of {setting_name(setting)}: {model} / {other}"
            yield Case(model, "specimen", setting["site"], corpus, compared, "ratio", effect, FALL)


def specimens(evidence: Evidence, **traits: Any) -> list[str]:
    """Transformer specimens with these traits."""
    models = evidence.models_with(architecture="transformer", origin="specimen", **traits)
    return [model for model, _ in models]


def with_working(
    evidence: Evidence, site: Literal["ffn", "state"], **traits: Any
) -> tuple[list[tuple[str, str]], list[NoEvidence]]:
    """Models with these traits, and a sentence for every specimen among them with an idle part.

    A part (the FFN, or the state) of a specimen is idle where leaving out nearly all of it, for
    good, costs nearly nothing. Whatever is said of what its units cost cannot fail there, so it is
    no evidence.
    """
    working: list[tuple[str, str]] = []
    idle: list[NoEvidence] = []
    for model, origin in evidence.models_with(**traits):
        reason = _idle(evidence, model, site) if origin == "specimen" else None
        if reason is None:
            working.append((model, origin))
        else:
            idle.append(NoEvidence(reason))
    return working, idle


def _idle(evidence: Evidence, model: str, site: Literal["ffn", "state"]) -> str | None:
    """Why a part of a model is no evidence; None where it is, or where that is not known."""
    costs = {}
    rules: dict[str, Callable[..., Setting]] = {"ffn": ffn, "state": state}
    for corpus in evidence.corpora(model):
        sparsity = max(evidence.sparsities(model, corpus, site, "static", "magnitude"), default=0)
        cost = evidence.ratio(model, corpus, rules[site]("static", "magnitude", sparsity), None)
        if cost is not None and sparsity >= NEARLY_ALL:
            costs[cost.estimate] = f"{100 * sparsity:g}% of it left out for good"
    if not costs or max(costs) > IDLE:
        return None
    most = max(costs)
    part = {"ffn": "FFN", "state": "state"}[site]
    return f"the {part} of {model} is idle: {costs[most]} cost {100 * math.expm1(most):.1f}%"
