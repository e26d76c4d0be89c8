"""Rules about the dial between dynamic and static, and about what predicts the loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from keepset.analyse import effects
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import RISE, WITH_FFN, with_working
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.claims.runs import Setting, ffn, setting_name
from keepset.analyse.correlation import OTHER_TEXT
from keepset.analyse.jackknife import rank_gap

SPARSITIES = (0.5, 0.9)
NOTIONS = ("magnitude", "weight", "output")


def monotone(evidence: Evidence) -> Findings:
    """C10: loss rises at every step from dynamic over oracle windows to static, at 50% and 90%."""
    working, idle = with_working(evidence, "ffn", architecture=WITH_FFN)
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
            steps = {}
            for before, after in pairwise(dial):
                step = evidence.ratio(model, corpus, after, before)
                assert step is not None
                steps[f"{_length(before)} to {_length(after)}"] = step
            whole = evidence.ratio(model, corpus, dial[-1], dial[0])
            assert whole is not None
            effect = effects.rising(list(steps.values()), whole)
            least = max(steps, key=lambda name: steps[name].greater(0.0))
            first, last = setting_name(dial[0]), setting_name(dial[-1])
            compared = f"{last} / {first}, in each of {len(steps)} steps, least sure at {least}"
            yield Case(model, origin, "ffn", corpus, compared, "ratio", effect, RISE)


def _length(setting: Setting) -> str:
    """How long a keep set is held: "W=8", "dynamic", "static"."""
    return f"W={setting['window']}" if "window" in setting else setting["method"]


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
    working, idle = with_working(evidence, "ffn", architecture=WITH_FFN)
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
    """D4: Taylor on the text of the ablation ranks units best by their |change of the loss|."""
    yield from _ranks_best(evidence, "the same text", "")


def taylor_transfers(evidence: Evidence) -> Findings:
    """D5: so does Taylor on other text, against the other notions there."""
    yield from _ranks_best(evidence, "other text", OTHER_TEXT)


def _ranks_best(evidence: Evidence, text: str, ending: str) -> Findings:
    """A case per model, corpus and rival; scores on `text` are in columns with this ending."""
    table = evidence.ablations
    if not len(table):
        yield "no single-unit ablations (set ablation: true for a corpus)"
        return
    column = {name: name if name == "weight" else name + ending for name in ("taylor", *NOTIONS)}
    for (model, origin, corpus), units in groups(table, "model", "origin", "corpus"):
        if column["taylor"] not in units or units[column["taylor"]].isna().any():
            yield f"the Taylor score on {text} of the ablated units of {model}"
            continue
        for rival in NOTIONS:
            effect = rank_gap(
                units[column["taylor"]], units[column[rival]], units["loss"].abs(), units["layer"],
                evidence.statistics.confidence,
            )  # fmt: skip
            compared = f"Spearman with |loss change|, scored on {text}: taylor less {rival}"
            yield Case(model, origin, "ffn", corpus, compared, "correlation", effect, RISE)
