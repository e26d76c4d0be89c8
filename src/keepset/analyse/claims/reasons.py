"""Why a verdict is what it is, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from keepset.analyse.claims.case import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTED,
    REPRODUCED,
    Claim,
    NoEvidence,
)


def short(row: Mapping[str, Any], counted: pd.DataFrame, alpha: float) -> str:
    """The reason in a few words, for figures; empty where nothing was tested.

    Args:
        row: A row of the ledger, with `would_decide`: a Needed, or None.
        counted: The cases that decide.
        alpha: The study's level.
    """
    n, verdict = row["cases"], row["verdict"]
    if verdict == NOT_TESTED:
        return ""
    if verdict == REPRODUCED:
        return "in the only case" if n == 1 else f"in all {n} cases"
    if verdict == CONTRADICTED:
        return "fails in the only case" if n == 1 else f"fails in {row['fail']} of {n} cases"
    if alone := _fail_alone(counted, alpha):
        p = row["p_against_holm"]
        return f"{_cases(alone, n)} fail{_s(alone)}, but not after adjustment: p = {p:.2g}"
    if row["hold"] == n:
        p = row["p_for_holm"]
        return f"{_cases(n, n)} hold{_s(n)}, but not after adjustment: p = {p:.2g}"
    return _what_decides(row)


def note(
    claim: Claim, row: Mapping[str, Any], cases: pd.DataFrame, missing: Sequence[str], alpha: float
) -> str:
    """What a reader has to know beside the numbers.

    Args:
        claim: The claim.
        row: Its row of the ledger, with `would_decide`: a Needed, or None.
        cases: All its cases.
        missing: Sentences about what was not run, or is no evidence.
        alpha: The study's level.
    """
    verdict = row["verdict"]
    no_evidence = [sentence for sentence in missing if isinstance(sentence, NoEvidence)]
    left_out = ["left out: " + "; ".join(no_evidence)] if no_evidence else []
    if verdict == NOT_TESTED:
        not_run = [sentence for sentence in missing if sentence not in no_evidence][:3]
        lacks = ["missing: " + "; ".join(not_run)] if not_run else []
        return "; ".join([f"needs {claim.needs}", *lacks, *left_out])
    counted, others = cases[cases["counted"]], cases.loc[~cases["counted"], "verdict"]
    parts = [short(row, counted, alpha) if verdict == REPRODUCED else _tally(row)]
    if verdict == INCONCLUSIVE:
        parts += _why_open(row, counted, alpha)
    if row["scope"] == "direction":
        parts.append(f"only in specimens trained here, once each; for more it needs {claim.needs}")
    if len(others):
        hold, fail = ((others == result).sum() for result in (REPRODUCED, CONTRADICTED))
        parts.append(f"specimens, direction only: {hold} of {len(others)} hold, {fail} fail")
    return "; ".join([*parts, *left_out])


def _tally(row: Mapping[str, Any]) -> str:
    n, hold, fail = (row[name] for name in ("cases", "hold", "fail"))
    return f"{hold} of {n} cases hold, {fail} fail, {n - hold - fail} open"


def _fail_alone(counted: pd.DataFrame, alpha: float) -> int:
    """Cases that would fail if they were the only ones."""
    return int((counted["p_against"] < alpha).sum())


def _cases(some: int, n: int) -> str:
    return "the only case" if n == 1 else f"all {n} cases" if some == n else f"{some} of {n} cases"


def _s(some: int) -> str:
    """The ending of a verb that one case does."""
    return "s" if some == 1 else ""


def _why_open(row: Mapping[str, Any], counted: pd.DataFrame, alpha: float) -> list[str]:
    n, parts = row["cases"], []
    if alone := _fail_alone(counted, alpha):
        over_cases = "" if n == 1 else f"times {n} cases {row['p_against']:.2g}, "
        parts.append(
            f"{_cases(alone, n)} would fail alone, but not after adjustment: smallest p"
            f" {counted['p_against'].min():.2g}, {over_cases}over the claims of this source"
            f" {row['p_against_holm']:.2g}"
        )
    elif row["hold"] == n:
        parts.append(
            f"each case holds by itself, not after adjustment: largest p {row['p_for']:.2g}, over"
            f" the claims of this source {row['p_for_holm']:.2g}"
        )
    return [*parts, f"{_what_decides(row)} (n = {row['n']})"]


def _what_decides(row: Mapping[str, Any]) -> str:
    """What would decide the deciding case, at the claim's adjusted level."""
    n, why = row["would_decide"]
    return why or f"{n:.0f} {row['unit']}s would decide"
