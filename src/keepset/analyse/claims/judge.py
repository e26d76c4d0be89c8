"""From cases to verdicts: one row per claim, and the cases that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keepset.analyse import stats
from keepset.analyse.bounds import Needed, needed
from keepset.analyse.claims import papers, reasons
from keepset.analyse.claims.case import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    REPRODUCED,
    Case,
    Claim,
)
from keepset.analyse.claims.catalogue import CLAIMS
from keepset.analyse.claims.evidence import Evidence

CASE_COLUMNS = [
    "claim", "model", "origin", "site", "where", "compared", "scope", "counted", "scale",
    "estimate", "ci_low", "ci_high", "bound_low", "bound_high", "n", "unit", "floor", "test",
    "p_for", "p_against", "p_against_holm", "needed", "verdict",
]  # fmt: skip
LEDGER_COLUMNS = [
    "claim", "title", "sentence", "source", "paper", "family", "test", "verdict", "why", "scope",
    "cases", "hold", "fail", "model", "where", "compared", "scale", "estimate", "ci_low",
    "ci_high", "bound_low", "bound_high", "n", "unit", "p_for", "p_for_holm", "p_against",
    "p_against_holm", "needed", "note",
]  # fmt: skip
_FROM_CLAIM = ["title", "sentence", "source", "family", "test"]
_FROM_CASE = [
    "scope", "model", "where", "compared", "scale", "estimate", "ci_low", "ci_high", "bound_low",
    "bound_high", "n", "unit", "needed",
]  # fmt: skip


@dataclass(frozen=True)
class _Tested:
    """A claim, its cases, the same as a table, and what was missing."""

    claim: Claim
    cases: tuple[Case, ...]
    table: pd.DataFrame
    missing: tuple[str, ...]

    @property
    def counted(self) -> pd.DataFrame:
        """The cases that decide."""
        return self.table[self.table["counted"]]

    def p_values(self) -> dict[str, float]:
        """p of the claim: a claim holds in all cases, and fails in any (Bonferroni)."""
        counted = self.counted
        if not len(counted) or (counted["test"] == "measured").all():
            return {"p_for": math.nan, "p_against": math.nan}
        p = counted[["p_for", "p_against"]].fillna(1.0)
        fails = min(1.0, len(p) * float(p["p_against"].min()))
        return {"p_for": float(p["p_for"].max()), "p_against": fails}


def judge(
    evidence: Evidence, claims: Sequence[Claim] = CLAIMS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge every claim.

    A claim is *reproduced* where it holds in every case, *contradicted* where it fails in one:
    p-values over a claim's cases are combined by intersection-union, and by Bonferroni on the
    other side; those of the claims of one family are adjusted by Holm. Cases of pretrained models
    decide; where there is none, specimens decide about the direction.

    Returns:
        The ledger, one row per claim with the case that decides it, and the cases. `needed` is
        the number of items that would decide at the claim's adjusted level, where it is open.
    """
    alpha = 1 - evidence.statistics.confidence
    tested = [_test(claim, evidence, alpha) for claim in claims]
    p = pd.DataFrame([one.p_values() for one in tested], columns=["p_for", "p_against"])
    families = p.groupby(np.array([claim.family for claim in claims]))
    for side in ("p_for", "p_against"):
        adjusted, steps = (families[side].transform(by) for by in (stats.holm, _holm_steps))
        # What an earlier step of Holm's holds back is multiplied with more than its own step.
        p[f"{side}_holm"], p[f"{side}_times"] = adjusted, np.fmax(steps, adjusted / p[side])
    p_values = p.to_dict("records")
    rows = [_ledger_row(one, p_row, alpha) for one, p_row in zip(tested, p_values, strict=True)]
    tables = [one.table for one in tested if len(one.table)]
    return pd.DataFrame(rows, columns=LEDGER_COLUMNS), (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=CASE_COLUMNS)
    )


def _holm_steps(p: pd.Series) -> pd.Series:
    """What Holm's method multiplies each p with at its own step."""
    return p.map(lambda one: (p >= one).sum(), na_action="ignore")


