from __future__ import annotations

import pytest
from clean import assert_clean, legend, titles

import made_up
from keepset.errors import KeepsetError
from keepset.figures import speedup


@pytest.mark.parametrize("models", [1, 3, 8])
def test_clean_at_every_size(models):
    assert_clean(speedup.draw(made_up.kernels(list(made_up.MODELS)[:models])))


def test_draws_what_the_table_says():
    table = made_up.kernels()
    figure = speedup.draw(table)
    ax = figure.axes[titles(figure).index("whole model, decoding")]
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 5]
    drawn = {tuple(line.get_ydata()) for line in lines}
    rows = table[(table["level"] == "model") & table["method"].isin(["dynamic", "static"])]
    assert drawn == {tuple(g["speedup_p50"]) for _, g in rows.groupby(["model", "method"])}


def test_batches_are_left_out():
    table = made_up.kernels()
    figure = speedup.draw(table)
    ax = figure.axes[titles(figure).index("FFN block")]
    assert min(min(line.get_ydata()) for line in ax.get_lines() if len(line.get_ydata())) > 0.5
    with pytest.raises(KeepsetError, match="figure speedup"):
        speedup.draw(table[table["batch"] == 256])


def test_only_a_level_that_was_timed_has_a_panel():
    table = made_up.kernels()
    figure = speedup.draw(table[table["level"] != "model"])
    assert titles(figure) == ["down projection, set given", "FFN block"]
    assert "known" in " ".join(legend(figure))
