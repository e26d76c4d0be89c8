"""Rules about the recurrent state."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims import correlations
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import FALL, MAMBA, RISE, ratio_cases
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.claims.runs import state
from keepset.analyse.correlation import NOTHING
from keepset.analyse.jackknife import jackknife
from keepset.analyse.quadrants import parted

TWO_FIFTHS = Bounds(0.3, 0.5)
"""On how many channels two rankings disagree where each fifth is one within 5 points."""
HALFWAY = 0.25
"""Disagreement of two rankings at half: 0 is agreement, 0.5 is chance; this lies between."""
THIRD = math.log(1 / 3)
MOST_AT_HALF = 2.0
"""Perplexity that "about one" does not exceed."""


def negative_agreement(evidence: Evidence) -> Findings:
    """C3: Spearman(weight norm product, energy) < 0."""
    models, no_evidence = correlations.states_as_trained(evidence)
    yield from no_evidence
    yield from correlations.size_correlations(evidence, models, "state", "ghost", FALL, FALL)


def ghost_wins(evidence: Evidence) -> Findings:
    """C12: GHOST below magnitude and random, at 50% (specimens: 70% and 90%, where curves bend)."""
    for sparsity in (0.5, 0.7, 0.9):
        origin = "pretrained" if sparsity == 0.5 else "specimen"
        for rival in ("magnitude", "random"):
            ghost, other = (state("static", score, sparsity) for score in ("ghost", rival))
            yield from ratio_cases(evidence, ghost, other, FALL, origin=origin, state=MAMBA)
    yield from _costs_about_one(evidence)


def _costs_about_one(evidence: Evidence) -> Findings:
    """For Mamba2-1.3B alone: GHOST at 50% costs less than two points of perplexity."""
    setting = state("static", "ghost", 0.5)
    for model, _ in evidence.models_with(architecture="recurrent", origin="pretrained"):
        if not re.search(r"mamba-?2-1\.3b", model, re.IGNORECASE):
            continue
        for case in ratio_cases(evidence, setting, None, FALL, model=model):
            if not isinstance(case, Case):
                continue
            shared = evidence.shared(case.where, (model, setting), (model, None))
            assert shared is not None
            level = math.exp(shared.nll[1].sum() / shared.n_tokens.sum())
            yield replace(case, bounds=Bounds(high=math.log1p(MOST_AT_HALF / level)))


def quadrants(evidence: Evidence) -> Findings:
    """C14: the two rankings disagree at half on 30 to 50%; in a specimen, on more than 25%.

    With common medians the shares of phantom and of corporeal channels are each half of that.
    """
    table = evidence.channels
    models, no_evidence = correlations.states_as_trained(evidence)
    yield from no_evidence
    if not len(table):
        yield "no table of state channels"
        return
    for model, origin in models:
        for (corpus,), rows in groups(table[table["model"] == model], "corpus"):
            share = parted(rows, ["left_out"]).groupby(rows["left_out"]).mean()
            estimate = jackknife(float(share[NOTHING]), share.drop(NOTHING))
            documents = correlations.n_documents(rows)
            effect = correlations.sampled(estimate, documents, corpus, evidence)
            compared = correlations.named("share of channels: disagree at half", effect)
            bounds = Bounds(low=HALFWAY) if origin == "specimen" else TWO_FIFTHS
            yield Case(model, origin, "state", corpus, compared, "share", effect, bounds)


def forward_memory(evidence: Evidence) -> Findings:
    """C16: peak memory of GHOST / of Taylor < 1/3; in a specimen, < 1."""
    table = evidence.memory
    known = [model for model, _ in evidence.models_with(state=MAMBA)]
    table = table[table["model"].isin(known)] if len(table) else table
    if not len(table):
        yield "no measured memory of scoring"
        return
    keys = ("model", "origin", "corpus", "n_tokens")
    for (model, origin, corpus, tokens), rows in groups(table, *keys):
        peak = rows.groupby("method")["peak_bytes"].max()
        if not {"ghost", "taylor"} <= set(peak.index):
            yield f"peak memory of ghost and taylor for {model}"
            continue
        effect = effects.unsampled(math.log(peak["ghost"] / peak["taylor"]))
        bounds = FALL if origin == "specimen" else Bounds(high=THIRD)
        compared = f"peak memory over {tokens} tokens: ghost / taylor"
        yield Case(model, origin, "state", corpus, compared, "ratio", effect, bounds)


def rechoice_forgets(evidence: Evidence) -> Findings:
    """D1: channels re-chosen at every token, the rest forgotten, cost more than one GHOST set."""
    for score in ("magnitude", "impact"):
        write = state("dynamic", score, 0.9, "write")
        ghost = state("static", "ghost", 0.9)
        yield from ratio_cases(evidence, write, ghost, RISE, state=MAMBA)


def forgetting_costs(evidence: Evidence) -> Findings:
    """D2: forgetting costs more than not reading: same score, same sparsity, every token."""
    for score in ("magnitude", "impact"):
        write, read = (state("dynamic", score, 0.9, access) for access in ("write", "read"))
        yield from ratio_cases(evidence, write, read, RISE, state=MAMBA)
