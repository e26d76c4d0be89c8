"""The ledger's numbers can be had again from the stored tables, by a script of one's own."""

from __future__ import annotations

import made_up_evidence as made_up
import numpy as np
import outside
import pytest

from keepset.analyse import claims

COLUMNS = ["estimate", "ci_low", "ci_high", "p_for", "p_against"]


@pytest.mark.parametrize("origin", ["pretrained", "specimen"])
def test_every_interval_and_p_value(origin):
    study = made_up.evidence(origin, noise=0.02)
    statistics = study.statistics
    options = (statistics.confidence, statistics.resamples, study.seed)
    cases = claims.judge(study)[1]
    sampled = cases[cases["test"] != "measured"]
    few = sampled.groupby(["claim", "test"]).head(2)
    assert set(few["claim"]) == {claim.id for claim in claims.CLAIMS} - {"C16"}
    for row in few.to_dict(orient="records"):
        found = outside.recompute(study, row, options)
        stored = [row[name] for name in COLUMNS]
        np.testing.assert_allclose(found, stored, rtol=1e-9, atol=1e-9, err_msg=str(row))
