"""Rules about the feed-forward site: size against weight, static against dynamic."""

from __future__ import annotations

import math
from itertools import combinations

import pandas as pd

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds, Effect
from keepset.analyse.claims import correlations
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import (
    RISE,
    WITH_FFN,
    cheaper_cases,
    ratio_cases,
    specimens,
    with_working,
)
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.claims.runs import ffn, setting_name

WEAK = 0.5
"""A correlation of this size or more is not weak (Cohen 1988 calls it large)."""
SAME_CORRELATION = 0.1
"""Correlations within this of each other count as equal."""
COLLAPSE = math.log(100)
"""A hundredfold perplexity."""
MILD = math.log(2)
"""Twice the perplexity."""


def weak_agreement(evidence: Evidence) -> Findings:
    """C1: 0 < Spearman(mean |h|, ||w||) < 0.5; in a specimen, above 0."""
    models = list(evidence.models_with(architecture=WITH_FFN))
    value = Bounds(0.0, WEAK)
    yield from correlations.size_correlations(evidence, models, "ffn", "weight", value, RISE)


def same_on_corpora(evidence: Evidence) -> Findings:
    """C2: for every two corpora, the means over layers differ by less than 0.1."""
    bounds = Bounds(-SAME_CORRELATION, SAME_CORRELATION)
    for model, origin in evidence.models_with(architecture=WITH_FFN):
        layers = evidence.size_by_layer(model, "ffn", "weight")
        by_corpus = {corpus: rows for (corpus,), rows in groups(layers, "corpus")}
        if len(by_corpus) < 2:
            yield f"correlations of {model} on two corpora or more"
        for a, b in combinations(by_corpus, 2):
            effect = _difference(by_corpus[a], by_corpus[b], evidence)
            effect = correlations.limited(effect, evidence, a, b)
            compared = "Spearman of size with weight, one corpus less the other"
            compared = correlations.named(compared, effect)
            where = f"{a} less {b}"
            yield Case(model, origin, "ffn", where, compared, "correlation", effect, bounds)


def _difference(a: pd.DataFrame, b: pd.DataFrame, evidence: Evidence) -> Effect:
    """The mean over the layers known on both corpora, of one less that of the other."""
    known = [correlations.known_layers(rows).index for rows in (a, b)]
    layers = known[0].intersection(known[1])
    one, other = (
        correlations.mean_over_layers(rows[rows["layer"].isin(layers)]) for rows in (a, b)
    )
    documents = min(correlations.n_documents(rows) for rows in (a, b))
    confidence = evidence.statistics.confidence
    return effects.difference(one, other, confidence, n=documents, unit="document")


def static_collapse(evidence: Evidence) -> Findings:
    """C4: static magnitude at 90% / dense > 100; in a specimen, > 1."""
    setting, value = ffn("static", "magnitude", 0.9), Bounds(low=COLLAPSE)
    yield from ratio_cases(evidence, setting, None, value, RISE, architecture="transformer")


def relu_lossless(evidence: Evidence) -> Findings:
    """C5: dynamic at 95% within the margin of dense, in a specimen too."""
    yield from _lossless(evidence, 0.95, l1=False)


def l1_lossless(evidence: Evidence) -> Findings:
    """C13: dynamic at 99% within the margin of dense, in a specimen too."""
    yield from _lossless(evidence, 0.99, l1=True)


def _lossless(evidence: Evidence, sparsity: float, *, l1: bool) -> Findings:
    margin = math.log1p(evidence.statistics.perplexity_margin)
    yield from ratio_cases(
        evidence, ffn("dynamic", "magnitude", sparsity), None, Bounds(-margin, margin),
        architecture="transformer", ffn="relu", l1=l1,
    )  # fmt: skip


def relu_pays_less(evidence: Evidence) -> Findings:
    """D6: dynamic at 95% costs a ReLU specimen less than a SwiGLU specimen."""
    models = specimens(evidence, ffn="relu", l1=False)
    rivals = specimens(evidence, ffn="swiglu")
    setting = ffn("dynamic", "magnitude", 0.95)
    yield from cheaper_cases(evidence, setting, models, rivals, "a SwiGLU specimen")


def penalty_pays(evidence: Evidence) -> Findings:
    """D7: dynamic at 99% costs a ReLU specimen less if it was trained with an L1 penalty."""
    models = specimens(evidence, ffn="relu", l1=True)
    rivals = specimens(evidence, ffn="relu", l1=False)
    setting = ffn("dynamic", "magnitude", 0.99)
    yield from cheaper_cases(evidence, setting, models, rivals, "a specimen without the penalty")


def swiglu_costly(evidence: Evidence) -> Findings:
    """C6: dynamic at 95% / dense above the margin of C5; in a specimen, > 1."""
    margin = math.log1p(evidence.statistics.perplexity_margin)
    yield from ratio_cases(
        evidence, ffn("dynamic", "magnitude", 0.95), None, Bounds(low=margin), RISE,
        architecture="transformer", ffn="swiglu",
    )  # fmt: skip


def hybrid_mild(evidence: Evidence) -> Findings:
    """C9: static 90% and dynamic 95% / dense < 2, in a specimen too, unless its FFN is idle."""
    working, idle = with_working(evidence, "ffn", architecture="hybrid")
    yield from idle
    for setting in (ffn("static", "magnitude", 0.9), ffn("dynamic", "magnitude", 0.95)):
        for model, _ in working:
            yield from ratio_cases(evidence, setting, None, Bounds(high=MILD), model=model)


def gradient_no_rescue(evidence: Evidence) -> Findings:
    """C11: static Taylor at 90% costs more than dynamic magnitude at 90%."""
    static, dynamic = ffn("static", "taylor", 0.9), ffn("dynamic", "magnitude", 0.9)
    for model, _ in evidence.models_with(architecture="transformer"):
        findings = ratio_cases(evidence, static, dynamic, RISE, model=model)
        cases: list[Case | str] = [case for case in findings if isinstance(case, Case)]
        yield from cases or [f"{setting_name(static)} was not run for {model}"]
