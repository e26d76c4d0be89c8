from __future__ import annotations

import pytest
from clean import assert_clean, legend, panel, titles

import made_up
from keepset.analyse.correlation import OTHER_TEXT
from keepset.errors import KeepsetError
from keepset.report.figures import predicting, style

SAME, OTHER = "scored on the text of the ablation", "scored on other text"


def table(n_models=3):
    return made_up.correlation(list(made_up.MODELS)[:n_models], ("wiki", "docs"))


@pytest.mark.parametrize("models", [1, 3, 8])
def test_clean_at_every_size(models):
    assert_clean(predicting.draw(table(models)))


def marks(ax, look):
    colour, marker = look
    lines = [line for line in ax.get_lines() if line.get_color() == colour]
    return [line.get_xdata()[0] for line in lines if line.get_marker() == marker]


def test_draws_what_the_table_says():
    correlation = table()
    figure = predicting.draw(correlation)
    assert titles(figure) == [SAME, OTHER]
    loss = correlation.query("impact == 'loss' and layer == -1").set_index("size")["spearman"]
    for score in ("taylor", "output", "magnitude"):
        look = predicting._LOOKS[score]
        assert marks(panel(figure, SAME), look) == pytest.approx(loss[score])
        assert marks(panel(figure, OTHER), look) == pytest.approx(loss[f"{score}_other"])
    weight = predicting._LOOKS["weight"]
    for title in (SAME, OTHER):
        assert marks(panel(figure, title), weight) == pytest.approx(loss["weight"])
    assert legend(figure) == [*predicting._LOOKS, style.SPECIMEN]


def test_scores_on_other_text_are_known_by_their_name():
    assert predicting._OTHER == OTHER_TEXT


def test_without_other_text():
    correlation = table()
    figure = predicting.draw(correlation[~correlation["size"].str.endswith("_other")])
    assert_clean(figure)
    assert titles(figure) == [SAME]


def test_nothing_to_draw():
    correlation = table()
    with pytest.raises(KeepsetError, match="figure predicting: there is no single-unit ablation"):
        predicting.draw(correlation[correlation["impact"] != "loss"])
