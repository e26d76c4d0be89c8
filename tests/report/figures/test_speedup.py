from __future__ import annotations

import pandas as pd
import pytest
from clean import assert_clean, legend, titles

import made_up
from keepset.errors import KeepsetError
from keepset.report.figures import speedup


@pytest.mark.parametrize("models", [1, 3, 8])
def test_clean_at_every_size(models):
    assert_clean(speedup.draw(made_up.kernels(list(made_up.MODELS)[:models])))


def test_draws_what_the_table_says():
    table = made_up.kernels()
    figure = speedup.draw(table)
    ax = figure.axes[titles(figure).index("whole model, decoding\nfloat32")]
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 5]
    drawn = {tuple(line.get_ydata()) for line in lines}
    rows = table[(table["level"] == "model") & table["method"].isin(["dynamic", "static"])]
    assert drawn == {tuple(g["speedup_p50"]) for _, g in rows.groupby(["model", "method"])}


def test_every_number_format_has_panels_of_its_own():
    table = made_up.kernels()
    half = table[table["level"] == "ffn"].assign(dtype="bfloat16")
    half["speedup_p50"] *= 2
    figure = speedup.draw(pd.concat([table, half]))
    assert_clean(figure)
    assert titles(figure)[-1] == "FFN block\nbfloat16"
    ax = next(ax for ax in figure.axes if ax.get_title() == "FFN block\nbfloat16")
    drawn = {y for line in ax.get_lines() for y in line.get_ydata()}
    shown = half[(half["batch"] == 1) & half["method"].isin(["dynamic", "static"])]
    assert drawn >= set(shown["speedup_p50"])


def test_batches_are_left_out():
    table = made_up.kernels()
    figure = speedup.draw(table)
    ax = figure.axes[titles(figure).index("FFN block\nfloat32")]
    assert min(min(line.get_ydata()) for line in ax.get_lines() if len(line.get_ydata())) > 0.5
    with pytest.raises(KeepsetError, match="figure speedup"):
        speedup.draw(table[table["batch"] == 256])


def test_only_a_level_that_was_timed_has_a_panel():
    table = made_up.kernels()
    figure = speedup.draw(table[table["level"] != "model"])
    assert titles(figure) == ["down projection, set given\nfloat32", "FFN block\nfloat32"]
    assert "known" in " ".join(legend(figure))
