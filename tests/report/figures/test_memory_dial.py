from __future__ import annotations

import pytest
from clean import assert_clean, legend, titles

from keepset.errors import KeepsetError
from keepset.report.figures import memory_dial, style


@pytest.mark.parametrize("models", [1, 3])
def test_clean_at_every_size(state_ratios, models):
    names = list(state_ratios["model"].unique())[:models]
    figure = memory_dial.draw(state_ratios[state_ratios["model"].isin(names)])
    assert_clean(figure)
    assert len(titles(figure)) == 2 * models


def test_draws_what_the_table_says(state_ratios):
    figure = memory_dial.draw(state_ratios)
    ax = figure.axes[titles(figure).index("hybrid, wiki: 90% left out")]
    rows = state_ratios.query("model == 'hybrid' and sparsity == 0.9")
    lines = {
        (line.get_color(), line.get_linestyle()): line.get_ydata()
        for line in ax.get_lines()
        if len(line.get_xdata()) > 2
    }
    keys = ["score", "access", "choice", "window"]
    wanted = rows.query("method != 'static'").set_index(keys)["ratio"]
    windows = ["1", "4", "16", "64", "sequence"]
    for colour, score, access in (
        (style.BLUE, "impact", "read"),
        (style.VERMILION, "impact", "write"),
        (style.GREY, "magnitude", "none"),
    ):
        for dash, choice in (("-", "oracle"), ("--", "causal")):
            expected = [wanted[score, access, choice, window] for window in windows]
            assert lines[colour, dash] == pytest.approx(expected)
    static = rows.query("method == 'static' and site == 'state' and score == 'ghost'")
    marks = [line for line in ax.get_lines() if line.get_color() == style.BLACK]
    assert marks[0].get_ydata() == pytest.approx(static["ratio"])


def test_models_keep_their_order_whichever_sites_they_have(state_ratios):
    names = [title.split(",")[0] for title in titles(memory_dial.draw(state_ratios))]
    assert list(dict.fromkeys(names)) == ["zamba2-1.2b", "mamba2", "hybrid"]


def test_memory_alone(state_ratios):
    figure = memory_dial.draw(state_ratios[state_ratios["model"] == "mamba2"])
    assert not any("scratch" in text for text in legend(figure))


def test_nothing_to_draw(state_ratios):
    with pytest.raises(KeepsetError, match="figure memory_dial"):
        memory_dial.draw(state_ratios[state_ratios["site"] == "ffn"])
