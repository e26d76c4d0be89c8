"""Rules about the dial between dynamic and static, and about what predicts the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Found
from keepset.analyse.claims.evidence import Evidence, describe, groups
from keepset.analyse.claims.feedforward import ffn
from keepset.analyse.claims.runs import Setting

RISE = Bounds(low=0.0)
SPARSITIES = (0.5, 0.9)
NOTIONS = ("magnitude", "weight", "output")


def monotone(evidence: Evidence) -> Found:
    """C10: loss rises from dynamic over every oracle window to static, at 50% and 90%."""
    for model, origin in evidence.which(architecture=["transformer", "hybrid"]):
        found = False
        for corpus in evidence.corpora(model):
            for sparsity in SPARSITIES:
                steps = _dial(evidence, model, corpus, sparsity)
                if len(steps) < 3:
                    continue
                found = True
                effect = evidence.ratio(model, corpus, steps[-1], steps[0])
                assert effect is not None
                loss = _loss_table(evidence, model, corpus, steps)
                words = f"{describe(steps[-1])} / {describe(steps[0])}, {len(steps)} steps"
                rising = effects.rising(loss, effect)
                yield Case(model, origin, "ffn", corpus, words, "ratio", rising, RISE)
        if not found:
            yield f"no oracle windows at 50% or 90% for {model}"


def _dial(evidence: Evidence, model: str, corpus: str, sparsity: float) -> list[Setting]:
    """The settings from dynamic to static that were run, in order."""
    windows = _windows(evidence, model, corpus, sparsity, "oracle")
    if not windows:
        return []
    steps = [ffn("dynamic", "magnitude", sparsity)]
    steps += [_held(sparsity, window, "oracle") for window in windows]
    steps += [ffn("static", "magnitude", sparsity)]
    return [step for step in steps if evidence.losses(model, corpus, step) is not None]


def _held(sparsity: float, window: str, choice: str) -> Setting:
    return ffn("windowed", "magnitude", sparsity, window=window, choice=choice)


def _windows(
    evidence: Evidence, model: str, corpus: str, sparsity: float, choice: str
) -> list[str]:
    held = ffn("windowed", "magnitude", sparsity, choice=choice)
    return evidence.windows(model, corpus, held)


def _loss_table(
    evidence: Evidence, model: str, corpus: str, steps: list[Setting]
) -> NDArray[np.float64]:
    """Nats per token: (blocks, steps)."""
    columns = []
    for step in steps:
        run = evidence.losses(model, corpus, step)
        assert run is not None
        columns.append(run.values["nll"] / run.values["n_tokens"])
    return np.stack(columns, axis=1)


def causal_costs_more(evidence: Evidence) -> Found:
    """D3: at 90%, causal windows cost more than oracle windows of the same length."""
    for model, origin in evidence.which(architecture=["transformer", "hybrid"]):
        found = False
        for corpus in evidence.corpora(model):
            for window in _windows(evidence, model, corpus, 0.9, "causal"):
                causal = _held(0.9, window, "causal")
                oracle = (
                    ffn("dynamic", "magnitude", 0.9)
                    if window == "1"
                    else _held(0.9, window, "oracle")
                )
                effect = evidence.ratio(model, corpus, causal, oracle)
                if effect is not None:
                    found = True
                    words = f"{describe(causal)} / oracle"
                    yield Case(model, origin, "ffn", corpus, words, "ratio", effect, RISE)
        if not found:
            yield f"no causal and oracle windows at 90% for {model}"


def taylor_predicts(evidence: Evidence) -> Found:
    """D4: Taylor ranks units by their measured |change of the loss| better than other notions."""
    table = evidence.ablations
    if not len(table):
        yield "no single-unit ablations (set ablation: true for a corpus)"
        return
    for (model, origin, corpus), units in groups(table, "model", "origin", "corpus"):
        if "taylor" not in units or units["taylor"].isna().any():
            yield f"the Taylor score of the ablated units of {model}"
            continue
        for rival in NOTIONS:
            effect = effects.rank_correlation_gap(
                units["taylor"], units[rival], units["loss"].abs(), units["layer"],
                evidence.sampling,
            )  # fmt: skip
            words = f"Spearman with |loss change|: taylor less {rival}"
            yield Case(model, origin, "ffn", corpus, words, "correlation", effect, RISE)
