"""A made-up ledger with every verdict and scope, and the longest words that there are."""

from __future__ import annotations

import numpy as np
import pandas as pd

from keepset.analyse.claims import CLAIMS, VERDICTS, papers
from keepset.analyse.claims.judge import LEDGER_COLUMNS


def ledger() -> pd.DataFrame:
    """One row per claim; the verdicts take turns."""
    rows = []
    for at, claim in enumerate(CLAIMS):
        verdict = VERDICTS[at % 4]
        tested = verdict != "not tested here"
        row = dict.fromkeys(LEDGER_COLUMNS, np.nan)
        row |= {name: getattr(claim, name) for name in ("title", "sentence", "source", "family")}
        row |= {"claim": claim.id, "paper": papers.fill(claim.paper), "test": claim.test}
        scope = ("value", "direction")[at // 4 % 2] if tested else "none"
        row |= {"verdict": verdict, "scope": scope, "cases": 3 * tested, "hold": 1, "fail": 0}
        row |= {"note": f"needs {claim.needs}", "scale": "ratio" if at % 2 else "difference"}
        row |= {"model": "smollm2-135m", "where": "speeches", "compared": "static 90% / dense"}
        if tested:
            row |= {"estimate": 12345.678, "ci_low": 11111.1, "ci_high": 23456.7, "n": 16}
            row |= {"bound_low": 100.0, "p_for_holm": 0.0004, "p_against_holm": 0.8}
        rows.append(row)
    return pd.DataFrame(rows, columns=LEDGER_COLUMNS)
