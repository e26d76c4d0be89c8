"""Rules about the feed-forward site: size against weight, static against dynamic."""

from __future__ import annotations

import math
from itertools import combinations

import pandas as pd

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Found
from keepset.analyse.claims.evidence import Evidence, describe, matching
from keepset.analyse.claims.runs import Setting

WEAK = 0.5
"""A correlation of this size or more is not weak (Cohen 1988 calls it large)."""
SAME_CORRELATION = 0.1
"""Correlations within this of each other count as equal."""
COLLAPSE = math.log(100)
"""A hundredfold perplexity."""
MILD = math.log(2)
"""Twice the perplexity."""


def ffn(method: str, score: str, sparsity: float, **more: str) -> Setting:
    """A setting of the feed-forward site."""
    return {"site": "ffn", "method": method, "score": score, "sparsity": sparsity, **more}


def layers(evidence: Evidence, **wanted: str) -> pd.DataFrame:
    """Coefficients of single layers, those that are known."""
    table = evidence.correlation
    if not len(table):
        return table
    table = matching(table, wanted)
    return table[(table["layer"] >= 0) & table["spearman"].notna()]


def against_dense(
    evidence: Evidence, setting: Setting, value: Bounds, direction: Bounds, **wanted: object
) -> Found:
    """A case per model and corpus: the setting's perplexity relative to dense."""
    for model, origin in evidence.which(**wanted):
        for corpus in evidence.corpora(model):
            effect = evidence.ratio(model, corpus, setting, None)
            if effect is None:
                yield f"{describe(setting)} was not run for {model}"
                continue
            bounds = direction if origin == "specimen" else value
            words = f"{describe(setting)} / dense"
            yield Case(model, origin, "ffn", corpus, words, "ratio", effect, bounds)


def cheaper_than(
    evidence: Evidence, setting: Setting, model: str, rivals: list[str], corpus: str
) -> Found:
    """A case per rival: a specimen pays less for a setting than another specimen."""
    own = evidence.costs(model, corpus, setting)
    if own is None:
        yield f"{describe(setting)} was not run for {model}"
        return
    for rival in rivals:
        other = evidence.costs(rival, corpus, setting)
        if other is None:
            yield f"{describe(setting)} was not run for {rival}"
            continue
        effect = effects.mean_difference(own, other, "block", evidence.statistics.confidence)
        words = f"cost of {describe(setting)}: {model} / {rival}"
        yield Case(model, "specimen", "ffn", corpus, words, "ratio", effect, Bounds(high=0.0))


def weak_agreement(evidence: Evidence) -> Found:
    """C1: 0 < Spearman(mean |h|, ||w||) < 0.5; in a specimen, above 0."""
    yield from correlations(
        evidence, "ffn", "weight", Bounds(0.0, WEAK), Bounds(low=0.0),
        architecture=["transformer", "hybrid"],
    )  # fmt: skip


def correlations(
    evidence: Evidence, site: str, impact: str, value: Bounds, direction: Bounds, **wanted: object
) -> Found:
    """A case per model and corpus: the mean over layers of size's correlation with an impact."""
    for model, origin in evidence.which(**wanted):
        rows = layers(evidence, model=model, site=site, size="magnitude", impact=impact)
        if not len(rows):
            yield f"no correlation of size with {impact} at the {site} of {model}"
        for corpus, group in rows.groupby("corpus", sort=False) if len(rows) else ():
            effect = effects.mean(group["spearman"], "layer", evidence.statistics.confidence)
            bounds = direction if origin == "specimen" else value
            words = f"Spearman of size with {impact}"
            yield Case(model, origin, site, str(corpus), words, "correlation", effect, bounds)


def same_on_corpora(evidence: Evidence) -> Found:
    """C2: for every two corpora, the correlations differ by less than 0.1 over the layers."""
    bounds = Bounds(-SAME_CORRELATION, SAME_CORRELATION)
    for model, origin in evidence.which(architecture=["transformer", "hybrid"]):
        rows = layers(evidence, model=model, site="ffn", size="magnitude", impact="weight")
        by_corpus = (
            rows.pivot(index="layer", columns="corpus", values="spearman").dropna()
            if len(rows)
            else pd.DataFrame()
        )
        names = [name for name in dict.fromkeys(rows.get("corpus", ())) if name in by_corpus]
        if len(names) < 2:
            yield f"correlations of {model} on two corpora or more"
        for a, b in combinations(names, 2):
            effect = effects.correlation_difference(by_corpus[a], by_corpus[b], evidence.sampling)
            words = "Spearman of size with weight, one corpus less the other"
            where = f"{a} less {b}"
            yield Case(model, origin, "ffn", where, words, "correlation", effect, bounds)


