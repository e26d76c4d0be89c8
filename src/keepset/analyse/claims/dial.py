"""Rules about the dial between dynamic and static, and about what predicts the loss."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from keepset.analyse import effects
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import RISE, WITH_FFN
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.claims.runs import Run, Setting, ffn, setting_name

SPARSITIES = (0.5, 0.9)
NOTIONS = ("magnitude", "weight", "output")


def monotone(evidence: Evidence) -> Findings:
    """C10: loss rises from dynamic over every oracle window to static, at 50% and 90%."""
    for model, origin in evidence.models_with(architecture=WITH_FFN):
        cases: list[Case | str] = list(_rises(evidence, model, origin))
        yield from cases or [f"no oracle windows at 50% or 90% for {model}"]


def _rises(evidence: Evidence, model: str, origin: str) -> Iterator[Case]:
    for corpus in evidence.corpora(model):
        for sparsity in SPARSITIES:
            steps = _dial(evidence, model, corpus, sparsity)
            if len(steps) < 3:
                continue
            (first, _), *_, (last, _) = steps
            first_to_last = evidence.ratio(model, corpus, last, first)
            assert first_to_last is not None
            compared = f"{setting_name(last)} / {setting_name(first)}, {len(steps)} steps"
            losses = [run.values["nll"] / run.values["n_tokens"] for _, run in steps]
            effect = effects.rising(np.stack(losses, axis=1), first_to_last)
            yield Case(model, origin, "ffn", corpus, compared, "ratio", effect, RISE)


def _dial(
    evidence: Evidence, model: str, corpus: str, sparsity: float
) -> list[tuple[Setting, Run]]:
    """The settings from dynamic to static that were run, in order; none without windows."""
    any_window = ffn("windowed", "magnitude", sparsity, choice="oracle")
    windows = evidence.windows(model, corpus, any_window)
    steps = [
        ffn("dynamic", "magnitude", sparsity),
        *(_windowed(sparsity, window, "oracle") for window in windows),
        ffn("static", "magnitude", sparsity),
    ]
    runs = [(step, evidence.losses(model, corpus, step)) for step in steps]
    return [(step, run) for step, run in runs if run is not None] if windows else []


def _windowed(sparsity: float, window: str, choice: str) -> Setting:
    return ffn("windowed", "magnitude", sparsity, window=window, choice=choice)


def causal_costs_more(evidence: Evidence) -> Findings:
    """D3: at 90%, causal windows cost more than oracle windows of the same length."""
    for model, origin in evidence.models_with(architecture=WITH_FFN):
        cases: list[Case | str] = list(_causal_cases(evidence, model, origin))
        yield from cases or [f"no causal and oracle windows at 90% for {model}"]


def _causal_cases(evidence: Evidence, model: str, origin: str) -> Iterator[Case]:
    any_window = ffn("windowed", "magnitude", 0.9, choice="causal")
    for corpus in evidence.corpora(model):
        for window in evidence.windows(model, corpus, any_window):
            causal, oracle = (_windowed(0.9, window, choice) for choice in ("causal", "oracle"))
            if window == "1":
                oracle = ffn("dynamic", "magnitude", 0.9)
            effect = evidence.ratio(model, corpus, causal, oracle)
            if effect is not None:
                compared = f"{setting_name(causal)} / oracle"
                yield Case(model, origin, "ffn", corpus, compared, "ratio", effect, RISE)


def taylor_predicts(evidence: Evidence) -> Findings:
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
            compared = f"Spearman with |loss change|: taylor less {rival}"
            yield Case(model, origin, "ffn", corpus, compared, "correlation", effect, RISE)
