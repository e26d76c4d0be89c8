from __future__ import annotations

import pandas as pd
import pytest
from clean import assert_clean, legend

from keepset.report.figures import score_lines, scores, style
from keepset.rules.kinds import KINDS
from keepset.rules.scores import Score


@pytest.mark.parametrize("site", KINDS)
def test_every_score_has_a_look_of_its_own(site):
    looks = score_lines.looks(site)
    assert set(looks) == set(KINDS[site].scores)
    assert len(set(looks.values())) == len(looks)
    assert next(reversed(looks)) == "random"


def test_a_new_score_is_drawn_without_an_edit(study, monkeypatch):
    monkeypatch.setitem(KINDS["ffn"].scores, "fresh", Score("fresh", token=lambda h, *_: h.abs()))
    fresh = study[study["score"] == "impact"].assign(score="fresh")
    figure = scores.draw(pd.concat([study[study["score"].isin(["magnitude", "random"])], fresh]))
    assert_clean(figure)
    assert legend(figure) == [
        "magnitude",
        "fresh",
        "random (band: range of seeds)",
        style.SPECIMEN,
    ]
    others = {score_lines.looks("ffn")[name][0] for name in ("magnitude", "impact", "taylor")}
    assert score_lines.looks("ffn")["fresh"][0] not in others
