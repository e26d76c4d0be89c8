"""The ledger's numbers can be had again from the stored tables, by a script of one's own."""

from __future__ import annotations

import made_up_evidence as made_up
import numpy as np
import outside
import pytest

from keepset.analyse import claims


@pytest.fixture(scope="module", params=["pretrained", "specimen"])
def judged(request):
    study = made_up.evidence(request.param, noise=0.02)
    return study, *claims.judge(study)


def test_every_interval_and_p_value(judged):
    study, _, cases = judged
    few = cases.groupby(["claim", "test"]).head(2)
    assert set(few["claim"]) == set(cases["claim"])
    for row in few.to_dict(orient="records"):
        found = outside.recompute(study, row, (study.statistics.confidence,))
        stored = [row[name] for name in outside.COLUMNS]
        np.testing.assert_allclose(found, stored, rtol=1e-9, atol=1e-9, err_msg=str(row))


def test_every_adjusted_p_value(judged):
    _, ledger, cases = judged
    table = outside.adjusted(ledger, cases)
    np.testing.assert_allclose(table, ledger[table.columns], rtol=1e-9, atol=1e-9)
