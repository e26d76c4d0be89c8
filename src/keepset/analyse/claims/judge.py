"""From cases to verdicts: one row per claim, and the cases that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from keepset.analyse import effects
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
_FROM_CASE = [
    "model", "where", "compared", "scale", "estimate", "ci_low", "ci_high", "bound_low",
    "bound_high", "n", "unit",
]  # fmt: skip


@dataclass(frozen=True)
class _Heard:
    """A claim, its cases as a table, and what was missing."""

    claim: Claim
    cases: pd.DataFrame
    missing: tuple[str, ...]

    @property
    def counted(self) -> pd.DataFrame:
        return self.cases[self.cases["counted"]]

    def p(self, column: str) -> float:
        """p of the claim: a claim holds in all cases, and fails in any (Bonferroni)."""
        p = self.counted[column]
        if not len(p) or (self.counted["test"] == "measured").all():
            return math.nan
        p = p.fillna(1.0)
        return float(p.max()) if column == "p_for" else min(1.0, len(p) * float(p.min()))


def judge(
    evidence: Evidence, claims: Sequence[Claim] = CLAIMS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge every claim.

    A claim is *reproduced* where it holds in every case, *contradicted* where it fails in one:
    p-values over a claim's cases are combined by intersection-union, and by Bonferroni on the
    other side; those of the claims of one family are adjusted by Holm. Cases of pretrained models
    decide; where there is none, specimens decide about the direction.

    Args:
        evidence: The tables.
        claims: The claims.

    Returns:
        The ledger, one row per claim with the case that decides it, and the cases.
    """
    heard = [_hear(claim, evidence) for claim in claims]
    alpha = 1 - evidence.statistics.confidence
    families = [h.claim.family for h in heard]
    p = {side: [h.p(side) for h in heard] for side in ("p_for", "p_against")}
    adjusted = {side: effects.holm_by(values, families) for side, values in p.items()}
    rows = []
    for at, one in enumerate(heard):
        row = {side: p[side][at] for side in p}
        row |= {f"{side}_holm": float(adjusted[side][at]) for side in p}
        rows.append(_judge_one(one, row, alpha))
    cases = [h.cases for h in heard if len(h.cases)]
    return pd.DataFrame(rows, columns=LEDGER_COLUMNS), (
        pd.concat(cases, ignore_index=True) if cases else pd.DataFrame(columns=CASE_COLUMNS)
    )


def _hear(claim: Claim, evidence: Evidence) -> _Heard:
    found = list(claim.rule(evidence))
    cases = [item for item in found if isinstance(item, Case)]
    missing = tuple(dict.fromkeys(item for item in found if isinstance(item, str)))
    alpha = 1 - evidence.statistics.confidence
    rows = [_case_row(claim, case, alpha) for case in cases]
    decisive = "value" if any(row["scope"] == "value" for row in rows) else "direction"
    for row in rows:
        row["counted"] = row["scope"] == decisive
    table = pd.DataFrame(rows, columns=CASE_COLUMNS).astype({"counted": bool})
    return _Heard(claim, table, missing)


def _case_row(claim: Claim, case: Case, alpha: float) -> dict[str, Any]:
    effect, bounds = case.effect, case.bounds
    p_for, p_against = bounds.p_for(effect), bounds.p_against(effect)
    verdict = _decide(p_for, p_against, alpha)
    open_ = verdict == INCONCLUSIVE
    return {
        "claim": claim.id,
        "model": case.model,
        "origin": case.origin,
        "site": case.site,
        "where": case.where,
        "compared": case.compared,
        "scope": case.scope,
        "scale": case.scale,
        "estimate": case.shown(effect.estimate),
        "ci_low": case.shown(effect.low),
        "ci_high": case.shown(effect.high),
        "bound_low": case.shown(bounds.low) if math.isfinite(bounds.low) else math.nan,
        "bound_high": case.shown(bounds.high) if math.isfinite(bounds.high) else math.nan,
        "n": effect.n,
        "unit": effect.unit,
        "test": effect.test,
        "p_for": p_for,
        "p_against": p_against,
        "needed": needed(effect, bounds, alpha) if open_ else math.nan,
        "verdict": verdict,
    }


