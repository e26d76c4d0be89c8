"""Cases about scores of all units, taken on calibration text: text is what is sampled.

Layers and units of a model are fixed. The tables hold every number also without each group of
calibration documents, which is what errors are made of (`keepset.analyse.jackknife`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from keepset.analyse.bounds import Bounds, Effect
from keepset.analyse.claims.case import Case, Findings, NoEvidence
from keepset.analyse.claims.comparing import MAMBA
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.correlation import NOTHING
from keepset.analyse.effects import t_effect
from keepset.analyse.jackknife import jackknife
from keepset.analyse.perplexities import Estimate

TEST = "jackknife t-test"


def size_correlations(
    evidence: Evidence,
    models: list[tuple[str, str]],
    site: str,
    impact: str,
    value: Bounds,
    direction: Bounds,
) -> Findings:
    """A case per model and corpus: the mean over layers of size's correlation with an impact.

    `value` is where the claim says that it lies, `direction` the same for specimens.
    """
    for model, origin in models:
        layers = evidence.size_by_layer(model, site, impact)
        if not len(layers):
            yield f"no correlation of size with {impact} at the {site} of {model}"
        for (corpus,), rows in groups(layers, "corpus"):
            effect = sampled(mean_over_layers(rows), n_documents(rows), corpus, evidence)
            bounds = direction if origin == "specimen" else value
            compared = named(f"Spearman of size with {impact}", effect)
            yield Case(model, origin, site, corpus, compared, "correlation", effect, bounds)


def mean_over_layers(rows: pd.DataFrame) -> Estimate:
    """The mean over layers of a coefficient, of one model on one corpus.

    Args:
        rows: layer, left_out and spearman; a layer counts where its coefficient is known whatever
            is left out.
    """
    means = known_layers(rows).mean()
    return jackknife(float(means[NOTHING]), means.drop(NOTHING))


def known_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Coefficients of the layers that are known whatever is left out: layer by left_out."""
    return rows.pivot(index="layer", columns="left_out", values="spearman").dropna()


def n_documents(rows: pd.DataFrame) -> int:
    """How many calibration documents the rows of one model and corpus rest on."""
    return int(rows["n_documents"].iloc[0])


def sampled(estimate: Estimate, documents: int, corpus: str, evidence: Evidence) -> Effect:
    """What was estimated on a number of calibration documents of a corpus."""
    confidence = evidence.statistics.confidence
    effect = t_effect(*estimate, confidence, n=documents, unit="document", test=TEST)
    return limited(effect, evidence, corpus)


def limited(effect: Effect, evidence: Evidence, *corpora: str) -> Effect:
    """An effect, with how many calibration documents can be had of each of its corpora."""
    known = evidence.calibration_documents
    return replace(effect, limit=min(known.get(corpus, math.inf) for corpus in corpora))


def named(compared: str, effect: Effect) -> str:
    """What is compared, with the reason where there is no interval."""
    return compared if effect.n > 1 else f"{compared}; one document: no interval"


def states_as_trained(
    evidence: Evidence, state: str = MAMBA
) -> tuple[list[tuple[str, str]], Iterator[str]]:
    """(model, origin) of models with a state, and sentences about those that are no evidence.

    Where training started from a hand-made circuit of the state, weight and energy of the channels
    were put there by hand.
    """
    models = list(evidence.models_with(state=state, induction=False))
    made = (model for model, _ in evidence.models_with(state=state, induction=True))
    why = "the training of {} started from a hand-made circuit of its state: no evidence here"
    return models, (NoEvidence(why.format(model)) for model in made)
