from __future__ import annotations

import pytest
from clean import assert_clean, legend, texts, titles

from keepset.errors import KeepsetError
from keepset.report.figures import capability as figure_of, style


@pytest.mark.parametrize("models", [1, 3, 8])
@pytest.mark.parametrize("tasks", [1, 2])
def test_clean_at_every_size(capability, models, tasks):
    names, of = capability["model"].unique()[:models], capability["task"].unique()[:tasks]
    part = capability[capability["model"].isin(names) & capability["task"].isin(of)]
    figure = figure_of.draw(part)
    assert_clean(figure)
    assert titles(figure) == list(of)


def test_draws_what_the_table_says(capability):
    one = capability.query("model == 'smollm2-135m' and task == 'lambada'")
    figure = figure_of.draw(one)
    static = one.query("method == 'static'").iloc[0]
    own = [line for line in figure.axes[0].get_lines() if line.get_color() == style.VERMILION]
    assert own[0].get_xdata() == pytest.approx([static["ci_low"], static["ci_high"]])
    assert own[1].get_xdata()[0] == static["accuracy"]
    names = [text for text, _ in texts(figure)]
    assert "n = 60" in names
    assert names.count("Holm p < 0.001") == (one["p_holm"] < 0.001).sum()
    assert "windowed 90%, W = 32, causal" in names


def test_missing_cell(capability):
    gone = capability.query("model != 'relu' or task != 'lambada' or method != 'static'")
    figure = figure_of.draw(gone)
    assert_clean(figure)
    assert len(figure.axes[0].get_yticks()) == 8 * 5


def test_specimens_in_the_legend(capability):
    assert style.SPECIMEN in legend(figure_of.draw(capability))


def test_nothing_to_draw(capability):
    with pytest.raises(KeepsetError, match="figure capability: there is no task"):
        figure_of.draw(capability.iloc[:0])
