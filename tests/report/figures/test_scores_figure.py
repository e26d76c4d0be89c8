from __future__ import annotations

import pytest
from clean import assert_clean, legend, titles

from keepset.errors import KeepsetError
from keepset.report.figures import scores, style


def test_clean_at_every_size(ratios):
    assert_clean(scores.draw(ratios))


def test_only_where_scores_were_compared(study):
    assert titles(scores.draw(study)) == [
        f"{model}, wiki: {method}"
        for model in ("smollm2-135m", "relu", "swiglu")
        for method in ("static", "dynamic")
    ]


def test_spread_of_seeds_is_a_band(study):
    ax = scores.draw(study).axes[0]
    (band,) = [c for c in ax.collections if c.get_alpha() == 0.25]
    rows = study.query("model == 'smollm2-135m' and method == 'static' and score == 'random'")
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(rows["ratio_min"].min())
    assert heights.max() == pytest.approx(rows["ratio_max"].max())


def test_one_score_only(study):
    figure = scores.draw(study[study["score"] == "magnitude"])
    assert legend(figure) == ["magnitude", style.SPECIMEN]


def test_nothing_to_draw(study):
    with pytest.raises(KeepsetError, match="figure scores"):
        scores.draw(study.iloc[:0])
