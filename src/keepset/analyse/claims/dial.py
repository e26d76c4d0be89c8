"""Rules about the dial between dynamic and static, and about what predicts the loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from keepset.analyse import effects
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import RISE, WITH_FFN, with_working_ffn
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.claims.runs import Setting, ffn, setting_name

SPARSITIES = (0.5, 0.9)
NOTIONS = ("magnitude", "weight", "output")


def monotone(evidence: Evidence) -> Findings:
    """C10: loss rises at every step from dynamic over oracle windows to static, at 50% and 90%."""
    working, idle = with_working_ffn(evidence, architecture=WITH_FFN)
    yield from idle
    for model, origin in working:
        cases: list[Case | str] = list(_rises(evidence, model, origin))
        yield from cases or [f"no oracle windows at 50% or 90% for {model}"]


def _rises(evidence: Evidence, model: str, origin: str) -> Iterator[Case]:
    for corpus in evidence.corpora(model):
        for sparsity in SPARSITIES:
            dial = _dial(evidence, model, corpus, sparsity)
            if len(dial) < 3:
                continue
            steps = [
                evidence.ratio(model, corpus, after, before) for before, after in pairwise(dial)
            ]
            whole = evidence.ratio(model, corpus, dial[-1], dial[0])
            assert whole is not None
            effect = effects.rising([step for step in steps if step is not None], whole)
            first, last = setting_name(dial[0]), setting_name(dial[-1])
            compared = f"{last} / {first}, every one of {len(steps)} steps"
            yield Case(model, origin, "ffn", corpus, compared, "ratio", effect, RISE)


def _dial(evidence: Evidence, model: str, corpus: str, sparsity: float) -> list[Setting]:
    """The settings from dynamic to static that were run, in order; none without windows."""
    any_window = ffn("windowed", "magnitude", sparsity, choice="oracle")
    windows = evidence.windows(model, corpus, any_window)
    dial = [
        ffn("dynamic", "magnitude", sparsity),
        *(_windowed(sparsity, window, "oracle") for window in windows),
        ffn("static", "magnitude", sparsity),
    ]
    known = [step for step in dial if evidence.losses(model, corpus, step) is not None]
    return known if windows else []


def _windowed(sparsity: float, window: str, choice: str) -> Setting:
    return ffn("windowed", "magnitude", sparsity, window=window, choice=choice)


def causal_costs_more(evidence: Evidence) -> Findings:
    """D3: at 90%, causal windows cost more than oracle windows of the same length."""
    working, idle = with_working_ffn(evidence, architecture=WITH_FFN)
    yield from idle
    for model, origin in working:
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