def static_collapse(evidence: Evidence) -> Found:
    """C4: static magnitude at 90% / dense > 100; in a specimen, > 1."""
    yield from against_dense(
        evidence, ffn("static", "magnitude", 0.9), Bounds(low=COLLAPSE), Bounds(low=0.0),
        architecture="transformer",
    )  # fmt: skip


def relu_lossless(evidence: Evidence) -> Found:
    """C5: dynamic at 95% within the margin of dense; in a specimen, cheaper than for SwiGLU."""
    setting = ffn("dynamic", "magnitude", 0.95)
    yield from _lossless(evidence, setting, l1=False, rivals={"ffn": "swiglu"})


def l1_lossless(evidence: Evidence) -> Found:
    """C13: dynamic at 99% within the margin; in a specimen, cheaper than without the penalty."""
    setting = ffn("dynamic", "magnitude", 0.99)
    yield from _lossless(evidence, setting, l1=True, rivals={"ffn": "relu", "l1": False})


def _lossless(
    evidence: Evidence, setting: Setting, *, l1: bool, rivals: dict[str, object]
) -> Found:
    kind = {"architecture": "transformer", "ffn": "relu", "l1": l1}
    margin = math.log1p(evidence.statistics.perplexity_margin)
    same = Bounds(-margin, margin)
    yield from against_dense(evidence, setting, same, same, **kind, origin="pretrained")
    names = specimens(evidence, **rivals)
    for model, _ in evidence.which(**kind, origin="specimen"):
        if not names:
            yield f"a specimen to compare {model} with"
        for corpus in evidence.corpora(model):
            yield from cheaper_than(evidence, setting, model, names, corpus)


def specimens(evidence: Evidence, **wanted: object) -> list[str]:
    """Transformer specimens with these traits."""
    found = evidence.which(architecture="transformer", origin="specimen", **wanted)
    return [model for model, _ in found]


def swiglu_costly(evidence: Evidence) -> Found:
    """C6: dynamic at 95% / dense above the margin of C5; in a specimen, > 1."""
    margin = math.log1p(evidence.statistics.perplexity_margin)
    yield from against_dense(
        evidence, ffn("dynamic", "magnitude", 0.95), Bounds(low=margin), Bounds(low=0.0),
        architecture="transformer", ffn="swiglu",
    )  # fmt: skip


def hybrid_mild(evidence: Evidence) -> Found:
    """C9: static 90% and dynamic 95% / dense < 2; in a specimen, cheaper than for a transformer."""
    for setting in (ffn("static", "magnitude", 0.9), ffn("dynamic", "magnitude", 0.95)):
        mild = Bounds(high=MILD)
        kind = {"architecture": "hybrid"}
        yield from against_dense(evidence, setting, mild, mild, **kind, origin="pretrained")
        names = specimens(evidence, ffn="swiglu")
        for model, _ in evidence.which(**kind, origin="specimen"):
            if not names:
                yield f"a SwiGLU transformer specimen to compare {model} with"
            for corpus in evidence.corpora(model):
                yield from cheaper_than(evidence, setting, model, names, corpus)


def gradient_no_rescue(evidence: Evidence) -> Found:
    """C11: static Taylor at 90% costs more than dynamic magnitude at 90%."""
    static, dynamic = ffn("static", "taylor", 0.9), ffn("dynamic", "magnitude", 0.9)
    for model, origin in evidence.which(architecture="transformer"):
        found = False
        for corpus in evidence.corpora(model):
            effect = evidence.ratio(model, corpus, static, dynamic)
            if effect is not None:
                found = True
                words = f"{describe(static)} / {describe(dynamic)}"
                yield Case(model, origin, "ffn", corpus, words, "ratio", effect, Bounds(low=0.0))
        if not found:
            yield f"{describe(static)} was not run for {model}"
