"""Size against impact: does a unit that is often large also matter?

Layers and units of a model are all there are: they are fixed. What an interval covers is the text,
which is a sample: calibration documents are left out, a group at a time. Only where units were
ablated are units a sample, and there the text is fixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from keepset.analyse import ranks
from keepset.analyse.jackknife import interval, jackknife
from keepset.analyse.stats import Floats
from keepset.errors import KeepsetError
from keepset.rules.kinds import Kind

POOLED = -1
"""The number in `layer` of the mean over layers."""
NOTHING = -1
"""The number in `left_out` where all text counts."""
OTHER_TEXT = "_other"
"""How the name of a score ends that was taken on other text than units were ablated on."""
_SCORES = ("magnitude", "output", "taylor", "weight")
_COLUMNS = ["size", "impact", "layer", "left_out", *ranks.COEFFICIENTS, "ci_low", "ci_high"]
_COLUMNS += ["n_units", "n_documents"]


def correlation_table(
    kind: Kind,
    units: Iterable[pd.DataFrame],
    confidence: float,
    identity: Mapping[str, Any],
    ablated: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Correlate every notion of size with every notion of impact, per layer and over all layers.

    Args:
        kind: The kind of site; its `sizes` and `impacts` name the columns.
        units: Tables with a row per unit of one model and corpus, each with its `left_out` and the
            number of calibration documents, `n_documents`: on all text (-1), and without each
            group of documents. None, or empty ones, where there are no units.
        confidence: Level of the intervals.
        identity: Leading columns.
        ablated: Some units with their measured `loss` change, and their scores on the same text
            and, ending in `_other`, on other text (the `ablations` table).

    Returns:
        The `correlation` table of docs/METHODS.md. Layer -1 is the mean over the layers whose
        coefficient is known whatever is left out. Intervals stand where nothing is left out.
        Of ablated units, every score is correlated with the impact `loss`: `size` names it.

    Raises:
        KeepsetError: a score is not finite, or there is no table of all text.
    """
    parts = [_coefficients(kind, table) for table in units if len(table)]
    tables = []
    if parts:
        by_pair = pd.concat(parts, ignore_index=True).groupby(["size", "impact"], sort=False)
        tables += [_with_intervals(rows, confidence) for _, rows in by_pair]
    if ablated is not None and len(ablated):
        tables += [_ablation_rows(ablated, score, confidence) for score in _scores_of(ablated)]
    if not tables:
        return pd.DataFrame()
    columns = {**identity, "site": kind.name}
    table = pd.concat(tables, ignore_index=True)[_COLUMNS]
    return pd.concat([pd.DataFrame(columns, index=table.index), table], axis=1)


def _coefficients(kind: Kind, units: pd.DataFrame) -> pd.DataFrame:
    """The coefficients of every pair of notions on one part of the text."""
    facts = {name: int(units[name].iloc[0]) for name in ("left_out", "n_documents")}
    tables = []
    for size in kind.sizes:
        for impact, column in kind.impacts.items():
            if column in units:
                table = ranks.correlate(units[size], units[column], units["layer"])
                tables.append(table.assign(size=size, impact=impact, **facts))
    return pd.concat(tables, ignore_index=True)


def _with_intervals(rows: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """One pair's rows, with the mean over layers, and what leaving out text says of each."""
    if not (rows["left_out"] == NOTHING).any():
        raise KeepsetError("correlations need a table of units on all text, left_out = -1")
    known = rows.groupby("layer")["spearman"].transform(lambda values: values.notna().all())
    tables = []
    for left_out, part in rows.groupby("left_out", sort=False):
        pooled = part.loc[known, ranks.COEFFICIENTS].mean().to_dict()
        facts = {name: part[name].iloc[0] for name in ("size", "impact", "n_documents")}
        facts |= {"layer": POOLED, "left_out": left_out, "n_units": part["n_units"].sum()}
        tables += [part, pd.DataFrame([facts | pooled])]
    table = pd.concat(tables, ignore_index=True)
    ends = {
        layer: _interval(part.set_index("left_out")["spearman"], confidence)
        for layer, part in table.groupby("layer")
    }
    whole = table["left_out"] == NOTHING
    for place, name in enumerate(("ci_low", "ci_high")):
        table[name] = table["layer"].map(lambda layer, place=place: ends[layer][place])
        table.loc[~whole, name] = np.nan
    return table


def _interval(by_left_out: pd.Series, confidence: float) -> tuple[float, float]:
    left_out = by_left_out.drop(NOTHING)
    return interval(jackknife(float(by_left_out[NOTHING]), left_out), confidence)


def _scores_of(ablated: pd.DataFrame) -> list[str]:
    """The scores of ablated units, those on other text last, as far as they are known."""
    names = [name + text for text in ("", OTHER_TEXT) for name in _SCORES]
    return [name for name in names if name in ablated and ablated[name].notna().all()]


def _ablation_rows(ablated: pd.DataFrame, size: str, confidence: float) -> pd.DataFrame:
    """A score against |loss change| of the ablated units, which are left out one at a time."""
    scores = ablated.assign(impact=ablated["loss"].abs())
    table = ranks.correlate(scores[size], scores["impact"], scores["layer"])
    known = table[table["spearman"].notna()].set_index("layer")
    left_out = {
        layer: _without_each(scores.loc[scores["layer"] == layer, [size, "impact"]])
        for layer in known.index
    }
    mean = known[ranks.COEFFICIENTS].mean()
    # Without a unit, the mean over layers changes by what the coefficient of its own layer does.
    left_out[POOLED] = mean["spearman"] + np.concatenate(
        [(left_out[layer] - known["spearman"][layer]) / len(known) for layer in known.index]
        or [np.array([])]
    )
    pooled = {"layer": POOLED, "n_units": len(scores), **mean}
    table = pd.concat([table, pd.DataFrame([pooled])], ignore_index=True)
    nothing = np.array([])
    pairs = zip(table["layer"], table["spearman"], strict=True)
    ends = [
        interval(jackknife(value, left_out.get(layer, nothing)), confidence)
        for layer, value in pairs
    ]
    table[["ci_low", "ci_high"]] = np.array(ends)
    n_documents = ablated["n_documents"].iloc[0]
    return table.assign(size=size, impact="loss", left_out=NOTHING, n_documents=n_documents)


def _without_each(scores: pd.DataFrame) -> Floats:
    """Spearman's coefficient of two columns without each of their rows."""
    x, y = scores.to_numpy().T
    rows = range(len(scores))
    return np.array([ranks.spearman(np.delete(x, row), np.delete(y, row)) for row in rows])