def _test(claim: Claim, evidence: Evidence, alpha: float) -> _Tested:
    findings = list(claim.rule(evidence))
    cases = tuple(case for case in findings if isinstance(case, Case))
    decisive = "value" if any(case.scope == "value" for case in cases) else "direction"
    rows = [{**_case_row(claim, case), "counted": case.scope == decisive} for case in cases]
    table = pd.DataFrame(rows, columns=CASE_COLUMNS).astype({"counted": bool, "needed": float})
    # One failing case of many is looked for, so each p is adjusted; all must hold, so none is.
    against = table["p_against"].astype(float).fillna(1.0).groupby(table["counted"])
    table["p_against_holm"] = against.transform(stats.holm)
    p_values = zip(table["p_for"], table["p_against_holm"], strict=True)
    table["verdict"] = [_decide(p_for, p_against, alpha) for p_for, p_against in p_values]
    missing = dict.fromkeys(item for item in findings if isinstance(item, str))
    return _Tested(claim, cases, table, tuple(missing))


def _case_row(claim: Claim, case: Case) -> dict[str, Any]:
    effect, bounds = case.effect, case.bounds
    names = ("model", "origin", "site", "where", "compared", "scope", "scale")
    return {
        "claim": claim.id,
        **{name: getattr(case, name) for name in names},
        "estimate": case.shown(effect.estimate),
        "ci_low": case.shown(effect.low),
        "ci_high": case.shown(effect.high),
        "bound_low": case.shown(bounds.low) if math.isfinite(bounds.low) else math.nan,
        "bound_high": case.shown(bounds.high) if math.isfinite(bounds.high) else math.nan,
        **{name: getattr(effect, name) for name in ("n", "unit", "floor", "test")},
        "p_for": bounds.p_for(effect),
        "p_against": bounds.p_against(effect),
    }


def _decide(p_for: float, p_against: float, alpha: float) -> str:
    if p_against < alpha:
        return CONTRADICTED
    return REPRODUCED if p_for < alpha else INCONCLUSIVE


def _ledger_row(tested: _Tested, p: dict[Any, Any], alpha: float) -> dict[str, Any]:
    claim, counted = tested.claim, tested.counted
    verdict = _verdict(counted, p, alpha)
    row: dict[str, Any] = {name: getattr(claim, name) for name in _FROM_CLAIM} | p
    row |= {
        "claim": claim.id,
        "paper": papers.fill(claim.paper),
        "verdict": verdict,
        "scope": "none",
        "cases": len(counted),
        "hold": int((counted["verdict"] == REPRODUCED).sum()),
        "fail": int((counted["verdict"] == CONTRADICTED).sum()),
    }
    deciders = _fill_needed(tested, p, alpha) if verdict == INCONCLUSIVE else {}
    if len(counted):
        place = _deciding(counted, verdict)
        row |= {name: tested.table.loc[place, name] for name in _FROM_CASE}
        row["would_decide"] = deciders.get(place)
    row["why"] = reasons.short(row, counted, alpha)
    return {**row, "note": reasons.note(claim, row, tested.table, tested.missing, alpha)}


def _verdict(counted: pd.DataFrame, p: dict[Any, Any], alpha: float) -> str:
    if not len(counted):
        return NOT_TESTED
    if math.isnan(p["p_for_holm"]):
        # Measured quantities have no p to adjust: the cases themselves decide.
        return _decide(counted["p_for"].max(), counted["p_against"].min(), alpha)
    return _decide(p["p_for_holm"], p["p_against_holm"], alpha)


def _deciding(counted: pd.DataFrame, verdict: str) -> int:
    """The case that a verdict rests on: the one that fails most, else the one that holds least."""
    column, rises = ("p_against", True) if verdict == CONTRADICTED else ("p_for", False)
    order = counted.sort_values(column, ascending=rises, kind="stable", na_position="first")
    return int(order.index[0])


def _fill_needed(tested: _Tested, p: dict[Any, Any], alpha: float) -> dict[int, Needed]:
    """What would decide each case that keeps a claim open, at the level that decides the claim.

    That level is Holm's at the claim's own step; for a case that points against the claim, also
    divided by the number of cases.
    """
    level_for = alpha / p["p_for_times"]
    level_against = alpha / p["p_against_times"] / len(tested.counted)
    deciders = {}
    open_cases = tested.table["counted"] & ~(tested.table["p_for"] < level_for)
    for place in np.flatnonzero(open_cases):
        effect, bounds = tested.cases[place].effect, tested.cases[place].bounds
        holds = all(bounds.contain(step.estimate) for step in effect.steps or (effect,))
        deciders[int(place)] = needed(effect, bounds, level_for if holds else level_against)
        tested.table.loc[place, "needed"] = deciders[int(place)].n
    return deciders
