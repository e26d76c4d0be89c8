"""Rules about the recurrent state."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Found
from keepset.analyse.claims.evidence import Evidence, describe, groups
from keepset.analyse.claims.feedforward import correlations
from keepset.analyse.claims.runs import Setting

WITH_STATE = ["recurrent", "hybrid"]
SHARE = 0.2
"""What each quadrant is said to hold."""
SHARE_MARGIN = 0.05
HALFWAY = 0.25
"""Disagreement of two rankings at half: 0 is agreement, 0.5 is chance; this lies between."""
THIRD = math.log(1 / 3)
MOST_AT_HALF = 2.0
"""Perplexity that "about one" does not exceed."""


def state(method: str, score: str, sparsity: float, access: str = "both") -> Setting:
    """A setting of the recurrent state."""
    named = {"site": "state", "method": method, "score": score, "sparsity": sparsity}
    return {**named, "access": access}


def negative_agreement(evidence: Evidence) -> Found:
    """C3: Spearman(weight norm product, energy) < 0."""
    below = Bounds(high=0.0)
    yield from correlations(evidence, "state", "ghost", below, below, architecture=WITH_STATE)


def _cases(evidence: Evidence, a: Setting, b: Setting, bounds: Bounds, **wanted: object) -> Found:
    for model, origin in evidence.which(architecture=WITH_STATE, **wanted):
        for corpus in evidence.corpora(model):
            effect = evidence.ratio(model, corpus, a, b)
            if effect is None:
                yield f"{describe(a)} or {describe(b)} was not run on the state of {model}"
                continue
            words = f"{describe(a)} / {describe(b)}"
            yield Case(model, origin, "state", corpus, words, "ratio", effect, bounds)


def ghost_wins(evidence: Evidence) -> Found:
    """C12: GHOST below magnitude and random, at 50% (specimens: 70% and 90%, where curves bend)."""
    for sparsity in (0.5, 0.7, 0.9):
        origin = "pretrained" if sparsity == 0.5 else "specimen"
        for rival in ("magnitude", "random"):
            ghost, other = state("static", "ghost", sparsity), state("static", rival, sparsity)
            yield from _cases(evidence, ghost, other, Bounds(high=0.0), origin=origin)
    yield from _costs_about_one(evidence)


def _costs_about_one(evidence: Evidence) -> Found:
    """For Mamba2-1.3B alone: GHOST at 50% costs less than two points of perplexity."""
    setting = state("static", "ghost", 0.5)
    for model, origin in evidence.which(architecture="recurrent", origin="pretrained"):
        if not re.search(r"mamba-?2-1\.3b", model, re.IGNORECASE):
            continue
        for corpus in evidence.corpora(model):
            dense = evidence.losses(model, corpus, None)
            effect = evidence.ratio(model, corpus, setting, None)
            if dense is None or effect is None:
                continue
            perplexity = math.exp(dense.values["nll"].sum() / dense.values["n_tokens"].sum())
            bounds = Bounds(high=math.log1p(MOST_AT_HALF / perplexity))
            words = f"{describe(setting)} / dense"
            yield Case(model, origin, "state", corpus, words, "ratio", effect, bounds)


def quadrants(evidence: Evidence) -> Found:
    """C14: phantom and corporeal shares within 5 points of 20%; in a specimen, the two rankings
    disagree at half on more than 25%, nearer to chance than to agreement."""
    table = evidence.channels
    if not len(table):
        yield "no table of state channels"
        return
    for (model, origin, corpus), own in groups(table, "model", "origin", "corpus"):
        shares = layer_shares(own)
        value = {
            "phantom": Bounds(SHARE - SHARE_MARGIN, SHARE + SHARE_MARGIN),
            "corporeal": Bounds(SHARE - SHARE_MARGIN, SHARE + SHARE_MARGIN),
        }
        wanted = {"disagree": Bounds(low=HALFWAY)} if origin == "specimen" else value
        for name, bounds in wanted.items():
            effect = effects.mean(shares[name], "layer", evidence.statistics.confidence)
            words = f"share of channels: {name}"
            yield Case(model, origin, "state", corpus, words, "share", effect, bounds)


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


def forward_memory(evidence: Evidence) -> Found:
    """C16: peak memory of GHOST / of Taylor < 1/3; in a specimen, < 1."""
    table = evidence.memory
    if not len(table):
        yield "no measured memory of scoring"
        return
    for (model, origin, corpus, tokens), own in groups(
        table, "model", "origin", "corpus", "n_tokens"
    ):
        peak = own.groupby("method")["peak_bytes"].max()
        if not {"ghost", "taylor"} <= set(peak.index):
            yield f"peak memory of ghost and taylor for {model}"
            continue
        effect = effects.unsampled(math.log(peak["ghost"] / peak["taylor"]))
        bounds = Bounds(high=0.0 if origin == "specimen" else THIRD)
        words = f"peak memory over {tokens} tokens: ghost / taylor"
        yield Case(model, origin, "state", corpus, words, "ratio", effect, bounds)


def rechoice_forgets(evidence: Evidence) -> Found:
    """D1: re-chosen at every token and forgotten, the state costs more than GHOST held for all."""
    for score in ("magnitude", "impact"):
        chosen = state("dynamic", score, 0.9, "write")
        yield from _cases(evidence, chosen, state("static", "ghost", 0.9), Bounds(low=0.0))


def forgetting_costs(evidence: Evidence) -> Found:
    """D2: forgetting costs more than not reading: same score, same sparsity, every token."""
    for score in ("magnitude", "impact"):
        write, read = (state("dynamic", score, 0.9, access) for access in ("write", "read"))
        yield from _cases(evidence, write, read, Bounds(low=0.0))
