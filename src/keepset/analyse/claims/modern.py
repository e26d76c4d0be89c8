"""Rules about what today's models have: experts, memories of the delta rule, two parts in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keepset.analyse.bounds import Bounds
from keepset.analyse.claims import correlations
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import (
    FALL,
    RISE,
    ratio_cases,
    with_working,
)
from keepset.analyse.claims.evidence import Evidence
from keepset.analyse.claims.feedforward import WEAK
from keepset.analyse.claims.runs import Setting, expert, ffn, inputs, state

DELTA = "delta"
STATIC_SCORES = ("magnitude", "impact")


def experts_are_scratch(evidence: Evidence) -> Findings:
    """E1: as many experts chosen at every token cost less than chosen once, by size or impact.

    At the largest sparsity that both were run at: there fewer experts are left than a token is
    routed to, so that both rules leave something out.
    """
    for model, _ in evidence.models_with():
        if not _has_experts(evidence, model):
            continue
        for score in STATIC_SCORES:
            yield from _fewest(evidence, model, score)


def _has_experts(evidence: Evidence, model: str) -> bool:
    """Whether its family routes to experts, or its experts were studied."""
    known = {name for name, _ in evidence.models_with(experts=True)}
    corpora = evidence.corpora(model)
    return model in known or any(
        evidence.sparsities(model, corpus, "expert", "static", score)
        for corpus in corpora
        for score in STATIC_SCORES
    )


def _fewest(evidence: Evidence, model: str, score: str) -> Findings:
    compared = False
    for corpus in evidence.corpora(model):
        rules = (("expert", "dynamic", "magnitude"), ("expert", "static", score))
        dynamic, static = (set(evidence.sparsities(model, corpus, *rule)) for rule in rules)
        if not dynamic & static:
            continue
        compared = True
        most = max(dynamic & static)
        per_token, once = expert("dynamic", "magnitude", most), expert("static", score, most)
        findings = ratio_cases(evidence, per_token, once, FALL, model=model)
        yield from (one for one in findings if isinstance(one, Case) and one.where == corpus)
    if not compared:
        yield f"dynamic magnitude and static {score} of the experts of {model} at one sparsity"


def delta_as_mamba(evidence: Evidence) -> Findings:
    """E2: in a delta rule's state size is no guide, and a set chosen again forgets.

    Spearman of weight with energy below 0.5, and the ratios of D1 above 1.
    """
    models, no_evidence = correlations.states_as_trained(evidence, DELTA)
    weak = Bounds(high=WEAK)
    yield from no_evidence
    yield from correlations.size_correlations(evidence, models, "state", "ghost", weak, weak)
    yield from _rechosen(evidence, state=DELTA)


def _rechosen(evidence: Evidence, **traits: Any) -> Findings:
    """Channels re-chosen at every token, by size or impact, the rest forgotten / a GHOST set."""
    for score in ("magnitude", "impact"):
        write, ghost = state("dynamic", score, 0.9, "write"), state("static", "ghost", 0.9)
        yield from ratio_cases(evidence, write, ghost, RISE, **traits)


def parts_want_opposites(evidence: Evidence) -> Findings:
    """E3: in one model, dynamic / static is below 1 for the FFN and above 1 for the state.

    Neurons by size; channels by size and by impact at every token, forgotten where not kept,
    against one GHOST set. All at 90%, in models whose FFN and state are both in use.
    """
    traits = {"architecture": "hybrid", "experts": False}
    with_ffn, idle = with_working(evidence, "ffn", **traits)
    with_state, empty = with_working(evidence, "state", **traits)
    yield from (*idle, *empty)
    for model, _ in with_ffn:
        if model in {name for name, _ in with_state}:
            yield from _opposites(evidence, model, ffn)


def recurrent_parts_want_opposites(evidence: Evidence) -> Findings:
    """F1: the same in a model without an FFN, whose scratch-work are its projections."""
    with_state, empty = with_working(evidence, "state", architecture="recurrent")
    yield from empty
    for model, _ in with_state:
        yield from _opposites(evidence, model, inputs)


def _opposites(evidence: Evidence, model: str, scratch: Callable[..., Setting]) -> Findings:
    """The scratch-work of a model by size, and its state by size and impact."""
    per_token, once = (scratch(method, "magnitude", 0.9) for method in ("dynamic", "static"))
    yield from ratio_cases(evidence, per_token, once, FALL, model=model)
    yield from _rechosen(evidence, model=model)
