"""Rules about the recurrent state."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.comparing import (
    FALL,
    RISE,
    WITH_STATE,
    ratio_cases,
    size_correlations,
)
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.claims.runs import state

SHARE = 0.2
"""What each quadrant is said to hold."""
SHARE_MARGIN = 0.05
HALFWAY = 0.25
"""Disagreement of two rankings at half: 0 is agreement, 0.5 is chance; this lies between."""
THIRD = math.log(1 / 3)
MOST_AT_HALF = 2.0
"""Perplexity that "about one" does not exceed."""


def negative_agreement(evidence: Evidence) -> Findings:
    """C3: Spearman(weight norm product, energy) < 0."""
    yield from size_correlations(evidence, "state", "ghost", FALL, FALL, architecture=WITH_STATE)


def ghost_wins(evidence: Evidence) -> Findings:
    """C12: GHOST below magnitude and random, at 50% (specimens: 70% and 90%, where curves bend)."""
    for sparsity in (0.5, 0.7, 0.9):
        origin = "pretrained" if sparsity == 0.5 else "specimen"
        for rival in ("magnitude", "random"):
            ghost, other = (state("static", score, sparsity) for score in ("ghost", rival))
            yield from ratio_cases(
                evidence, ghost, other, FALL, origin=origin, architecture=WITH_STATE
            )
    yield from _costs_about_one(evidence)


def _costs_about_one(evidence: Evidence) -> Findings:
    """For Mamba2-1.3B alone: GHOST at 50% costs less than two points of perplexity."""
    setting = state("static", "ghost", 0.5)
    for model, _ in evidence.models_with(architecture="recurrent", origin="pretrained"):
        if not re.search(r"mamba-?2-1\.3b", model, re.IGNORECASE):
            continue
        for case in ratio_cases(evidence, setting, None, FALL, model=model):
            if isinstance(case, Case) and (dense := evidence.losses(model, case.where, None)):
                level = math.exp(dense.values["nll"].sum() / dense.values["n_tokens"].sum())
                yield replace(case, bounds=Bounds(high=math.log1p(MOST_AT_HALF / level)))


def quadrants(evidence: Evidence) -> Findings:
    """C14: phantom and corporeal shares within 5 points of 20%; in a specimen, the two rankings
    disagree at half on more than 25%, nearer to chance than to agreement."""
    table = evidence.channels
    if not len(table):
        yield "no table of state channels"
        return
    fifth = Bounds(SHARE - SHARE_MARGIN, SHARE + SHARE_MARGIN)
    for (model, origin, corpus), channels in groups(table, "model", "origin", "corpus"):
        shares = layer_shares(channels)
        specimen = origin == "specimen"
        asked = {"disagree": Bounds(low=HALFWAY)} if specimen else {
            "phantom": fifth, "corporeal": fifth
        }  # fmt: skip
        for name, bounds in asked.items():
            effect = effects.mean(shares[name], "layer", evidence.statistics.confidence)
            compared = f"share of channels: {name}"
            yield Case(model, origin, "state", corpus, compared, "share", effect, bounds)


def layer_shares(channels: pd.DataFrame) -> pd.DataFrame:
    """Shares of each layer's channels; low and high are against the median of all layers.

    Args:
        channels: layer, magnitude and energy of every channel of one model on one corpus.

    Returns:
        By layer: phantom (low weight, high energy), corporeal (high weight, low energy) and
        disagree, their sum: the share that the two rankings sort into different halves.
    """
    weight, energy = channels["magnitude"], channels["energy"]
    heavy, strong = weight > np.median(weight), energy > np.median(energy)
    shares = pd.DataFrame({"phantom": ~heavy & strong, "corporeal": heavy & ~strong})
    shares["disagree"] = shares["phantom"] | shares["corporeal"]
    return shares.groupby(channels["layer"]).mean()


def forward_memory(evidence: Evidence) -> Findings:
    """C16: peak memory of GHOST / of Taylor < 1/3; in a specimen, < 1."""
    table = evidence.memory
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
        yield from ratio_cases(evidence, write, ghost, RISE, architecture=WITH_STATE)


def forgetting_costs(evidence: Evidence) -> Findings:
    """D2: forgetting costs more than not reading: same score, same sparsity, every token."""
    for score in ("magnitude", "impact"):
        write, read = (state("dynamic", score, 0.9, access) for access in ("write", "read"))
        yield from ratio_cases(evidence, write, read, RISE, architecture=WITH_STATE)
