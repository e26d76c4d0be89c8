"""From cases to verdicts: one row per claim, and the cases that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keepset.analyse import stats
from keepset.analyse.bounds import needed
from keepset.analyse.claims import papers
from keepset.analyse.claims.case import Case, Claim
from keepset.analyse.claims.catalogue import CLAIMS
from keepset.analyse.claims.evidence import Evidence

REPRODUCED, CONTRADICTED = "reproduced", "contradicted"
INCONCLUSIVE, NOT_TESTED = "inconclusive", "not tested here"
VERDICTS = (REPRODUCED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED)

CASE_COLUMNS = [
    "claim", "model", "origin", "site", "where", "compared", "scope", "counted", "scale",
    "estimate", "ci_low", "ci_high", "bound_low", "bound_high", "n", "unit", "test", "p_for",
    "p_against", "needed", "verdict",
]  # fmt: skip
LEDGER_COLUMNS = [
    "claim", "title", "sentence", "source", "paper", "family", "test", "verdict", "scope",
    "cases", "hold", "fail", "model", "where", "compared", "scale", "estimate", "ci_low",
    "ci_high", "bound_low", "bound_high", "n", "unit", "p_for", "p_for_holm", "p_against",
    "p_against_holm", "needed", "note",
]  # fmt: skip
_FROM_CLAIM = ["title", "sentence", "source", "family", "test"]
_FROM_CASE = [
    "scope", "model", "where", "compared", "scale", "estimate", "ci_low", "ci_high", "bound_low",
    "bound_high", "n", "unit",
]  # fmt: skip


@dataclass(frozen=True)
class _Tested:
    """A claim, its cases as a table, and what was missing."""

    claim: Claim
    cases: pd.DataFrame
    missing: tuple[str, ...]

    @property
    def counted(self) -> pd.DataFrame:
        """The cases that decide."""
        return self.cases[self.cases["counted"]]

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
        The ledger, one row per claim with the case that decides it, and the cases.
    """
    alpha = 1 - evidence.statistics.confidence
    tested = [_test(claim, evidence, alpha) for claim in claims]
    p = pd.DataFrame([one.p_values() for one in tested], columns=["p_for", "p_against"])
    families = p.groupby(np.array([claim.family for claim in claims]))
    for side in ("p_for", "p_against"):
        p[f"{side}_holm"] = families[side].transform(stats.holm)
    p_values = p.to_dict("records")
    rows = [_ledger_row(one, p_row, alpha) for one, p_row in zip(tested, p_values, strict=True)]
    cases = [one.cases for one in tested if len(one.cases)]
    return pd.DataFrame(rows, columns=LEDGER_COLUMNS), (
        pd.concat(cases, ignore_index=True) if cases else pd.DataFrame(columns=CASE_COLUMNS)
    )


def _test(claim: Claim, evidence: Evidence, alpha: float) -> _Tested:
    findings = list(claim.rule(evidence))
    rows = [_case_row(claim, case, alpha) for case in findings if isinstance(case, Case)]
    decisive = "value" if any(row["scope"] == "value" for row in rows) else "direction"
    rows = [{**row, "counted": row["scope"] == decisive} for row in rows]
    missing = dict.fromkeys(item for item in findings if isinstance(item, str))
    table = pd.DataFrame(rows, columns=CASE_COLUMNS).astype({"counted": bool})
    return _Tested(claim, table, tuple(missing))


def _case_row(claim: Claim, case: Case, alpha: float) -> dict[str, Any]:
    effect, bounds = case.effect, case.bounds
    p_for, p_against = bounds.p_for(effect), bounds.p_against(effect)
    verdict = _decide(p_for, p_against, alpha)
    names = ("model", "origin", "site", "where", "compared", "scope", "scale")
    return {
        "claim": claim.id,
        **{name: getattr(case, name) for name in names},
        "estimate": case.shown(effect.estimate),
        "ci_low": case.shown(effect.low),
        "ci_high": case.shown(effect.high),
        "bound_low": case.shown(bounds.low) if math.isfinite(bounds.low) else math.nan,
        "bound_high": case.shown(bounds.high) if math.isfinite(bounds.high) else math.nan,
        **{name: getattr(effect, name) for name in ("n", "unit", "test")},
        "p_for": p_for,
        "p_against": p_against,
        "needed": needed(effect, bounds, alpha) if verdict == INCONCLUSIVE else math.nan,
        "verdict": verdict,
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
    if len(counted):
        deciding = _deciding(counted, verdict)
        row |= {name: deciding[name] for name in _FROM_CASE}
        row["needed"] = float(deciding["needed"]) if verdict == INCONCLUSIVE else math.nan
    return {**row, "note": _note(tested, row)}


def _verdict(counted: pd.DataFrame, p: dict[Any, Any], alpha: float) -> str:
    if not len(counted):
        return NOT_TESTED
    if math.isnan(p["p_for_holm"]):
        # Measured quantities have no p to adjust: the cases themselves decide.
        return _decide(counted["p_for"].max(), counted["p_against"].min(), alpha)
    return _decide(p["p_for_holm"], p["p_against_holm"], alpha)


def _deciding(counted: pd.DataFrame, verdict: str) -> pd.Series:
    """The case that a verdict rests on: the one that fails most, else the one that holds least."""
    column, order = ("p_against", True) if verdict == CONTRADICTED else ("p_for", False)
    return counted.sort_values(column, ascending=order, kind="stable", na_position="first").iloc[0]


def _note(tested: _Tested, row: dict[str, Any]) -> str:
    """What a reader has to know beside the numbers."""
    needs, verdict = tested.claim.needs, row["verdict"]
    n_cases, hold, fail = (row[name] for name in ("cases", "hold", "fail"))
    if verdict == NOT_TESTED:
        parts = [f"needs {needs}"]
    elif verdict == REPRODUCED:
        parts = ["in the only case" if n_cases == 1 else f"in all {n_cases} cases"]
    else:
        rest = n_cases - hold - fail
        parts = [f"{hold} of {n_cases} cases hold, {fail} fail, {rest} open"]
    if verdict == INCONCLUSIVE:
        parts.append(_what_decides(row))
    if row["scope"] == "direction":
        parts.append(f"direction only, in specimens; the value needs {needs}")
    specimens = tested.cases.loc[~tested.cases["counted"], "verdict"]
    if len(specimens):
        hold, fail = ((specimens == result).sum() for result in (REPRODUCED, CONTRADICTED))
        parts.append(f"specimens, direction only: {hold} of {len(specimens)} hold, {fail} fail")
    if tested.missing and verdict == NOT_TESTED:
        parts.append("missing: " + "; ".join(tested.missing[:3]))
    return "; ".join(parts)


def _what_decides(row: dict[str, Any]) -> str:
    items, unit = row["needed"], row["unit"]
    if math.isinf(items):
        return "the effect lies on the bound: no n would decide"
    if not math.isnan(items):
        return f"{items:.0f} {unit}s would decide (n = {row['n']})"
    if row["hold"] == row["cases"]:
        return "each case holds by itself, not all after Holm's adjustment"
    return f"too few {unit}s for a test (n = {row['n']})"