def _decide(p_for: float, p_against: float, alpha: float) -> str:
    if p_against < alpha:
        return CONTRADICTED
    return REPRODUCED if p_for < alpha else INCONCLUSIVE


def _judge_one(heard: _Heard, row: dict[str, Any], alpha: float) -> dict[str, Any]:
    claim, counted = heard.claim, heard.counted
    verdict = NOT_TESTED
    if len(counted):
        # Measured quantities have no p to adjust: the cases themselves decide.
        own = [row["p_for_holm"], row["p_against_holm"]]
        if math.isnan(own[0]):
            own = [counted["p_for"].max(), counted["p_against"].min()]
        verdict = _decide(own[0], own[1], alpha)
    shown = {**row, "claim": claim.id, "verdict": verdict}
    for name in ("title", "sentence", "source", "family", "test"):
        shown[name] = getattr(claim, name)
    shown["paper"] = papers.fill(claim.paper)
    shown["cases"] = len(counted)
    shown["hold"] = int((counted["verdict"] == REPRODUCED).sum())
    shown["fail"] = int((counted["verdict"] == CONTRADICTED).sum())
    shown["scope"] = counted["scope"].iloc[0] if len(counted) else "none"
    if len(counted):
        deciding = _deciding(counted, verdict)
        shown |= {name: deciding[name] for name in _FROM_CASE}
        shown["needed"] = _needed(counted, verdict)
    shown["note"] = _note(heard, shown)
    return shown


def _deciding(counted: pd.DataFrame, verdict: str) -> pd.Series:
    """The case that a verdict rests on: the one that fails most, else the one that holds least."""
    column, order = ("p_against", True) if verdict == CONTRADICTED else ("p_for", False)
    return counted.sort_values(column, ascending=order, kind="stable", na_position="first").iloc[0]


def _needed(counted: pd.DataFrame, verdict: str) -> float:
    """Items that would decide the case that holds least."""
    if verdict != INCONCLUSIVE:
        return math.nan
    return float(_deciding(counted, verdict)["needed"])


def _note(heard: _Heard, shown: dict[str, Any]) -> str:
    """What a reader has to know beside the numbers."""
    claim, parts = heard.claim, []
    verdict, cases, hold, fail = (shown[k] for k in ("verdict", "cases", "hold", "fail"))
    if verdict == NOT_TESTED:
        parts.append(f"needs {claim.needs}")
    elif verdict == REPRODUCED:
        parts.append("in the only case" if cases == 1 else f"in all {cases} cases")
    else:
        parts.append(f"{_share(hold, cases, 'hold')}, {fail} fail, {cases - hold - fail} open")
    if verdict == INCONCLUSIVE:
        parts.append(_what_decides(shown))
    if shown["scope"] == "direction":
        parts.append(f"direction only, in specimens; the value needs {claim.needs}")
    rest = heard.cases[~heard.cases["counted"]]
    if len(rest):
        hold, fail = ((rest["verdict"] == v).sum() for v in (REPRODUCED, CONTRADICTED))
        parts.append(f"specimens, direction only: {hold} of {len(rest)} hold, {fail} fail")
    if heard.missing and verdict == NOT_TESTED:
        parts.append("missing: " + "; ".join(heard.missing[:3]))
    return "; ".join(parts)


def _share(count: int, total: int, verb: str) -> str:
    return f"{count} of {total} cases {verb}"


def _what_decides(shown: dict[str, Any]) -> str:
    needed, unit = shown["needed"], shown["unit"]
    if math.isnan(needed):
        if shown["hold"] == shown["cases"]:
            return "each case holds by itself, not all after Holm's adjustment"
        return f"too few {unit}s for a test (n = {shown['n']})"
    if math.isinf(needed):
        return "the effect lies on the bound: no n would decide"
    return f"{needed:.0f} {unit}s would decide (n = {shown['n']})"
