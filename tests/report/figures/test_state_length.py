from __future__ import annotations

import pandas as pd
import pytest
from clean import assert_clean, titles

import made_up_state
from keepset.analyse import comparisons
from keepset.errors import KeepsetError
from keepset.report.figures import state_length, style
from keepset.settings import Statistics


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    lengths = made_up_state.lengths(["mamba2", "zamba2-1.2b"])
    return comparisons.length_ratios(lengths, Statistics())


def test_clean(table):
    assert_clean(state_length.draw(table))
    assert_clean(state_length.draw(table[table["model"] == "mamba2"]))


def test_draws_what_the_table_says(table):
    figure = state_length.draw(table)
    assert [name.split(": ")[1] for name in titles(figure)[:3]] == ["70% cut", "90% cut", "95% cut"]
    ax = figure.axes[titles(figure).index("mamba2, wiki: 95% cut")]
    rows = table.query("model == 'mamba2' and sparsity == 0.95 and score == 'ghost'")
    ghost = next(line for line in ax.get_lines() if line.get_color() == style.BLUE)
    assert ghost.get_ydata() == pytest.approx(rows.sort_values("length")["ratio"])
    below = figure.axes[-1]
    assert [label.get_text() for label in below.get_xticklabels()] == ["128", "256", "512"]


def test_nothing_to_draw(table):
    with pytest.raises(KeepsetError, match="figure state_length"):
        state_length.draw(table.iloc[:0])
