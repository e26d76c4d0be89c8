"""How cases are made: what several rules share.

`traits` are columns of `Evidence.models` with the values that a claim speaks about.
"""

from __future__ import annotations

from typing import Any

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.claims.case import Case, Findings
from keepset.analyse.claims.evidence import Evidence, groups
from keepset.analyse.claims.runs import Setting, setting_name

RISE = Bounds(low=0.0)
FALL = Bounds(high=0.0)
WITH_FFN = ["transformer", "hybrid"]
WITH_STATE = ["recurrent", "hybrid"]


def ratio_cases(
    evidence: Evidence,
    a: Setting,
    b: Setting | None,
    value: Bounds,
    direction: Bounds | None = None,
    **traits: Any,
) -> Findings:
    """A case per model and corpus: the perplexity of setting `a` over that of `b`.

    `b` None is dense. `value` is where the claim says that the ratio lies (as a log), `direction`
    the same for specimens, where it differs.
    """
    site, name, other = a["site"], setting_name(a), setting_name(b)
    missing = f"{name} or {other} was not run on the {site} of"
    if b is None:
        missing = f"{name} was not run for"
    for model, origin in evidence.models_with(**traits):
        for corpus in evidence.corpora(model):
            effect = evidence.ratio(model, corpus, a, b)
            if effect is None:
                yield f"{missing} {model}"
                continue
            bounds = direction if direction and origin == "specimen" else value
            yield Case(model, origin, site, corpus, f"{name} / {other}", "ratio", effect, bounds)


def cheap_or_cheaper(
    evidence: Evidence, setting: Setting, bounds: Bounds, rivals: list[str], rival: str,
    **traits: Any,
) -> Findings:  # fmt: skip
    """Pretrained models pay little for a setting; specimens pay less than other specimens.

    Args:
        setting: What is paid for.
        bounds: Where the ratio to dense lies for a pretrained model.
        rivals: The specimens to compare with.
        rival: What a rival is, for the sentence that says that there is none.
        traits: Of the models that the claim speaks about.
    """
    yield from ratio_cases(evidence, setting, None, bounds, origin="pretrained", **traits)
    for model, _ in evidence.models_with(**traits, origin="specimen"):
        if not rivals:
            yield f"{rival} to compare {model} with"
        for corpus in evidence.corpora(model):
            yield from _cheaper_than(evidence, setting, model, rivals, corpus)


def _cheaper_than(
    evidence: Evidence, setting: Setting, model: str, rivals: list[str], corpus: str
) -> Findings:
    cost = evidence.costs(model, corpus, setting)
    if cost is None:
        yield f"{setting_name(setting)} was not run for {model}"
        return
    for rival in rivals:
        cost_of_rival = evidence.costs(rival, corpus, setting)
        if cost_of_rival is None:
            yield f"{setting_name(setting)} was not run for {rival}"
            continue
        confidence = evidence.statistics.confidence
        effect = effects.mean_difference(cost, cost_of_rival, "block", confidence)
        compared = f"cost of {setting_name(setting)}: {model} / {rival}"
        yield Case(model, "specimen", setting["site"], corpus, compared, "ratio", effect, FALL)


def transformer_specimens(evidence: Evidence, **traits: Any) -> list[str]:
    """Transformer specimens with these traits."""
    models = evidence.models_with(architecture="transformer", origin="specimen", **traits)
    return [model for model, _ in models]


def size_correlations(
    evidence: Evidence, site: str, impact: str, value: Bounds, direction: Bounds, **traits: Any
) -> Findings:
    """A case per model and corpus: the mean over layers of size's correlation with an impact."""
    for model, origin in evidence.models_with(**traits):
        layers = evidence.size_by_layer(model, site, impact)
        if not len(layers):
            yield f"no correlation of size with {impact} at the {site} of {model}"
        for (corpus,), group in groups(layers, "corpus"):
            effect = effects.mean(group["spearman"], "layer", evidence.statistics.confidence)
            bounds = direction if origin == "specimen" else value
            compared = f"Spearman of size with {impact}"
            yield Case(model, origin, site, corpus, compared, "correlation", effect, bounds)
